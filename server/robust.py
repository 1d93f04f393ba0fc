"""Combiners that limit the harm of single nodes.

*Coordinate median* and *trimmed mean* (Yin et al. 2018, https://arxiv.org/abs/1803.01498): number by number over the
nodes' averages. They need every reply of a round at once (4 bytes x numbers x nodes), so they go with neither
streaming nor secure aggregation. One user can move them by more than C: removing one reply of n moves a median to the
next value, however far that is. Noise made for C would not cover that, so user-level privacy refuses them.

*Norm-bound* is centred clipping (Karimireddy, He and Jaggi 2021, https://arxiv.org/abs/2012.10333, equation 4, one
step per round): each reply is projected onto a ball. Its centre is what the optimiser's momentum expects of a node,
its radius a public number, and both are the same whoever is in the round. Projection onto a ball moves two replies
never further apart, so one user, who moves one reply by at most C, still moves the sum by at most C: noise and charge
stay as they are. A node without an answer counts as one that answered zero, for the same reason.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ownlet.server.admit import LARGEST_NORM
from ownlet.server.combine import Combiner, ExactSum
from ownlet.server.optimizer import OptimizerState
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig

__all__ = ["CentredSum", "HeldReplies", "make_combiner", "project"]


def make_combiner(
    config: FederationConfig,
    state: OptimizerState,
    *,
    size: int,
    bound: float,
    num_users: int,
    num_asked: int,
    num_partitions: int,
) -> Combiner:
    """Return the combiner of a round.

    Args:
        config: which one.
        state: of the server's optimiser, whose momentum is the centre of ``norm-bound``.
        size: numbers in a reply.
        bound: on the norm of each user's delta in this round; infinity where there is none.
        num_users: N, the public size of the population.
        num_asked: users asked in this round.
        num_partitions: of the population.
    """
    if config.robust.name in ("median", "trimmed-mean"):
        return HeldReplies(size, config.robust.trim if config.robust.name == "trimmed-mean" else 0.5)
    if config.robust.name == "norm-bound":
        expected = config.expected_share * num_users / num_partitions
        rate = 1.0 if config.server_optimizer.name != "fedavgm" else 1 - config.server_momentum
        radius = config.robust.radius * config.clip_norm * expected
        return CentredSum(expected * rate * state.momentum, radius, num_partitions)
    return ExactSum(size, max(1, num_asked) * max(0.5, min(bound, LARGEST_NORM)))  # a count is half a user's at most


def project(point: NDArray[np.float64], centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Return the point of the ball that is nearest, (n,)."""
    offset = point - centre
    return centre + offset * min(1.0, radius / max(float(np.linalg.norm(offset)), np.finfo(np.float64).tiny))


class CentredSum:
    """The sum of replies, each projected onto a ball; nothing is held."""

    def __init__(self, centre: NDArray[np.float64], radius: float, num_partitions: int) -> None:
        """Start with nobody.

        Args:
            centre: (n,) of the ball.
            radius: of the ball.
            num_partitions: how many replies there are, those of nodes that do not answer included.
        """
        self._centre, self._radius, self._missing = centre, radius, num_partitions
        self._sum = ExactSum(len(centre), num_partitions * (radius + float(np.linalg.norm(centre))))

    def add(self, total: Vector, num_users: int) -> None:
        """Take the sum of one node's users, (n,)."""
        self._missing -= 1
        self._sum.add(project(total.astype(np.float64), self._centre, self._radius), num_users)

    def result(self) -> NDArray[np.float64]:
        """Return what stands for the sum, (n,)."""
        return self._sum.result() + self._missing * project(np.zeros_like(self._centre), self._centre, self._radius)


class HeldReplies:
    """Number by number, the mean of the nodes' averages without the largest and the smallest ones."""

    def __init__(self, size: int, trim: float) -> None:
        """Start with nobody.

        Args:
            size: numbers in a reply.
            trim: the share of nodes that is cut off at each end; at 0.5 what is left is the median.
        """
        self._size, self._trim = size, trim
        self._averages: list[Vector] = []
        self._num_users = 0

    def add(self, total: Vector, num_users: int) -> None:
        """Take the sum of one node's users, (n,)."""
        self._averages.append(total / np.float32(num_users))
        self._num_users += num_users

    def result(self) -> NDArray[np.float64]:
        """Return the trimmed mean times the number of users who stand behind it, (n,)."""
        if not self._averages:
            return np.zeros(self._size)
        table = np.sort(np.stack(self._averages), axis=0).astype(np.float64)  # (nodes, n)
        cut = min(int(self._trim * len(table)), (len(table) - 1) // 2)
        kept = table[cut : len(table) - cut]
        mean: NDArray[np.float64] = kept.mean(axis=0)
        return mean * self._num_users
