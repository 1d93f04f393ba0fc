"""The step of local privacy falls with its noise."""

import math

import pytest

from ownlet.shared.window_mode import window_federation, window_step


def test_the_step_falls_with_the_noise_so_that_the_noise_of_a_step_keeps_its_length():
    noisy = [1.0, 2.0, 4.0]
    assert [window_step(sigma) * sigma for sigma in noisy] == pytest.approx([window_step(1.0)] * 3)
    assert window_step(0.01) == window_step(0.0) < math.inf


def test_the_learning_rate_moves_a_clipped_gradient_by_the_step():
    config = window_federation(2.0, clip_norm=0.25)
    assert config.plan.learning_rate * config.plan.clip_norm == pytest.approx(window_step(2.0))
    assert window_federation(2.0, step=0.5).plan.learning_rate == pytest.approx(5.0)


def test_a_step_of_a_few_windows_fits_into_the_bound_besides_its_noise():
    config = window_federation(1.0)
    step = config.plan.learning_rate * config.plan.clip_norm
    assert config.clip_norm >= 4 * step
