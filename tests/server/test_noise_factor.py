"""Against dense matrices and every pattern of participation, small enough to be written down."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import toeplitz
from scipy.special import binom

from ownlet.server.noise_factor import INDEPENDENT, Factor, best_factor, prefix_error, sensitivity
from ownlet.shared.errors import ConfigError

FACTORS = [
    INDEPENDENT,
    Factor(scales=(0.4,), decays=(0.9,)),
    Factor(scales=(0.3, 0.6), decays=(0.95, 0.2)),
    Factor(scales=(1.0,), decays=(0.0,)),
]


def dense(column: NDArray[np.float64]) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = toeplitz(column, np.zeros(len(column)))
    return matrix


@pytest.mark.parametrize("factor", FACTORS)
def test_the_inverse_is_that_of_the_dense_matrix(factor: Factor) -> None:
    c = dense(factor.coefficients(12))
    np.testing.assert_allclose(dense(factor.inverse_coefficients(12)), np.linalg.inv(c), atol=1e-12)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(("separation", "participations"), [(1, 3), (3, 2), (3, 4), (4, 9), (10, 1)])
def test_the_sensitivity_is_the_largest_over_all_patterns(factor: Factor, separation: int, participations: int) -> None:
    rounds = 10
    c, largest = dense(factor.coefficients(rounds)), 0.0
    for size in range(1, participations + 1):
        for pattern in combinations(range(rounds), size):
            if all(after - before >= separation for before, after in pairwise(pattern)):
                largest = max(largest, float(np.linalg.norm(c[:, pattern].sum(axis=1))))
    assert sensitivity(factor, rounds, separation, participations) == pytest.approx(largest)


def test_contributions_that_point_elsewhere_or_are_shorter_move_less() -> None:
    rng, factor = np.random.default_rng(0), FACTORS[2]
    c, bound = dense(factor.coefficients(12)), sensitivity(factor, 12, 3, 4)
    for _ in range(200):
        x = np.zeros((12, 5))
        x[rng.integers(3) :: 3] = rng.normal(size=5)
        x /= np.maximum(1.0, np.linalg.norm(x, axis=1, keepdims=True))
        x[rng.random(12) < 0.2] *= -1
        assert np.linalg.norm(c @ x) <= bound + 1e-9


@pytest.mark.parametrize("factor", FACTORS)
def test_the_error_is_that_of_the_dense_factors(factor: Factor) -> None:
    rounds, sums = 15, np.tril(np.ones((15, 15)))
    b = sums @ np.linalg.inv(dense(factor.coefficients(rounds)))
    expected = sensitivity(factor, rounds, 5, 3) * np.linalg.norm(b) / np.sqrt(rounds)
    assert prefix_error(factor, rounds, 5, 3) == pytest.approx(expected)


def test_the_error_of_independent_noise_is_its_closed_form() -> None:
    for rounds, separation, participations in ((100, 100, 1), (200, 20, 10)):
        closed = np.sqrt(participations * (rounds + 1) / 2)
        assert prefix_error(INDEPENDENT, rounds, separation, participations) == pytest.approx(closed)


@pytest.mark.parametrize(
    ("rounds", "separation", "participations", "less"), [(100, 100, 1, 2.9), (200, 20, 10, 2.9), (200, 50, 4, 3.4)]
)
def test_at_equal_privacy_the_error_is_about_three_times_lower(
    rounds: int, separation: int, participations: int, less: float
) -> None:
    correlated = prefix_error(best_factor(rounds, separation, participations, 1), rounds, separation, participations)
    assert prefix_error(INDEPENDENT, rounds, separation, participations) > less * correlated


def test_two_buffers_come_within_three_percent_of_the_square_root_of_the_prefix_matrix() -> None:
    """For one participation that square root is the best Toeplitz factor up to a constant that vanishes (its
    coefficients are binom(2 i, i) / 4^i: Fichtenberger, Henzinger and Upadhyay 2023)."""
    rounds = 60
    root = binom(2 * np.arange(rounds), np.arange(rounds)) / 4.0 ** np.arange(rounds)
    np.testing.assert_allclose(dense(root) @ dense(root), np.tril(np.ones((rounds, rounds))), atol=1e-9)
    best = np.linalg.norm(root) * np.linalg.norm(dense(root)) / np.sqrt(rounds)
    assert prefix_error(best_factor(rounds, rounds, 1, 2), rounds, rounds, 1) < 1.03 * best


def test_one_buffer_is_as_good_as_a_grid_finds() -> None:
    found = prefix_error(best_factor(40, 8, 5, 1), 40, 8, 5)
    grid = [Factor(scales=(s,), decays=(d,)) for s in np.linspace(0.05, 1, 30) for d in np.linspace(0, 0.99, 40)]
    assert found <= min(prefix_error(factor, 40, 8, 5) for factor in grid) + 1e-6


def test_factors_for_which_the_theorem_does_not_hold_are_refused() -> None:
    for scales, decays, rule in (
        ((0.7, 0.4), (0.5, 0.5), "at most 1 together"),
        ((-0.1,), (0.5,), "positive"),
        ((0.1,), (1.0,), "decays must be in"),
        ((0.1,), (), "as many"),
    ):
        with pytest.raises(ConfigError, match=rule):
            Factor(scales=scales, decays=decays)
