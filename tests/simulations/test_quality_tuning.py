"""A grid grows at the end where its best stands, and not for ever."""

import math

import pytest

from ownlet.simulations.quality_tuning import best_on_grid


@pytest.mark.parametrize(("peak", "best"), [(1.0, 1.0), (0.12, 0.1), (20.0, 27.0), (1e9, 243.0)])
def test_the_best_of_a_growing_grid_is_the_value_next_to_the_peak(peak: float, best: float) -> None:
    grid = (0.3, 1.0, 3.0)
    found = best_on_grid(grid, lambda value: -abs(math.log(value / peak)))
    assert found == pytest.approx(best, rel=0.2)


def test_a_grid_of_one_value_is_that_value() -> None:
    assert best_on_grid((0.3,), lambda value: value) == 0.3
