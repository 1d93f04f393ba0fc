"""Expectations: published figures of composed Gaussians, and the closed form of one Gaussian.

Opacus' accountant is asked in ``tests/simulations/audit/test_prv.py``.
"""

import math

import dp_accounting as dp
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from ownlet.shared import privacy
from ownlet.shared.config import Plan
from ownlet.shared.errors import ConfigError, PrivacyError

DELTA = 1e-5


@pytest.mark.parametrize(
    ("rate", "sigma", "rounds", "expected"),
    [
        (0.01, 1.0, 1000, 1.83),
        (0.1, 1.1, 100, 5.91),
        (1.0, 4.0, 1, 0.926),
        (1.0, 4.0, 5, 2.258),
        (1.0, 4.0, 10, 3.341),
        (1.0, 4.0, 20, 4.983),
        (1.0, 4.0, 50, 8.596),
    ],
)
def test_epsilon_of_known_events(rate: float, sigma: float, rounds: int, expected: float) -> None:
    assert privacy.epsilon(privacy.user_level_event(rate, sigma, rounds), DELTA) == pytest.approx(expected, abs=5e-3)


def exact_epsilon(sigma: float, dp_delta: float) -> float:
    """Balle and Wang 2018, equation 6, solved for epsilon: one Gaussian of sensitivity 1."""

    def excess(eps: float) -> float:
        return float(norm.cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * norm.cdf(-0.5 / sigma - eps * sigma))

    return float(brentq(lambda eps: excess(eps) - dp_delta, 0.0, 60.0, xtol=1e-12))


@pytest.mark.parametrize("dp_delta", [1e-5, 1e-8])
@pytest.mark.parametrize(
    ("sigma", "rounds"), [(0.7, 1), (4.0, 1), (4.0, 5), (4.0, 10), (4.0, 20), (4.0, 50), (30.0, 7)]
)
def test_unsampled_rounds_are_one_gaussian_by_its_closed_form(sigma: float, rounds: int, dp_delta: float) -> None:
    exact = exact_epsilon(sigma / math.sqrt(rounds), dp_delta)  # T Gaussians of sigma are one of sigma / sqrt(T)
    for event in (privacy.user_level_event(1.0, sigma, rounds), privacy.user_turns_event(sigma, rounds)):
        ours = privacy.epsilon(event, dp_delta)
        assert exact <= ours <= exact * 1.001 + 1e-4  # an upper bound, and a tight one


def test_sampling_helps_cohorts_and_not_turns() -> None:
    by_turns = privacy.epsilon(privacy.user_turns_event(4.0, 10), DELTA)
    assert privacy.epsilon(privacy.user_level_event(0.1, 4.0, 100), DELTA) < by_turns / 2  # as many turns on average
    assert privacy.epsilon(privacy.user_turns_event(4.0, 0), DELTA) == 0.0
    assert privacy.epsilon(privacy.user_turns_event(0.0, 1), DELTA) == math.inf
    with pytest.raises(ConfigError, match="turns"):
        privacy.user_turns_event(1.0, -1)


def test_a_curve_is_epsilon_at_each_delta_and_falls() -> None:
    event, deltas = privacy.user_level_event(0.1, 1.1, 100), (1e-8, 1e-6, 1e-4)
    curve = privacy.epsilon_curve(event, deltas)
    assert curve == tuple(privacy.epsilon(event, dp_delta) for dp_delta in deltas)
    assert curve[0] > curve[1] > curve[2]


def test_no_noise_is_infinite_and_no_round_is_free() -> None:
    assert privacy.epsilon(privacy.user_level_event(0.1, 0.0, 1), DELTA) == math.inf
    assert privacy.epsilon(privacy.user_level_event(0.1, 0.0, 0), DELTA) == 0.0
    assert privacy.epsilon(privacy.user_level_event(0.1, 1.0, 0), DELTA) == 0.0


def test_a_window_is_charged_for_every_step_of_every_participation() -> None:
    plan = Plan(steps=4, sample_rate=0.25, clip_norm=1.0, noise_multiplier=1.5)
    by_plan = privacy.epsilon(privacy.window_level_event(plan, 3), DELTA)
    assert by_plan == privacy.epsilon(privacy.user_level_event(0.25, 1.5, 12), DELTA)
    assert privacy.epsilon(privacy.window_level_event(Plan(), 1), DELTA) == math.inf


def test_events_compose_and_epsilons_do_not_add() -> None:
    one, two = privacy.user_level_event(1.0, 4.0, 20), privacy.user_level_event(1.0, 4.0, 30)
    together = privacy.epsilon(privacy.compose_events(one, two), DELTA)
    assert together == pytest.approx(8.596, abs=5e-3)
    assert together < privacy.epsilon(one, DELTA) + privacy.epsilon(two, DELTA)


@pytest.mark.parametrize(("target", "rate", "rounds"), [(2.0, 0.1, 40), (8.0, 0.1, 40), (0.5, 1.0, 1), (15.0, 0.05, 3)])
def test_noise_multiplier_never_exceeds_the_target_and_is_tight(target: float, rate: float, rounds: int) -> None:
    sigma = privacy.noise_multiplier_for(target, DELTA, rate, rounds)
    assert privacy.epsilon(privacy.user_level_event(rate, sigma, rounds), DELTA) <= target
    assert privacy.epsilon(privacy.user_level_event(rate, sigma * 0.998, rounds), DELTA) > target


def test_an_infinite_target_needs_no_noise() -> None:
    assert privacy.noise_multiplier_for(math.inf, DELTA, 0.1, 40) == 0.0


def test_events_survive_json() -> None:
    events = [
        privacy.user_level_event(0.1, 1.5, 7),
        privacy.user_level_event(0.1, 0.0, 7),
        privacy.user_level_event(0.1, 1.5, 0),
        privacy.compose_events(privacy.user_level_event(0.1, 1.5, 7), dp.GaussianDpEvent(2.0)),
    ]
    for event in events:
        assert privacy.event_from_json(privacy.event_to_json(event)) == event


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"kind":"magic"}', '{"kind":"gaussian"}'])
def test_text_that_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(PrivacyError, match="privacy event"):
        privacy.event_from_json(text)


def test_events_that_are_not_recorded_are_refused() -> None:
    with pytest.raises(PrivacyError, match="LaplaceDpEvent"):
        privacy.event_to_json(dp.LaplaceDpEvent(1.0))


@pytest.mark.parametrize(("rate", "sigma", "rounds"), [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.5, -1.0, 1), (0.5, 1.0, -1)])
def test_numbers_out_of_range_are_refused(rate: float, sigma: float, rounds: int) -> None:
    with pytest.raises(ConfigError, match="must"):
        privacy.user_level_event(rate, sigma, rounds)
    with pytest.raises(ConfigError, match="dp_delta"):
        privacy.epsilon(privacy.user_level_event(0.1, 1.0, 1), 0.0)
