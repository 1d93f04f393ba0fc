import math

import numpy as np
import pytest

from ownlet.simulations.audit.decode import correct_guesses, membership_scores
from ownlet.simulations.audit.result import Claim


def claim(sample_rate: float, sigma: float, steps: int) -> Claim:
    return Claim(unit="window", sample_rate=sample_rate, noise_multiplier=sigma, clip_norm=2.0, steps=steps)


def test_canaries_that_do_not_touch_get_their_exact_likelihood_ratio() -> None:
    rng, rate, sigma, steps = np.random.default_rng(0), 0.3, 1.5, 4
    contributions = 2.0 * np.eye(3, 400)
    releases = rng.normal(0, 2 * sigma * 1.2, (steps, 400))  # more noise than claimed, so the claim's is used
    seen = releases[:, :3] / 2.0
    ratio = np.exp((2 * seen - 1) / (2 * sigma**2))  # of N(1, sigma²) to N(0, sigma²)
    expected = np.log(1 - rate + rate * ratio).sum(axis=0)
    found = membership_scores(releases, contributions, claim(rate, sigma, steps))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_without_sampling_the_mean_of_all_steps_decides() -> None:
    rng = np.random.default_rng(1)
    releases = rng.normal(0, 4.0, (5, 300))
    found = membership_scores(releases, 2.0 * np.eye(2, 300), claim(1.0, 1.5, 5))
    expected = ((2 * releases[:, :2] / 2.0 - 1) / (2 * 1.5**2)).sum(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_canaries_that_nearly_coincide_are_told_apart_where_noise_is_missing() -> None:
    rng = np.random.default_rng(2)
    contributions = rng.normal(size=(60, 200)) + 3 * rng.normal(size=200)  # one large part in common
    contributions *= 2 / np.linalg.norm(contributions, axis=1, keepdims=True)
    included = rng.random(60) < 0.5
    scores = membership_scores((contributions[included].sum(axis=0))[None], contributions, claim(1.0, 1.0, 1))
    assert ((scores > 0) == included).all()


def test_guesses_are_made_about_the_surest_canaries() -> None:
    scores = np.array([0.1, -5.0, 4.0, -0.2, 3.0])
    included = np.array([False, False, True, True, False])
    assert [correct_guesses(scores, included, number) for number in (1, 2, 3, 5)] == [1, 2, 2, 2]
    assert math.isclose(correct_guesses(-scores, included, 2), 0)


def test_releases_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="releases"):
        membership_scores(np.zeros((1, 3)), np.zeros((1, 4)), claim(1.0, 1.0, 1))
