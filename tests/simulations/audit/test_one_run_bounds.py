import math

import numpy as np
import pytest
from scipy import stats

from ownlet.shared.errors import ConfigError
from ownlet.simulations.audit.one_run_bounds import (
    claimed_curve,
    epsilon_of_guesses,
    refutes,
    sigma_of_guesses,
)
from ownlet.simulations.audit.result import Claim


def claim(sample_rate: float = 1.0, sigma: float = 1.0, steps: int = 1) -> Claim:
    return Claim(unit="window", sample_rate=sample_rate, noise_multiplier=sigma, clip_norm=1.0, steps=steps)


def test_all_guesses_right_has_the_closed_form_of_randomised_response() -> None:
    rate = 0.05 ** (1 / 80)  # randomised response that tells the truth so often is right 80 times with chance .05
    assert epsilon_of_guesses(100, 80, 80, 0.0) == pytest.approx(math.log(rate / (1 - rate)), abs=1e-3)


def test_half_of_the_guesses_right_says_nothing() -> None:
    assert epsilon_of_guesses(100, 80, 40, 1e-5) == 0.0
    assert sigma_of_guesses(claim(), 100, 80, 40) == math.inf


def test_randomised_response_is_accused_falsely_in_one_audit_of_twenty() -> None:
    canaries, epsilon = 300, 1.2
    truth = 1 / (1 + math.exp(-epsilon))
    accused = next(v for v in range(canaries) if epsilon_of_guesses(canaries, canaries, v, 0.0) > epsilon)
    chance = float(stats.binom.sf(accused - 1, canaries, truth))  # exact: each answer is right independently
    assert 0.03 < chance <= 0.05


def test_the_bound_of_any_mechanism_falls_with_delta() -> None:
    bounds = [epsilon_of_guesses(1000, 200, 190, dp_delta) for dp_delta in (0.0, 1e-5, 1e-4, 1e-3)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] - bounds[-1] > 0.1


def test_the_curve_of_a_mechanism_without_sampling_is_that_of_its_privacy_losses() -> None:
    closed, sampled = claimed_curve(claim(sigma=1.5, steps=2)), claimed_curve(claim(1 - 1e-9, sigma=1.5, steps=2))
    for chance in (1e-4, 0.01, 0.2, 0.5, 0.9, 0.999):
        assert sampled(chance) <= closed(chance) + 1e-6  # pessimistic: it never says more than is true
        assert sampled(chance) == pytest.approx(closed(chance), rel=0.03, abs=1e-6)


def gaussian_counts(sigma: float, canaries: int, guesses: int, audits: int) -> np.ndarray:
    """Simulate attacks on independent Gaussians: how many of the surest guesses are right."""
    rng = np.random.default_rng(4)
    included = rng.random((audits, canaries)) < 0.5
    evidence = included + sigma * rng.normal(size=included.shape) - 0.5
    surest = np.argsort(-np.abs(evidence), axis=1)[:, :guesses]
    return np.take_along_axis((evidence > 0) == included, surest, axis=1).sum(axis=1)


@pytest.mark.parametrize("guesses", [60, 300])
def test_a_gaussian_is_accused_falsely_in_at_most_one_audit_of_twenty(guesses: int) -> None:
    counts = gaussian_counts(1.0, 300, guesses, 2000)
    curve = claimed_curve(claim())
    accused = {count: refutes(curve, 300, guesses, count) for count in set(counts.tolist())}
    share = np.mean([accused[count] for count in counts.tolist()])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_a_gaussian_with_a_fifth_of_its_noise_is_accused_nearly_always() -> None:
    counts = gaussian_counts(1 / 5, 300, 300, 200)
    curve = claimed_curve(claim())
    assert np.mean([refutes(curve, 300, 300, int(count)) for count in counts]) > 0.95


def test_the_noise_that_is_found_is_between_what_is_and_is_not_refuted() -> None:
    found = sigma_of_guesses(claim(), 300, 60, 56)
    assert refutes(claimed_curve(claim(sigma=found)), 300, 60, 56)
    assert not refutes(claimed_curve(claim(sigma=found / 1.03)), 300, 60, 56)


def test_the_curve_tells_more_about_a_gaussian_than_one_pair_of_epsilon_and_delta() -> None:
    sigma = sigma_of_guesses(claim(), 1000, 200, 184)
    assert claim().epsilon_at(1.0, sigma) > epsilon_of_guesses(1000, 200, 184, 1e-5) + 0.3


def test_more_right_guesses_than_guesses_are_refused() -> None:
    with pytest.raises(ConfigError, match="correct"):
        epsilon_of_guesses(10, 5, 6, 1e-5)
