"""A planted leak is found, in each of the ways; honest training is not accused."""

from __future__ import annotations

import numpy as np
import pytest

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.windows import WindowStack, cut_windows, stack_windows
from ownlet.simulations.evaluate import Cases
from ownlet.simulations.leakage import check_leakage

HISTORIES = [np.array([1, 2, 3, 4, 5, 6]), np.array([7, 8, 9]), np.array([2, 3, 2])]
TRAIN = [history[:-1] for history in HISTORIES]
CASES = Cases(
    histories=tuple(TRAIN), targets=np.array([history[-1] for history in HISTORIES]), users=np.arange(len(HISTORIES))
)
NEGATIVES = [np.array([[9, 8], [7, 7]]), np.array([[1, 2]]), np.array([[5]])]


def windows(histories: list[np.ndarray], context_length: int = 0) -> WindowStack:
    config = WindowConfig(window_length=2, context_length=context_length)
    return stack_windows([cut_windows(history, config) for history in histories])


def test_honest_training_passes():
    check_leakage(TRAIN, NEGATIVES, CASES)
    for context_length in (0, 3):
        check_leakage(windows(TRAIN, context_length), NEGATIVES, CASES)
    check_leakage(list(windows(TRAIN)), None, CASES)


def test_a_test_item_among_the_training_events_is_a_leak():
    planted = [TRAIN[0], HISTORIES[1], TRAIN[2]]
    with pytest.raises(DataError, match="got 1 leaks: item 9 reaches the training events of user 1"):
        check_leakage(planted, None, CASES)


def test_a_test_item_as_target_of_a_training_window_is_a_leak():
    stack = windows([HISTORIES[0], TRAIN[1], TRAIN[2]])
    with pytest.raises(DataError, match="item 6 reaches the training windows of user 0"):
        check_leakage(stack, None, CASES)


def test_a_test_item_as_context_of_a_training_window_is_a_leak_even_where_it_is_no_target():
    stack = windows(TRAIN, context_length=3)
    honest = stack[1]
    history = np.where(honest.history == 7, 9, honest.history)
    planted = [stack[0], type(honest)(history=history, target=honest.target, valid=honest.valid), stack[2]]
    with pytest.raises(DataError, match="item 9 reaches the context of training windows of user 1"):
        check_leakage(planted, None, CASES)


def test_a_target_that_does_not_count_is_no_training():
    stack = windows([HISTORIES[0], TRAIN[1], TRAIN[2]])
    leaking = stack[0]
    silenced = np.where(leaking.target == 6, 0.0, leaking.valid).astype(np.float32)
    quiet = type(leaking)(history=leaking.history, target=leaking.target, valid=silenced)
    check_leakage([quiet, stack[1], stack[2]], None, CASES)


def test_a_test_item_among_chosen_negatives_is_a_leak():
    planted = [NEGATIVES[0], NEGATIVES[1], np.array([[5, 2]])]
    with pytest.raises(DataError, match="item 2 is drawn as a negative of user 2"):
        check_leakage(TRAIN, planted, CASES)


def test_what_the_user_had_before_may_be_trained_on_as_often_as_then():
    # user 2 has item 2 in the history already; the second time is the answer
    with pytest.raises(DataError, match="item 2 reaches the training events of user 2"):
        check_leakage([TRAIN[0], TRAIN[1], HISTORIES[2]], None, CASES)


def test_an_item_is_no_leak_to_another_user():
    check_leakage([TRAIN[0], np.array([6, 2]), np.array([6, 9, 2])], None, CASES)


def test_all_leaks_are_counted():
    with pytest.raises(DataError, match="got 3 leaks: item 6"):
        check_leakage(HISTORIES, None, CASES)


def test_cases_must_say_whose_they_are_and_every_user_needs_an_entry():
    nameless = Cases(histories=CASES.histories, targets=CASES.targets)
    with pytest.raises(ConfigError, match="cases must have users"):
        check_leakage(TRAIN, None, nameless)
    with pytest.raises(ConfigError, match="train must have one entry per user, got entries=2, users=3"):
        check_leakage(TRAIN[:2], None, CASES)
    with pytest.raises(ConfigError, match="negatives must have one entry per user"):
        check_leakage(TRAIN, NEGATIVES[:1], CASES)


def test_no_cases_cannot_leak():
    check_leakage([], [], Cases(histories=(), targets=np.zeros(0, np.int64), users=np.zeros(0, np.int64)))
