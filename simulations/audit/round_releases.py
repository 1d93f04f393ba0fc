"""What the rounds of a user-level run release, seen from outside: the deployed ServerApp and ClientApp, over canaries.

The adapter after each round is public, so the noised sum of every round follows from it. The audit runs the core of the
run (``audit/core.py``), at a learning rate so small that the canaries' deltas stay what they are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ownlet.device.client import Shard, make_client_app
from ownlet.server.checkpoint import RoundResult
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.simulations.audit.canaries import gentle_rate
from ownlet.simulations.audit.core import core_of
from ownlet.simulations.grid import InProcessGrid
from ownlet.simulations.progress import Step
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

__all__ = ["plain_config", "released_rounds"]

_NODES_OF_A_SECURE_SUM = 8


def plain_config(config: FederationConfig, start: Vector, num_users: int, *, seed: int | None) -> FederationConfig:
    """Return the run that is audited: the config's mechanism, without what does not change what is released.

    Args:
        config: of a run at user level with Poisson cohorts.
        start: (P,) the adapter that it starts from.
        num_users: N, with canaries.
        seed: of cohorts and noise; None draws both from the operating system, as a deployment does.

    Raises:
        ConfigError: another unit, no noise, or turns in place of Poisson cohorts.
    """
    require(config.unit == "user", "unit must be user", unit=config.unit)
    require(config.turns == 0, "turns must be 0 where cohorts are Poisson samples", turns=config.turns)
    require(config.noise_multiplier > 0, "noise_multiplier must be positive", noise_multiplier=config.noise_multiplier)
    average_std = config.noise_multiplier * config.clip_norm / (config.cohort_rate * num_users)
    rate = gentle_rate(start, average_std, config.rounds)
    return replace(core_of(config), server_learning_rate=rate, seed=seed)


def released_rounds(
    config: FederationConfig, shard: Shard, start: Vector, num_users: int, step: Step
) -> NDArray[np.float64]:
    """Run the rounds over a shard and return the noised sum of each, (rounds, num_trainable).

    Args:
        config: from ``plain_config``.
        shard: hosts users 0..N-1.
        start: (P,).
        num_users: N.
        step: told of rounds.
    """
    path = [start]

    def on_round(result: RoundResult, vector: Vector) -> None:
        path.append(vector)
        step(f"round {result.round}")

    nobody = EventStore.of([])  # the shard is on the grid; the store is only asked for its size
    simulate(
        shard.engine,
        nobody,
        start,
        config,
        num_users=num_users,
        grid=InProcessGrid(
            make_client_app(lambda context: shard, simulated=True),
            _NODES_OF_A_SECURE_SUM if config.secure.enabled else 1,
        ),
        on_round=on_round,
    )
    trained = np.stack(path)[:, shard.engine.spec.trainable].astype(np.float64)  # (rounds + 1, num_trainable)
    moved: NDArray[np.float64] = np.diff(trained, axis=0)
    return moved * (config.expected_share * num_users / config.server_learning_rate)
