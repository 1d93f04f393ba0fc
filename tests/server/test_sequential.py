import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import lambertw

from ownlet.server.sequential import Tally, boundary, judge_arms, tuned_rho
from ownlet.shared.counters import gain
from ownlet.shared.errors import ConfigError

ALPHA, EPSILON = 0.05, 1.0


def worth(bits: NDArray[np.bool_], arm_b: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(bits == arm_b, 1, -1)


def experiments(hit_a: float, hit_b: float, *, trials: int, reports: int, seed: int = 0) -> NDArray[np.int64]:
    """Return (trials, reports) cumulated sums of experiments whose devices flip their bits at ``EPSILON``."""
    rng = np.random.default_rng(seed)
    arm_b = rng.random((trials, reports)) < 0.5
    hit = rng.random((trials, reports)) < np.where(arm_b, hit_b, hit_a)
    flipped = rng.random((trials, reports)) < 1 / (1 + math.exp(EPSILON))
    return np.cumsum(worth(hit ^ flipped, arm_b), axis=1)


def test_looking_after_every_report_is_wrong_less_often_than_alpha():
    sums = experiments(0.3, 0.3, trials=1500, reports=3000)
    counts = np.arange(1, 3001, dtype=np.float64)
    crossed = np.abs(sums) >= boundary(counts, ALPHA, tuned_rho(1000, ALPHA))
    assert crossed.any(axis=1).mean() <= ALPHA
    naive = np.abs(sums) >= 1.96 * np.sqrt(counts)  # a test of fixed size that is looked at after every report
    assert naive.any(axis=1).mean() > 5 * ALPHA


def test_a_real_lift_is_found_and_lies_in_its_interval():
    sums = experiments(0.3, 0.55, trials=200, reports=3000, seed=1)
    counts = np.arange(1, 3001, dtype=np.float64)
    bounds = boundary(counts, ALPHA, tuned_rho(1000, ALPHA))
    assert (sums >= bounds).any(axis=1).mean() > 0.95
    assert not (sums <= -bounds).any()
    outside = np.abs(sums - counts * 0.25 * gain(EPSILON)) >= bounds
    assert outside.any(axis=1).mean() <= ALPHA


def test_rho_is_lamberts_and_makes_the_boundary_tightest_where_it_was_tuned():
    rho = tuned_rho(1000, ALPHA)
    assert rho == pytest.approx(1000 / (-lambertw(-(ALPHA**2) / math.e, -1).real - 1))
    around = [float(boundary(1000.0, ALPHA, rho * factor)) for factor in (0.9, 1.0, 1.1)]
    assert min(around) == around[1]


def test_a_verdict_names_the_better_arm_and_how_much_it_is_better():
    tally = Tally(reports_a=20_000, ones_a=8_000, reports_b=20_000, ones_b=9_000)
    verdict = judge_arms(tally, EPSILON, expected_reports=40_000)
    assert verdict.better == "b"
    assert verdict.lift == pytest.approx(0.05 / gain(EPSILON))  # .45 - .40, and equal arms
    assert verdict.low < verdict.lift < verdict.high
    mirrored = judge_arms(Tally(reports_a=20_000, ones_a=9_000, reports_b=20_000, ones_b=8_000), EPSILON)
    assert mirrored.better == "a"
    few = judge_arms(Tally(reports_a=20, ones_a=8, reports_b=20, ones_b=9), EPSILON)
    assert (few.better, few.low, few.high) == (None, -1.0, 1.0)
    assert judge_arms(Tally(), EPSILON).better is None


def test_arms_that_lose_reports_unequally_get_no_verdict():
    verdict = judge_arms(Tally(reports_a=20_000, ones_a=8_000, reports_b=15_000, ones_b=14_000), EPSILON)
    assert verdict.unequal
    assert verdict.better is None


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"ones must be in 0\.\.reports of each arm"):
        Tally(reports_a=1, ones_a=2)
    for rho in ((0, 0.05), (10, 0.0), (10, 1.0)):
        with pytest.raises(ConfigError, match="must be"):
            tuned_rho(*rho)
