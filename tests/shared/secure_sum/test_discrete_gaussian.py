import numpy as np
import pytest
from scipy import stats

from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.shared.secure_sum.discrete_gaussian import MOST_VARIANCE, discrete_gaussian


def chances(variance: int, values: np.ndarray) -> np.ndarray:
    """The definition, normalised over 40 standard deviations."""
    everything = np.arange(-int(40 * variance**0.5), int(40 * variance**0.5) + 1)
    weight = np.exp(-(everything.astype(float) ** 2) / (2 * variance))
    return np.exp(-(values.astype(float) ** 2) / (2 * variance)) / weight.sum()


@pytest.mark.parametrize("variance", [9, 10, 37])
def test_every_number_is_as_likely_as_the_definition_says(variance: int):
    sample = discrete_gaussian(AesNoise.seeded(1), 200_000, variance)
    edge = int(3.5 * variance**0.5)
    inside = np.arange(-edge, edge + 1)
    observed = np.array([np.sum(sample == value) for value in inside])
    expected = chances(variance, inside) * len(sample)
    outside = len(sample) - observed.sum(), len(sample) - expected.sum()
    assert stats.chisquare([*observed, outside[0]], [*expected, outside[1]]).pvalue > 1e-3


@pytest.mark.parametrize("variance", [9, 5_000_011, MOST_VARIANCE])
def test_moments_signs_and_tails_are_right_from_the_least_to_the_largest_variance(variance: int):
    sample = discrete_gaussian(AesNoise.seeded(2, variance), 100_000, variance)
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], len(sample))
    assert low < np.sum(sample.astype(float) ** 2) / variance < high
    assert abs(sample.mean()) < 5 * (variance / len(sample)) ** 0.5
    beyond = int(np.sum(np.abs(sample) > 2.5 * variance**0.5))
    values = np.arange(int(2.5 * variance**0.5) + 1, int(12 * variance**0.5))
    assert stats.binomtest(beyond, len(sample), min(1.0, 2 * chances(variance, values).sum())).pvalue > 1e-4


def test_large_ones_are_normal_in_every_part_and_use_all_their_low_bits():
    sample = discrete_gaussian(AesNoise.seeded(3), 100_000, MOST_VARIANCE)
    assert stats.kstest((sample + 0.5) / MOST_VARIANCE**0.5, "norm").pvalue > 1e-3
    assert stats.chisquare(np.bincount(sample & 15, minlength=16)).pvalue > 1e-3


def test_the_sum_of_shares_is_the_discrete_gaussian_of_the_sum_of_variances():
    shares = [discrete_gaussian(AesNoise.seeded(4, share), 100_000, 9) for share in range(4)]
    total = np.sum(shares, axis=0)
    inside = np.arange(-21, 22)
    observed = np.array([np.sum(total == value) for value in inside])
    expected = chances(36, inside) * len(total)
    rest = len(total) - observed.sum(), len(total) - expected.sum()
    assert stats.chisquare([*observed, rest[0]], [*expected, rest[1]]).pvalue > 1e-3


def test_draws_are_independent_reproducible_and_of_the_asked_number():
    one, same, other = (discrete_gaussian(AesNoise.seeded(name), 50_000, 400) for name in (5, 5, 6))
    np.testing.assert_array_equal(one, same)
    for first, second in ((one, other), (one[1:], one[:-1])):
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / len(first) ** 0.5
    assert discrete_gaussian(AesNoise.seeded(5), 0, 400).shape == (0,)
    assert discrete_gaussian(AesNoise.seeded(5), 1, 400).shape == (1,)
    assert not discrete_gaussian(AesNoise.seeded(5), 10, 0).any()


@pytest.mark.parametrize("variance", [-1, 1, 8, MOST_VARIANCE + 1])
def test_variances_out_of_range_are_refused(variance: int):
    with pytest.raises(ConfigError, match="variance must be"):
        discrete_gaussian(AesNoise.seeded(0), 1, variance)
