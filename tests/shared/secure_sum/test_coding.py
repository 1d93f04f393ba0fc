import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ownlet.shared.distributed_noise import distributed_event, realised_noise_multiplier
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.shared.secure_sum.coding import Coding, choose_coding, decode, quantise, rounded_bound
from ownlet.shared.secure_sum.discrete_gaussian import discrete_gaussian
from ownlet.shared.secure_sum.terms import choose_terms

TERMS = choose_terms(8, dropout=0.25, colluding=0.13, size=700, bits=24)


def deltas(users: int, size: int, norm: float, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(users, size))
    return (rows * norm / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_rounding_is_right_on_average_and_off_by_less_than_one():
    coding = replace(choose_coding(TERMS, 1.0, 0.0, 10), scale=3)
    coding = replace(coding, bound=rounded_bound(8.0, 4))
    row = np.array([[0.3, -0.41, 0.5, 0.0]], dtype=np.float32)
    drawn = quantise(np.repeat(row, 100_000, axis=0), 1.0, coding, AesNoise.seeded(1))
    exact = row[0].astype(float) * 8
    assert np.abs(drawn - exact).max() < 1
    np.testing.assert_allclose(drawn.mean(axis=0), exact, atol=5 * 0.5 / math.sqrt(100_000) + 1e-6)
    assert not drawn[:, 3].any()


def test_no_rounding_is_longer_than_the_bound_and_the_bound_is_reached_by_few():
    halves = np.full((2000, 700), 0.5, dtype=np.float32)  # squared norms are binomial(700, 1/2)
    norm = 0.5 * math.sqrt(700)
    coding = Coding(scale=0, bound=rounded_bound(norm, 700), variance=0)
    squared = (quantise(halves, norm, coding, AesNoise.seeded(2)) ** 2).sum(axis=1)
    assert squared.max() <= coding.bound
    free = Coding(scale=0, bound=10**9, variance=0)
    beyond = int(((quantise(halves, norm, free, AesNoise.seeded(2)) ** 2).sum(axis=1) > coding.bound).sum())
    chance = float(stats.binom.sf(coding.bound, 700, 0.5))
    assert 0.01 < chance < math.exp(-0.5)  # what the cited bound promises
    assert stats.binomtest(beyond, 2000, chance).pvalue > 1e-4


def test_the_bound_is_the_formula_of_the_paper_and_never_below_what_can_always_be_reached():
    for norm, size in itertools.product((0.5, 10.0, 1e4), (1, 700, 10**6)):
        always = (norm + size**0.5) ** 2
        mostly = norm**2 + size / 4 + (norm + size**0.5 / 2)  # sqrt(2 ln(1 / exp(-1/2))) = 1
        assert rounded_bound(norm, size) == pytest.approx(min(always, mostly), abs=1, rel=1e-8)


def test_rows_longer_than_the_clip_are_clipped_before_they_are_rounded():
    coding = choose_coding(TERMS, 0.5, 0.0, 10)
    drawn = quantise(deltas(3, 700, 9.0), 0.5, coding, AesNoise.seeded(3))
    np.testing.assert_allclose(np.linalg.norm(decode(drawn, coding), axis=1), 0.5, rtol=1e-3)


@pytest.mark.parametrize(("num_users", "noise_multiplier"), [(8, 0.0), (8, 1.0), (2000, 1.0), (20_000, 4.0)])
def test_a_sum_cannot_wrap_around_even_if_all_users_agree_on_one_coordinate(num_users: int, noise_multiplier: float):
    coding = choose_coding(TERMS, 0.3, noise_multiplier, num_users)
    worst = np.zeros((1, 700), dtype=np.float32)
    worst[0, 0] = 0.3
    largest = int(quantise(worst, 0.3, coding, AesNoise.seeded(4)).max())
    assert num_users * largest + 12 * math.sqrt(8 * coding.variance) < 2**23
    finer = 2 * (num_users * 0.3 * 2.0**coding.scale + 12 * math.sqrt(8 * coding.variance))
    assert finer > 2**23 - 2 * num_users or 4 * coding.variance > 2**26  # twice as fine would not fit


@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 3.7])
def test_the_fewest_survivors_without_the_colluding_ones_still_have_the_promised_noise(noise_multiplier: float):
    coding = choose_coding(TERMS, 0.3, noise_multiplier, 500)
    least = realised_noise_multiplier(coding.share_noise, TERMS.least, TERMS.num_colluding)
    assert noise_multiplier <= least < noise_multiplier * 1.001
    everybody = realised_noise_multiplier(coding.share_noise, 8, 0)
    assert everybody == pytest.approx(noise_multiplier * math.sqrt(8 / 5), rel=1e-3)
    assert epsilon(distributed_event(coding.share_noise, 6, num_colluding=1), 1e-5) <= epsilon(
        user_level_event(1.0, noise_multiplier, 1), 1e-5
    )


def test_the_noise_is_measured_by_the_norm_after_rounding():
    coarse = choose_coding(replace(TERMS, size=20_000, bits=16), 0.3, 1.0, 90)
    norm = 0.3 * 2.0**coarse.scale
    assert math.sqrt(coarse.bound) > 1.02 * norm  # rounding counts here
    sigma = realised_noise_multiplier(coarse.share_noise, TERMS.least, TERMS.num_colluding)
    total_std = math.sqrt((TERMS.least - TERMS.num_colluding) * (coarse.variance - 4))
    assert sigma == pytest.approx(total_std / math.sqrt(coarse.bound))
    assert total_std > 1.02 * norm


def test_the_coded_sum_differs_from_the_float_sum_by_rounding_and_noise_alone():
    users, size = 200, 700
    rows = deltas(users, size, 0.3)
    coding = choose_coding(TERMS, 0.3, 0.0, users)
    total = decode(quantise(rows, 0.3, coding, AesNoise.seeded(5)).sum(axis=0), coding)
    exact = rows.astype(np.float64).sum(axis=0)
    assert np.abs(total - exact).max() <= users * 2.0**-coding.scale
    assert np.linalg.norm(total - exact) <= 5 * math.sqrt(users * size / 4) * 2.0**-coding.scale

    noisy = choose_coding(TERMS, 0.3, 1.0, users)
    shares = [discrete_gaussian(AesNoise.seeded(6, name), size, noisy.variance) for name in range(8)]
    total = decode(quantise(rows, 0.3, noisy, AesNoise.seeded(5)).sum(axis=0) + np.sum(shares, axis=0), noisy)
    expected = math.sqrt(size) * 0.3 * math.sqrt(8 / 5)  # sigma C, times what nobody's dropping out leaves on top
    assert np.linalg.norm(total - exact) == pytest.approx(expected, rel=0.15)


def test_without_noise_nothing_is_promised():
    coding = choose_coding(TERMS, 0.3, 0.0, 10)
    assert coding.variance == 0
    assert epsilon(distributed_event(coding.share_noise, 8), 1e-5) == math.inf


@pytest.mark.parametrize(
    ("bits", "num_users", "clip_norm"), [(8, 100, 0.3), (16, 100_000, 0.3), (24, 10, math.inf), (24, 10, 0.0)]
)
def test_a_modulus_that_is_too_small_and_a_missing_clip_are_refused(bits: int, num_users: int, clip_norm: float):
    with pytest.raises(ConfigError):
        choose_coding(replace(TERMS, bits=bits), clip_norm, 1.0, num_users)
