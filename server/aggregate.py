"""From admitted sums to the next adapter: sum, noise, fixed denominator, momentum.

The denominator is ``expected_share * num_users``, the expected size of a cohort and a public number. Dividing by the
number that answered would make the step depend on who took part, which the noise does not cover (McMahan et al. 2018,
https://arxiv.org/abs/1710.06963, the estimator with a fixed denominator). Momentum is FedAvgM's (Hsu et al. 2019,
https://arxiv.org/abs/1909.06335) and sees only noised values, so it is free post-processing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource
from ownlet.shared.schedule import schedule_factor

__all__ = ["noised_average", "server_step", "sum_of"]


def sum_of(admitted: Mapping[int, Vector], num_trainable: int) -> NDArray[np.float64]:
    """Add up the sums of all nodes in float64, in the order of node ids; zeros if there is none."""
    total = np.zeros(num_trainable, dtype=np.float64)
    for node in sorted(admitted):
        total += admitted[node]
    return total


def noised_average(
    total: NDArray[np.float64], config: FederationConfig, num_users: int, noise: NoiseSource
) -> NDArray[np.float64]:
    """Return the average delta that a round releases.

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
    require(num_users >= 1, "num_users must be at least 1", num_users=num_users)
    if config.unit == "user" and config.noise_multiplier > 0:
        total = total + noise.gaussian(len(total), config.noise_multiplier * config.clip_norm)
    return total / (config.expected_share * num_users)


def server_step(
    spec: AdapterSpec,
    vector: Vector,
    momentum: NDArray[np.float64],
    average: NDArray[np.float64],
    config: FederationConfig,
    round_number: int,
) -> tuple[Vector, NDArray[np.float64]]:
    """Take one step of FedAvgM.

    ``momentum' = beta * momentum + average`` and ``adapter' = adapter + rate * momentum'``, where ``rate`` follows the
    config's schedule. All of it is post-processing of a noised value.

    Args:
        spec: says which part of the vector moves.
        vector: (P,) the adapter; not changed.
        momentum: (num_trainable,).
        average: (num_trainable,) from ``noised_average``.
        config: server learning rate, its schedule, and momentum.
        round_number: counted from 1, void rounds included.

    Returns:
        the next adapter (P,) and momentum (num_trainable,).
    """
    momentum = config.server_momentum * momentum + average
    factor = schedule_factor(config.schedule, round_number - 1, config.rounds, warmup=config.warmup_rounds)
    rate = config.server_learning_rate * factor
    moved = vector.copy()
    moved[spec.trainable] = (vector[spec.trainable] + rate * momentum).astype(np.float32)
    return moved, momentum
