"""Opacus' accountant is the independent implementation here."""

import math

import pytest

from ownlet.shared.privacy import compose_events, epsilon, user_level_event, user_turns_event
from ownlet.simulations.audit import prv
from ownlet.simulations.audit.prv import cross_check, prv_interval


@pytest.mark.parametrize(
    ("rate", "sigma", "rounds"), [(0.01, 1.0, 1000), (0.1, 1.1, 100), (1.0, 4.0, 50), (0.2, 0.9, 3), (0.1, 50.0, 10)]
)
def test_two_accountants_agree(rate: float, sigma: float, rounds: int) -> None:
    event = user_level_event(rate, sigma, rounds)
    other = prv_interval(event, 1e-6)
    assert other.low <= epsilon(event, 1e-6) <= other.high
    assert cross_check(event, 1e-6).passed


def test_events_of_several_mechanisms_are_compared_too() -> None:
    event = compose_events(user_level_event(0.1, 1.5, 20), user_turns_event(5.0, 3))
    other = prv_interval(event, 1e-6)
    assert other.low <= epsilon(event, 1e-6) <= other.high


def test_an_account_that_states_too_little_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prv, "epsilon_of", lambda totals, dp_delta: 1.62)  # the GDP accountant's figure; truth is 1.83
    check = cross_check(user_level_event(0.01, 1.0, 1000), 1e-5)
    assert not check.passed
    assert "too low" in check.statement


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    assert prv_interval(user_level_event(0.1, 1.0, 0), 1e-5).high == 0.0
    assert prv_interval(user_level_event(0.1, 0.0, 3), 1e-5).low == math.inf
    assert cross_check(user_level_event(0.1, 1.0, 0), 1e-5).passed
    assert "not compared" in cross_check(user_level_event(0.1, 0.0, 3), 1e-5).statement
