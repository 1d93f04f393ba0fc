"""Federated simulation: the deployed ServerApp and ClientApp, by default over nodes in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from ownlet.device.client import OnUsers, make_client_app, place_of
from ownlet.device.low_rank import LowRankEngine
from ownlet.device.sending import MemoryResiduals
from ownlet.device.train import Engine
from ownlet.server.app import ServerSetup, make_server_app
from ownlet.server.early_stop import Judge
from ownlet.server.rounds import FederationResult, OnRound
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError, require
from ownlet.simulations.grid import InProcessGrid, run_apps
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["engines_of_ranks", "simulate"]


def simulate(
    engine: Engine,
    store: EventStore,
    vector: Vector,
    config: FederationConfig,
    *,
    num_users: int | None = None,
    held_out: int = 0,
    num_nodes: int = 1,
    grid: Grid | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_round: OnRound | None = None,
    on_users: OnUsers | None = None,
    judge: Judge | None = None,
    engine_of_rank: Callable[[int], Engine] | None = None,
) -> FederationResult:
    """Run federated rounds.

    Args:
        engine: trains the users.
        store: the users.
        vector: (P,) the adapter to start from.
        config: the run.
        num_users: devices are the users 0..num_users-1 of the store; by default all.
        held_out: this many of each user's last events are not trained on.
        num_nodes: nodes in this process that the devices are spread over; never changes the result.
        grid: nodes elsewhere, in place of those; they must host the same store with an equal engine.
        checkpoint: file for the state after each round.
        resume: go on from the checkpoint if there is one.
        on_round: called after every round.
        on_users: called as users are trained on nodes in this process.
        judge: looks at adapters on held-out public users; needed where the config has ``patience``.
        engine_of_rank: makes the engines of devices of smaller ranks; needed where the config has ``ranks``.

    Returns:
        The last adapter, or the best one where the config has ``patience``, and a record of every round.

    Raises:
        FederationError: no round could be run.
    """
    if grid is None:
        engines = engines_of_ranks(engine, config, num_nodes, engine_of_rank)
        shards = [StoreShard(one, store, config.windows, held_out=held_out) for one in engines]
        app = make_client_app(
            lambda context: shards[place_of(context).partition % len(shards)],
            simulated=True,
            on_users=on_users,
            residuals=MemoryResiduals(),
        )
        grid = InProcessGrid(app, num_nodes)
    found: list[FederationResult] = []

    def load_setup(context: Context) -> ServerSetup:
        return ServerSetup(
            config=config,
            spec=engine.spec,
            vector=vector,
            num_users=store.num_users if num_users is None else num_users,
            checkpoint=checkpoint,
            resume=resume,
            on_round=on_round,
            judge=judge,
            on_result=found.append,
        )

    run_apps(make_server_app(load_setup), grid)
    if not found:
        raise FederationError("the server app must end with a result, got none")
    return found[0]


def engines_of_ranks(
    engine: Engine, config: FederationConfig, num_nodes: int, engine_of_rank: Callable[[int], Engine] | None
) -> list[Engine]:
    """Return the engines of nodes: that of partition p is the one at p modulo their number.

    Args:
        engine: of the adapter's rank.
        config: with the ranks of devices, where they differ.
        num_nodes: partitions.
        engine_of_rank: makes an engine of a smaller rank.

    Raises:
        ConfigError: ranks differ, and there is nothing to make engines with or the nodes are no multiple of them.
    """
    ranks = config.ranks
    if not ranks:
        return [engine]
    require(engine_of_rank is not None, "engine_of_rank must be given where devices differ in rank", ranks=ranks)
    assert engine_of_rank is not None
    divides = num_nodes % len(ranks) == 0
    require(divides, f"num_nodes must be a multiple of the {len(ranks)} ranks", num_nodes=num_nodes)
    full = engine.spec.rank
    smaller = {rank: LowRankEngine(engine_of_rank(rank), engine.spec) for rank in set(ranks) - {full}}
    return [smaller.get(rank, engine) for rank in ranks]
