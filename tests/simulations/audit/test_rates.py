import math

import pytest
from scipy import stats

from ownlet.shared.errors import ConfigError
from ownlet.simulations.audit.rates import epsilon_of_counts, epsilon_of_rates, rate_above, rate_below, rate_interval


def test_bounds_on_a_rate_are_those_of_scipys_exact_binomial_interval() -> None:
    for successes, trials in ((0, 20), (3, 20), (20, 20), (17, 400)):
        reference = stats.binomtest(successes, trials).proportion_ci(0.95, "exact")
        assert rate_interval(successes, trials, 0.95) == pytest.approx((reference.low, reference.high))


def test_all_successes_have_the_closed_form() -> None:
    assert rate_above(50, 50, 0.95) == pytest.approx(0.05 ** (1 / 50))
    assert rate_below(0, 50, 0.95) == pytest.approx(1 - 0.05 ** (1 / 50))


def test_randomised_response_has_the_epsilon_of_its_rates() -> None:
    true_rate = math.e**1.5 / (1 + math.e**1.5)  # tells the truth with this chance, so epsilon is 1.5
    assert epsilon_of_rates(true_rate, 1 - true_rate, 0.0) == pytest.approx(1.5)
    assert epsilon_of_rates(0.5, 0.5, 1e-5) == 0.0
    assert epsilon_of_rates(0.9, 0.0, 1e-5) == math.inf


def test_a_bound_from_counts_is_below_that_of_the_rates_and_approaches_it() -> None:
    few, many = (epsilon_of_counts(int(0.8 * n), n, int(0.2 * n), n, 0.0) for n in (50, 50_000))
    assert 0 < few < many < math.log(4)
    assert many == pytest.approx(math.log(4), abs=0.06)
    assert epsilon_of_counts(2, 1000, 0, 1000, 1e-5) == 0.0  # two of a thousand show nothing


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="successes"):
        rate_above(5, 4, 0.95)
