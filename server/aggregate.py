"""From the sum of a round to the average delta that it releases: noise, fixed denominator.

The denominator is ``expected_share * num_users``, the expected size of a cohort and a public number. Dividing by the
number that answered would make the step depend on who took part, which the noise does not cover (McMahan et al. 2018,
https://arxiv.org/abs/1710.06963, the estimator with a fixed denominator). What an average does to the adapter is the
business of ``server/optimizer.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource

__all__ = ["average_of", "noised_average"]


def noised_average(
    total: NDArray[np.float64], config: FederationConfig, num_users: int, noise: NoiseSource
) -> NDArray[np.float64]:
    """Return the average delta that a round releases where clip norm and noise stay the same in all rounds.

    Under the unit ``user`` one Gaussian of standard deviation sigma * C is added to the sum, also when the cohort is
    empty: a round without noise would tell that nobody was in it.

    Args:
        total: (num_trainable,) sum of the clipped deltas.
        config: unit, noise multiplier, clip norm and expected share of users.
        num_users: N, the public size of the population.
        noise: the server's secret source.

    Returns:
        (num_trainable,) the noised sum divided by ``expected_share * num_users``.
    """
    if config.unit == "user" and config.noise_multiplier > 0:
        total = total + noise.gaussian(len(total), config.noise_multiplier * config.clip_norm)
    return average_of(total, config, num_users)


def average_of(total: NDArray[np.float64], config: FederationConfig, num_users: int) -> NDArray[np.float64]:
    """Return a sum, noised or not, divided by ``expected_share * num_users``, or by the size of a buffer."""
    require(num_users >= 1, "num_users must be at least 1", num_users=num_users)
    return total / (config.buffer.size or config.expected_share * num_users)
