"""A deployed run again, in this process, with the same replies: the nodes answer in the rounds in which they did there.

With a seed, and simulated nodes, cohorts, training and noise are the same, and sums do not depend on the order of
replies (``server/combine.py``). So the adapter must be the same too; that is how a deployment is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from flwr.clientapp import ClientApp

from ownlet.device.client import make_client_app, place_of
from ownlet.device.sending import MemoryResiduals
from ownlet.device.train import Engine
from ownlet.server.checkpoint import RoundResult
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import DataError, require
from ownlet.simulations.grid import Answer, Call, InProcessGrid
from ownlet.simulations.run import engines_of_ranks, simulate
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["RecordedGrid", "read_rounds", "replay"]

_SILENCE_SECONDS = 0.02


class RecordedGrid(InProcessGrid):
    """Nodes in this process, of which some keep silent in some rounds."""

    def __init__(self, client_app: ClientApp, num_nodes: int, answering: Mapping[int, Collection[int]]) -> None:
        """Start the nodes.

        Args:
            client_app: the app of every node.
            num_nodes: how many.
            answering: round -> partitions that answer its training request.
        """
        super().__init__(client_app, num_nodes)
        self._answering = answering

    def _send(self, partition: int, call: Call) -> None:
        if call.message_type != "train" or partition in self._answering[int(call.group_id)]:
            super()._send(partition, call)

    def _collect(self, message_ids: list[str], wait_seconds: float | None) -> dict[str, Answer]:
        return super()._collect([at for at in message_ids if at in self._waiting], wait_seconds)


def read_rounds(path: Path) -> tuple[RoundResult, ...]:
    """Read the ``rounds.json`` of a deployed run.

    Raises:
        DataError: not one.
    """
    try:
        return tuple(RoundResult.from_plain(values) for values in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"rounds must be those of a deployed run, got {path}: {error}") from error


def replay(
    engine: Engine,
    store: EventStore,
    vector: Vector,
    config: FederationConfig,
    rounds: Collection[RoundResult],
    *,
    num_users: int,
    num_nodes: int,
    engine_of_rank: Callable[[int], Engine] | None = None,
) -> FederationResult:
    """Run the rounds again without an interruption, with the replies that entered them.

    Args:
        engine: that of the nodes.
        store: all users.
        vector: (P,) the adapter of the start.
        config: of the run; it must have a seed.
        rounds: what came of them.
        num_users: N.
        num_nodes: partitions of the population.
        engine_of_rank: makes the engines of nodes of smaller ranks; needed where the config has ``ranks``. A node that
            trained less than these say cannot be run again.

    Raises:
        ConfigError: no seed; ranks, and no engines of them; or error feedback, and a reply that is missing: whether
            its node trained, and so kept what it left out, the server's record does not say.
    """
    require(config.seed is not None, "seed must be set in a run that is run again", seed=config.seed)
    missing = [record.round for record in rounds if record.num_admitted < record.num_nodes]
    require(
        not (config.wire.error_feedback and missing),
        "every reply must have entered a run with error feedback that is run again",
        rounds=missing,
    )
    engines = engines_of_ranks(engine, config, num_nodes, engine_of_rank)
    shards = [StoreShard(one, store, config.windows) for one in engines]
    grid = RecordedGrid(
        make_client_app(
            lambda context: shards[place_of(context).partition % len(shards)],
            simulated=True,
            residuals=MemoryResiduals(),
        ),
        num_nodes,
        {record.round: record.admitted for record in rounds},
    )
    quick = replace(config, reply_timeout_seconds=_SILENCE_SECONDS)  # whoever answers here answers at once
    return simulate(engine, store, vector, quick, num_users=num_users, grid=grid)
