import math
from dataclasses import replace
from pathlib import Path

import pytest

from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger
from ownlet.shared.privacy import event_to_json, user_level_event
from ownlet.simulations.audit.devices import budgets_of
from ownlet.simulations.audit.promise import promises_of
from ownlet.simulations.audit.subject import open_subject

from .conftest import NONE, NUM_USERS, USER, WINDOW, WINDOW_PLAN, MakeRun


def test_a_user_level_run_spends_per_round_what_was_published(make_run: MakeRun) -> None:
    # every user in every round, sigma = 4: .926, 2.258, 3.341 after 1, 5, 10 rounds at delta 1e-5
    terms = replace(USER, rounds=10, cohort_rate=1.0, noise_multiplier=4.0)
    (promise,) = promises_of(open_subject(make_run(terms)))
    spent = dict(promise.by_charge)
    assert (promise.unit, promise.charge, promise.charges, promise.limit) == ("user", "round", 10, 8.0)
    assert [spent[at] for at in (0, 1, 5, 10)] == pytest.approx([0, 0.926, 2.258, 3.341], abs=2e-3)
    assert (promise.epsilon_once, promise.epsilon) == (spent[1], spent[10])


def test_a_smaller_delta_has_a_larger_epsilon(make_run: MakeRun) -> None:
    (promise,) = promises_of(open_subject(make_run(USER)))
    deltas, epsilons = zip(*promise.by_delta, strict=True)
    assert list(deltas) == sorted(deltas)
    assert list(epsilons) == sorted(epsilons, reverse=True)
    assert dict(promise.by_delta)[1e-5] == promise.epsilon


def test_a_window_level_run_is_charged_for_the_turns_of_its_devices(make_run: MakeRun) -> None:
    subject = open_subject(make_run(WINDOW))
    (promise,) = promises_of(subject)
    assert (promise.unit, promise.charge, promise.charges) == ("window", "participation", 2)
    budgets = budgets_of(subject)
    assert budgets is not None
    assert (budgets.epsilons, budgets.devices) == ((promise.epsilon,), (NUM_USERS,))


def test_a_run_without_privacy_promises_nothing(make_run: MakeRun) -> None:
    subject = open_subject(make_run(NONE))
    assert promises_of(subject) == ()
    assert budgets_of(subject) is None


def test_a_ledger_has_an_account_for_each_unit(ledger_file: Path, tmp_path: Path) -> None:
    path = tmp_path / LEDGER_FILE
    ledger = Ledger(path, budget=Budget(epsilon=math.inf, dp_delta=1e-5))
    for sigma in (4.0, 2.0):
        event = event_to_json(user_level_event(1.0, sigma, 1))
        ledger.charge(Charge(unit="user", event=event, base_hash="b" * 64, adapter_version=0, plan=WINDOW_PLAN))
    (user,) = promises_of(open_subject(path))
    assert (user.unit, user.charges, user.epsilon_once) == ("user", 2, None)
    assert dict(user.by_charge)[1] == pytest.approx(0.926, abs=2e-3)
    (window,) = promises_of(open_subject(ledger_file))
    assert (window.unit, window.limit, window.epsilon_once) == ("window", 4.0, dict(window.by_charge)[1])


def test_training_without_noise_is_infinite(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_FILE, budget=Budget(epsilon=math.inf))
    event = event_to_json(user_level_event(1.0, 0.0, 1))
    ledger.charge(Charge(unit="user", event=event, base_hash="b" * 64, adapter_version=0, plan=WINDOW_PLAN))
    (promise,) = promises_of(open_subject(tmp_path))
    assert promise.epsilon == math.inf
    assert not promise.promises
