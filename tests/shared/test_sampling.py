"""Expectation: exact arithmetic with fractions."""

import math
from fractions import Fraction

import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.sampling import sample_rate_for, steps_for_epochs


@pytest.mark.parametrize("num_windows", [93, 99, 105])
def test_the_last_step_of_an_epoch_is_not_lost_to_floating_point(num_windows: int) -> None:
    assert steps_for_epochs(1, 1 / num_windows) == num_windows
    assert steps_for_epochs(7, sample_rate_for(num_windows, 1)) == 7 * num_windows


def test_int_would_lose_the_last_step() -> None:
    assert int(1 / (1 / 93)) == 92


def test_steps_are_exact_for_all_sizes() -> None:
    for num_windows in range(1, 5001):
        for batch, epochs in ((1, 1), (1, 3), (4, 1), (7, 5), (32, 2)):
            if batch <= num_windows:
                exact = math.ceil(Fraction(epochs * num_windows, batch))
                assert steps_for_epochs(epochs, sample_rate_for(num_windows, batch)) == exact, (num_windows, batch)


def test_a_started_step_counts() -> None:
    assert steps_for_epochs(1, 0.3) == 4
    assert steps_for_epochs(0.1, 0.1) == 1
    assert steps_for_epochs(0.3, 0.1) == 3  # 0.3 / 0.1 is 2.9999999999999996
    assert steps_for_epochs(1e-6, 1.0) == 1


@pytest.mark.parametrize(
    ("epochs", "rate", "name"), [(0, 0.5, "epochs"), (math.inf, 0.5, "epochs"), (1, 0, "sample_rate")]
)
def test_numbers_out_of_range_are_refused(epochs: float, rate: float, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        steps_for_epochs(epochs, rate)


@pytest.mark.parametrize(("windows", "batch"), [(0, 1), (10, 0), (10, 11)])
def test_a_batch_must_fit_into_the_windows(windows: float, batch: float) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        sample_rate_for(windows, batch)
