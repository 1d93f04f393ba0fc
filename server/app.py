"""The Flower side of the server: a thin shell over ``rounds.run_rounds``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ownlet.server.early_stop import Judge
from ownlet.server.nodes import Presence
from ownlet.server.rounds import FederationResult, OnRound, run_rounds
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig

__all__ = ["ServerSetup", "make_server_app"]


@dataclass(frozen=True, kw_only=True)
class ServerSetup:
    """What a run needs; the arguments of ``run_rounds``.

    Args:
        config: the public numbers of the run.
        spec: of the adapter.
        vector: (P,) the adapter to start from.
        num_users: N, the public size of the population.
        checkpoint: where the state is saved after each round.
        resume: go on from the checkpoint if there is one.
        on_round: called after every round.
        judge: looks at adapters on held-out public users.
        presence: which nodes a round waits for.
        on_result: called at the end.
        meanwhile: entered before the first round, left after ``on_result`` or where the run fails.
    """

    config: FederationConfig
    spec: AdapterSpec
    vector: Vector
    num_users: int
    checkpoint: Path | None = None
    resume: bool = False
    on_round: OnRound | None = None
    judge: Judge | None = None
    presence: Presence | None = None
    on_result: Callable[[FederationResult], None] | None = None
    meanwhile: AbstractContextManager[object] = field(default_factory=nullcontext)


def make_server_app(load_setup: Callable[[Context], ServerSetup]) -> ServerApp:
    """Return the Flower app of the server.

    Args:
        load_setup: builds the setup when the run starts; it may read ``context.run_config``.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        setup = load_setup(context)
        with setup.meanwhile:
            result = run_rounds(
                grid,
                setup.config,
                setup.spec,
                setup.vector,
                setup.num_users,
                checkpoint=setup.checkpoint,
                resume=setup.resume,
                on_round=setup.on_round,
                judge=setup.judge,
                presence=setup.presence,
            )
            if setup.on_result is not None:
                setup.on_result(result)

    return app
