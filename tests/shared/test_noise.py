import numpy as np
import pytest
from scipy import stats

from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise, SimulatedNoise


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


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 0.97])
def test_a_poisson_sample_has_independent_geometric_gaps(rate: float):
    size, source = 1_000_000, AesNoise.seeded(6)
    sample = source.poisson_sample(size, rate)
    assert (np.diff(sample) > 0).all()
    assert sample[0] >= 0
    assert sample[-1] < size
    assert stats.binomtest(len(sample), size, rate).pvalue > 1e-4
    gaps = np.diff(sample)
    observed = [int((gaps == 1).sum()), int((gaps > 1).sum())]  # a head follows a head with probability rate
    assert stats.binomtest(observed[0], len(gaps), rate).pvalue > 1e-4
    halves = [int((sample < size // 2).sum()), int((sample >= size // 2).sum())]
    assert stats.binomtest(halves[0], sum(halves), 0.5).pvalue > 1e-4


def test_limits_of_a_poisson_sample():
    source = AesNoise.seeded(7)
    assert source.poisson_sample(5, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert source.poisson_sample(0, 0.5).tolist() == []
    assert sum(len(source.poisson_sample(1, 0.5)) for _ in range(400)) in range(150, 250)
    assert len(source.poisson_sample(10**12, 1e-10)) in range(50, 160)  # nobody is listed
    with pytest.raises(ConfigError, match="rate must be in"):
        source.poisson_sample(5, 0.0)


def test_simulated_noise_is_normal_and_its_users_are_independent():
    users = np.stack([SimulatedNoise(3, 1, user).gaussian(2001, 0.5) for user in range(100)]).astype(np.float64)
    assert stats.kstest(users.ravel() / 0.5, "norm").pvalue > 1e-3
    between = np.corrcoef(users)[~np.eye(100, dtype=bool)]
    assert np.abs(between).max() < 6 / np.sqrt(2001)
    assert SimulatedNoise(3, 1, 0).gaussian(7, 0.0).tolist() == [0.0] * 7


def test_simulated_noise_depends_on_seed_round_and_user_alone():
    def draw(*name):
        source = SimulatedNoise(*name)
        return np.concatenate(
            [source.gaussian(5, 1.0), source.poisson_mask(40, 0.5), source.negatives(2, 3, 99).ravel()]
        )

    np.testing.assert_array_equal(draw(1, 2, 3), draw(1, 2, 3))
    assert (
        len({draw(*name).tobytes() for name in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (12, 3, 4), (1, 23, 4)]})
        == 6
    )


@pytest.mark.parametrize("source", [AesNoise.seeded(8), SimulatedNoise(0, 0, 0)], ids=["aes", "simulated"])
def test_negatives_are_uniform_over_the_catalogue(source):
    drawn = source.negatives(4000, 5, 20)
    assert drawn.shape == (4000, 5)
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=21)[1:]).pvalue > 1e-3
    assert source.negatives(0, 5, 20).shape == (0, 5)


def test_simulated_masks_have_the_asked_rate():
    count = sum(int(SimulatedNoise(0, 0, user).poisson_mask(10, 0.3).sum()) for user in range(5000))
    assert stats.binomtest(count, 50_000, 0.3).pvalue > 1e-4
