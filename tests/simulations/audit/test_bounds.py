"""The audit's bounds against closed forms, and against scipy's own tests."""

import numpy as np
import pytest
from scipy import stats

from ownlet.simulations.audit.bounds import (
    dispersion_p_value,
    proportion_lower,
    proportion_p_value,
    repeat_of,
    spread_p_value,
    std_p_value,
    std_upper,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (1, 10), (37, 400), (400, 400)])
def test_the_lower_bound_of_a_proportion_is_that_of_clopper_and_pearson(successes, trials):
    interval = stats.binomtest(successes, trials, alternative="greater").proportion_ci(0.975, method="exact")
    assert proportion_lower(successes, trials, 0.025) == pytest.approx(interval.low)


def test_all_successes_bound_the_proportion_by_a_root():
    assert proportion_lower(50, 50, 0.05) == pytest.approx(0.05 ** (1 / 50))


def test_the_p_value_of_a_proportion_is_one_where_it_is_as_expected_and_tiny_where_it_is_double():
    assert proportion_p_value(100, 1000, 0.1) == pytest.approx(1.0)
    assert proportion_p_value(200, 1000, 0.1) < 1e-15


def test_the_upper_bound_of_a_standard_deviation_holds_as_often_as_it_says():
    rng = np.random.default_rng(0)
    squares = np.square(rng.normal(0, 3.0, (2000, 40))).sum(axis=1)
    missed = np.mean([std_upper(float(total), 40, 0.1) < 3.0 for total in squares])
    assert abs(missed - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 2000)


def test_two_numbers_give_the_p_value_of_an_exponential():
    # half the sum of squares of two standard normals is exponential: P(more) = exp(-s / 2)
    assert std_p_value(10.0 * 4, 2, 2.0) == pytest.approx(2 * np.exp(-5.0))


def test_independent_coins_pass_and_fixed_batches_do_not():
    rng = np.random.default_rng(1)
    coins = rng.random((400, 60)) < 0.1
    assert dispersion_p_value(coins.sum(axis=1), 60, 0.1) > 1e-3
    assert dispersion_p_value(np.full(400, 6), 60, 0.1) < 1e-9


def test_units_that_take_turns_are_too_alike_and_the_same_batch_every_time_is_too_unlike():
    rng = np.random.default_rng(2)
    assert spread_p_value((rng.random((400, 60)) < 0.1).sum(axis=0), 400, 0.1) > 1e-3
    assert spread_p_value(np.full(60, 40), 400, 0.1) < 1e-9
    assert spread_p_value(np.repeat([400, 0], [6, 54]), 400, 0.1) < 1e-9


def test_a_series_that_repeats_itself_is_found_at_its_shift_and_another_is_not():
    rng = np.random.default_rng(3)
    fresh = rng.normal(size=3000)
    assert repeat_of(fresh)[2] > 1e-3
    correlation, shift, p_value = repeat_of(np.tile(fresh[:500], 6))
    assert correlation == pytest.approx(1.0, abs=1e-9)
    assert shift % 500 == 0
    assert p_value < 1e-12


def test_a_series_of_zeros_has_nothing_to_repeat():
    assert repeat_of(np.zeros(100)) == (0.0, 0, 1.0)
