"""Federated simulation: the deployed ServerApp and ClientApp over nodes in this process."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from ownlet.device.client import make_client_app
from ownlet.device.train import Engine
from ownlet.server.app import ServerSetup, make_server_app
from ownlet.server.rounds import FederationResult, OnRound
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError
from ownlet.simulations.grid import InProcessGrid, run_apps
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["simulate"]


def simulate(
    engine: Engine,
    store: EventStore,
    vector: Vector,
    config: FederationConfig,
    *,
    held_out: int = 0,
    num_nodes: int = 1,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_round: OnRound | None = None,
) -> FederationResult:
    """Run federated rounds over in-process nodes.

    Args:
        engine: trains the users.
        store: the users.
        vector: (P,) the adapter to start from.
        config: the run.
        held_out: this many of each user's last events are not trained on.
        num_nodes: nodes that the population is spread over; never changes the result.
        checkpoint: file for the state after each round.
        resume: go on from the checkpoint if there is one.
        on_round: called after every round.

    Returns:
        The last adapter and a record of every round.

    Raises:
        FederationError: no round could be run.
    """
    shard = StoreShard(engine, store, config.windows, held_out=held_out)
    found: list[FederationResult] = []

    def load_setup(context: Context) -> ServerSetup:
        return ServerSetup(
            config=config,
            spec=engine.spec,
            vector=vector,
            num_users=store.num_users,
            checkpoint=checkpoint,
            resume=resume,
            on_round=on_round,
            on_result=found.append,
        )

    grid = InProcessGrid(make_client_app(lambda context: shard), num_nodes)
    run_apps(make_server_app(load_setup), grid)
    if not found:
        raise FederationError("the server app must end with a result, got none")
    return found[0]
