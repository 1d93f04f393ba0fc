import numpy as np
from scipy import stats

from ownlet.shared.noise import AesNoise


def test_gaussians_are_normal_with_the_asked_standard_deviation():
    sample = AesNoise.seeded(1).gaussian(200_000, 2.5)
    assert sample.dtype == np.float32
    assert stats.kstest(sample / 2.5, "norm").pvalue > 1e-3
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], len(sample))
    assert low < np.sum((sample.astype(np.float64) / 2.5) ** 2) < high


def test_neighbouring_gaussians_are_uncorrelated():
    sample = AesNoise.seeded(2).gaussian(100_000, 1.0).astype(np.float64)
    for lag in (1, 25_000, 50_000):  # the halves of one Box-Muller pair lie a half or a quarter apart
        assert abs(np.mean(sample[lag:] * sample[:-lag])) < 5 / np.sqrt(len(sample) - lag)


def test_masks_have_the_asked_rate_and_its_limits():
    source = AesNoise.seeded(3)
    count = source.poisson_mask(100_000, 0.3).sum()
    assert stats.binomtest(int(count), 100_000, 0.3).pvalue > 1e-4
    assert source.poisson_mask(50, 1.0).all()
    assert source.poisson_mask(0, 0.5).shape == (0,)


def test_zero_noise_is_exactly_zero():
    assert not AesNoise.seeded(0).gaussian(10, 0.0).any()


def test_seeds_children_and_streams_are_reproducible_and_different():
    def draw(source):
        return source.gaussian(8, 1.0)

    np.testing.assert_array_equal(draw(AesNoise.seeded(1, "a")), draw(AesNoise.seeded(1, "a")))
    np.testing.assert_array_equal(draw(AesNoise.seeded(1).child(2)), draw(AesNoise.seeded(1).child(2)))
    different = [AesNoise.seeded(1), AesNoise.seeded(2), AesNoise.seeded(1).child(1), AesNoise(), AesNoise()]
    assert len({draw(source).tobytes() for source in different}) == len(different)


def test_masks_do_not_depend_on_how_much_noise_was_drawn():
    one, other = AesNoise.seeded(5), AesNoise.seeded(5)
    one.gaussian(1000, 1.0)
    np.testing.assert_array_equal(one.poisson_mask(100, 0.5), other.poisson_mask(100, 0.5))
