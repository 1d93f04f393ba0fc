"""Cutting histories into windows, one at a time and many at once."""

import numpy as np
import pytest

from ownlet.shared.config import WindowConfig
from ownlet.shared.windows import cut_histories, cut_windows, stack_windows


@pytest.mark.parametrize("num_events", [0, 1, 2, 4, 5, 6, 10, 11, 23])
def test_windows_without_context_are_disjoint_and_never_look_across_their_edge(num_events: int):
    events = np.arange(1, num_events + 1)
    windows = cut_windows(events, WindowConfig(window_length=5, context_length=0))
    seen: list[set[int]] = []
    for history, target, valid in zip(windows.history, windows.target, windows.valid, strict=True):
        inside = set(history[history > 0].tolist()) | set(target[target > 0].tolist())
        assert len({(item - 1) // 5 for item in inside}) == 1  # all from one slice of five events
        assert (valid > 0).tolist() == (target > 0).tolist()
        assert (target - history)[valid > 0].tolist() == [1] * int(valid.sum())  # the target is the next event
        seen.append(inside)
    assert sum(len(s) for s in seen) == len(set().union(*seen)) if seen else num_events < 2


@pytest.mark.parametrize("context", [1, 3, 5, 12])
@pytest.mark.parametrize("num_events", [0, 1, 2, 5, 6, 11, 23])
def test_windows_with_context_have_every_event_but_the_first_as_target_once(num_events: int, context: int):
    events = np.arange(1, num_events + 1)
    windows = cut_windows(events, WindowConfig(window_length=5, context_length=context))
    targets = windows.target[windows.valid > 0]
    assert sorted(targets.tolist()) == list(range(2, num_events + 1))
    assert (windows.history[windows.valid > 0] == targets - 1).all()
    for history, target, valid in zip(windows.history, windows.target, windows.valid, strict=True):
        first = int(target[valid > 0].min())
        slice_start = (first - 1) // 5 * 5  # events before the slice are context, and at most ``context`` of them
        assert history[0] == max(1, slice_start - context + 1)


def test_an_empty_history_gives_no_window_of_the_right_width():
    windows = cut_windows(np.zeros(0, np.int64), WindowConfig(window_length=4, context_length=2))
    assert len(windows) == 0
    assert windows.history.shape == windows.target.shape == windows.valid.shape == (0, 6)


def some_windows(lengths):
    config = WindowConfig(window_length=4, context_length=1)
    return [cut_windows(np.arange(1, n + 1) + 100 * at, config) for at, n in enumerate(lengths)], config


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("history", "target", "valid"))


def test_a_stack_holds_every_users_windows_in_order():
    many, _ = some_windows([4, 1, 9, 0, 2])
    stack = stack_windows(many)
    assert [len(windows) for windows in stack] == stack.counts.tolist() == [1, 0, 3, 0, 1]
    assert stack.owner.tolist() == [0, 2, 2, 2, 4]
    assert all(same(one, other) for one, other in zip(many, stack, strict=True))
    assert same(stack[-1], many[-1])
    assert stack_windows(stack) is stack
    with pytest.raises(IndexError):
        stack[5]


def test_taking_users_of_a_stack_keeps_their_windows():
    many, _ = some_windows([4, 1, 9, 0, 2])
    taken = stack_windows(many).take(np.array([4, 2, 1]))
    assert all(same(one, other) for one, other in zip([many[4], many[2], many[1]], taken, strict=True))
    assert [len(windows) for windows in stack_windows(many)[1:3]] == [0, 3]
    assert len(stack_windows(many).take(np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize("context", [0, 3, 7])
def test_histories_cut_together_are_those_cut_one_by_one(context):
    rng = np.random.default_rng(0)
    config = WindowConfig(window_length=5, context_length=context)
    lengths = rng.integers(0, 23, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])[:-1]
    events = rng.integers(1, 100, lengths.sum()).astype(np.int32)
    chosen = rng.permutation(40)[:30]
    stack = cut_histories(events, starts[chosen], lengths[chosen], config)
    for user, windows in zip(chosen, stack, strict=True):
        assert same(windows, cut_windows(events[starts[user] : starts[user] + lengths[user]], config))
    assert stack.windows.history.dtype == np.int64


def test_the_last_event_of_the_store_can_be_a_target():
    stack = cut_histories(np.array([7, 8, 9]), np.array([0]), np.array([3]), WindowConfig(window_length=3))
    assert stack.windows.target.tolist() == [[8, 9, 0]]
