"""A weaker device in a federation of a larger rank: it trains the first rows of every A and columns of every B."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource
from ownlet.shared.ranks import low_rank_spec, places_of
from ownlet.shared.windows import Windows

__all__ = ["LowRankEngine"]


class LowRankEngine:
    """Takes and returns whole adapters, and hands an engine of a smaller rank its part; implements ``train.Engine``."""

    def __init__(self, engine: Engine, spec: AdapterSpec) -> None:
        """Wrap an engine.

        Args:
            engine: of ``ranks.low_rank_spec(spec, rank)``.
            spec: of the federation's adapter.

        Raises:
            ConfigError: the engine's adapter is not that of a smaller rank.
        """
        rank = engine.spec.rank
        require(engine.spec == low_rank_spec(spec, rank), "engine must train a smaller rank of the adapter", rank=rank)
        self._engine, self._spec, self._places = engine, spec, places_of(spec, rank)

    @property
    def spec(self) -> AdapterSpec:
        """The federation's adapter."""
        return self._spec

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user; what is beyond the rank stays as it was. See ``train.Engine``."""
        trained = np.repeat(vector[None], len(users), axis=0)
        trained[:, self._places] = self._engine.train(vector[self._places], users, plan, noises)
        return trained
