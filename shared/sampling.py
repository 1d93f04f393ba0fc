"""How many steps so many epochs are where batches are Poisson samples; no step is lost to floating point.

With a sampling rate of 1/n an epoch has n steps, but ``int(1 / (1 / 93))`` is 92 (also for 99, 105 and others): a step
that is run and not charged, or charged and not run, makes the account wrong. What decides is public: the expected
number of windows and the expected batch of a plan, never a user's own count.
"""

from __future__ import annotations

import math

from ownlet.shared.errors import require

__all__ = ["sample_rate_for", "steps_for_epochs"]

_ROUNDING = 1e-9  # relative; quotients of two doubles are off by at most some 1e-16


def sample_rate_for(expected_windows: float, expected_batch: float) -> float:
    """Return q, the chance of each window to be in a step's batch.

    Args:
        expected_windows: the public number of windows that a device is taken to have.
        expected_batch: how many of them a batch is to have on average.

    Raises:
        ConfigError: a number is not positive, or the batch is larger than all windows.
    """
    require(0 < expected_windows < math.inf, "expected_windows must be positive", expected_windows=expected_windows)
    require(
        0 < expected_batch <= expected_windows,
        "expected_batch must be positive, and at most expected_windows",
        expected_batch=expected_batch,
        expected_windows=expected_windows,
    )
    return expected_batch / expected_windows


def steps_for_epochs(epochs: float, sample_rate: float) -> int:
    """Return the steps in which each window is expected in ``epochs`` batches; a started step counts as one.

    Args:
        epochs: passes over the windows; may be a fraction.
        sample_rate: q, the chance of each window to be in a step's batch.

    Raises:
        ConfigError: a number is out of its range.
    """
    require(0 < epochs < math.inf, "epochs must be positive", epochs=epochs)
    require(0 < sample_rate <= 1, "sample_rate must be in (0, 1]", sample_rate=sample_rate)
    steps = epochs / sample_rate
    nearest = round(steps)
    return max(1, nearest if abs(steps - nearest) <= _ROUNDING * steps else math.ceil(steps))
