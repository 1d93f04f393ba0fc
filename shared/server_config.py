"""Public settings of what the server does with a round, apart from those of the round itself.

Each is a frozen value of its own inside ``FederationConfig``, which checks how they go together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ownlet.shared.errors import require

__all__ = ["AdaptiveClip", "NoisePlan", "OptimizerName", "Robust", "RobustName", "ServerOptimizer"]

RobustName = Literal["none", "median", "trimmed-mean", "norm-bound"]
OptimizerName = Literal["fedavgm", "fedadam", "fedyogi"]


@dataclass(frozen=True, kw_only=True)
class ServerOptimizer:
    """What the server makes of the average delta (``server/optimizer.py``).

    Args:
        name: ``fedavgm``: momentum. ``fedadam``, ``fedyogi``: also a step size for each number. Those two divide by the
            size of recent deltas, so their steps are about as long as the server's learning rate: start with 0.01.
        beta2: how slowly the squares that ``fedadam`` and ``fedyogi`` divide by follow the deltas.
        tau: added to their square roots: a floor below which a delta counts as small.
    """

    name: OptimizerName = "fedavgm"
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        names = get_args(OptimizerName)
        require(self.name in names, f"name must be one of {', '.join(names)}", name=self.name)
        require(0 <= self.beta2 < 1, "beta2 must be in [0, 1)", beta2=self.beta2)
        require(0 < self.tau < math.inf, "tau must be positive", tau=self.tau)


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """How the clip norm follows a quantile of the norms of users' deltas (``server/adaptive_clip.py``).

    Args:
        quantile: the share of users whose delta shall be within the clip norm; 0 keeps the clip norm as it is.
        learning_rate: of the geometric update, per round.
        count_noise: standard deviation of the noise on the number of users within the clip norm, as a share of the
            expected cohort. Its privacy is paid for by a little more noise on the deltas.
    """

    quantile: float = 0.0
    learning_rate: float = 0.2
    count_noise: float = 0.05

    def __post_init__(self) -> None:
        require(0 <= self.quantile < 1, "quantile must be in [0, 1)", quantile=self.quantile)
        require(0 < self.learning_rate < math.inf, "learning_rate must be positive", learning_rate=self.learning_rate)
        require(0 < self.count_noise < math.inf, "count_noise must be positive", count_noise=self.count_noise)


@dataclass(frozen=True, kw_only=True)
class NoisePlan:
    """How the server's noise of one round goes with that of the others (``server/noise_factor.py``).

    Args:
        name: ``independent``. ``blt``: later rounds take back part of earlier noise, which leaves less of it on the sum
            of all rounds; users then take part in a fixed order, and nothing is gained by sampling.
        buffers: vectors that ``blt`` keeps; 1 is nearly as good as 2.
        min_separation: with ``blt``: users are divided at random into this many groups, which take part in turn, so
            that two rounds of one user are at least this far apart.
    """

    name: Literal["independent", "blt"] = "independent"
    buffers: int = 1
    min_separation: int = 1

    def __post_init__(self) -> None:
        require(self.name in ("independent", "blt"), "name must be independent or blt", name=self.name)
        require(1 <= self.buffers <= 4, "buffers must be in 1..4", buffers=self.buffers)
        require(self.min_separation >= 1, "min_separation must be at least 1", min_separation=self.min_separation)


@dataclass(frozen=True, kw_only=True)
class Robust:
    """What limits the harm that single nodes can do (``server/robust.py``).

    Args:
        name: ``none``: a plain sum of admitted replies. ``median``, ``trimmed-mean``: number by number over nodes; the
            server holds every reply of a round. ``norm-bound``: each reply is drawn towards where the rounds have been
            going until it is within ``radius``; nothing is held, and user-level privacy stays what it was.
        trim: of ``trimmed-mean``: the share of nodes that is cut off at each end.
        radius: of ``norm-bound``, in units of what a node's expected users may add up to, each with the clip norm.
    """

    name: RobustName = "none"
    trim: float = 0.3
    radius: float = 0.3

    def __post_init__(self) -> None:
        names = get_args(RobustName)
        require(self.name in names, f"name must be one of {', '.join(names)}", name=self.name)
        require(0 <= self.trim < 0.5, "trim must be in [0, 0.5)", trim=self.trim)
        require(0 < self.radius < math.inf, "radius must be positive", radius=self.radius)
