"""A deployed run on the server: its folder, its settings, and the ServerApp that reads them.

    serve.json              what was asked for; a later start must ask for the same
    start.safetensors       the adapter of the start
    checkpoint.safetensors  the run after its last whole round, and beside it which round has begun
    rounds.json             a record of every round
    adapter.safetensors     the outcome, once the run has ended
    serve.log               what the ServerApp tells, which ``ownlet serve`` shows
    flower/                 SuperLink's database and log, and the app that is submitted

SuperLink starts the ServerApp in a process of its own, which finds the folder in an environment variable: nothing of it
travels to the nodes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from flwr.app import Context
from flwr.serverapp import ServerApp

from ownlet.server.app import ServerSetup, make_server_app
from ownlet.server.checkpoint import RoundResult
from ownlet.server.early_stop import Judge
from ownlet.server.nodes import Presence
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter, save_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError, StateBusyError, require
from ownlet.shared.store import write_atomic

__all__ = [
    "STATE_VARIABLE",
    "Deployment",
    "Judging",
    "LoadJudging",
    "ServeFolder",
    "hold",
    "make_deployed_app",
    "public_config",
]

STATE_VARIABLE = "OWNLET_SERVE_STATE"

_LOCK_SECONDS = 90.0  # SuperLink's old ServerApp may need as long to see that its SuperLink is gone

_log = logging.getLogger("ownlet.server.deployment")


@dataclass(frozen=True)
class ServeFolder:
    """The files of a deployed run."""

    root: Path

    @property
    def settings(self) -> Path:
        """The deployment, as JSON."""
        return self.root / "serve.json"

    @property
    def start(self) -> Path:
        """The adapter of the start."""
        return self.root / "start.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The run's state."""
        return self.root / "checkpoint.safetensors"

    @property
    def rounds(self) -> Path:
        """A record of every round."""
        return self.root / "rounds.json"

    @property
    def adapter(self) -> Path:
        """The outcome."""
        return self.root / "adapter.safetensors"

    @property
    def log(self) -> Path:
        """What the ServerApp tells."""
        return self.root / "serve.log"

    @property
    def flower(self) -> Path:
        """Flower's home and working folder."""
        return self.root / "flower"

    @property
    def app(self) -> Path:
        """The app that is submitted."""
        return self.flower / "app"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a deployed run is.

    Args:
        config: the public numbers of the rounds.
        num_users: N, the public size of the population.
        num_nodes: partitions of it.
        min_nodes: how many nodes must be connected for a round to begin.
        wait_seconds: how long to wait for them.
        judging: what held-out public users are judged with, as ``simulations/judging.py`` reads it, or None.
    """

    config: FederationConfig
    num_users: int
    num_nodes: int
    min_nodes: int = 1
    wait_seconds: float = 600.0
    judging: Mapping[str, Any] | None = field(default=None)

    def __post_init__(self) -> None:
        require(self.num_users >= 1, "num_users must be at least 1", num_users=self.num_users)
        require(self.num_nodes >= 1, "nodes must be at least 1", nodes=self.num_nodes)
        require(not self.config.ranks, "ranks must not differ in a deployed run", ranks=self.config.ranks)
        require(
            self.config.patience == 0 or self.judging is not None,
            "judging data must be given where a run has patience",
            patience=self.config.patience,
        )
        Presence(min_nodes=self.min_nodes, num_partitions=self.num_nodes)

    def save(self, path: Path) -> None:
        """Write it."""
        write_atomic(path, json.dumps(asdict(self), indent=1, default=str).encode())

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read it.

        Raises:
            FederationError: not what ``save`` wrote.
        """
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "config": FederationConfig.from_plain(values["config"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FederationError(f"settings of a deployed run must be readable, got {path}: {error}") from error


def public_config(deployment: Deployment, spec: AdapterSpec) -> dict[str, str | int]:
    """Return what nodes are told of a run beside its requests, as the run's configuration."""
    windows = deployment.config.windows
    return {
        "adapter-spec": spec.to_json(),
        "windows.window-length": windows.window_length,
        "windows.context-length": windows.context_length,
    }


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Looks at adapters on held-out public users.

    Args:
        judge: after a round; see ``early_stop.Judge``.
        publishable: whether an adapter is no worse than the base.
    """

    judge: Judge
    publishable: Callable[[Vector], bool]


LoadJudging = Callable[[Mapping[str, Any], FederationConfig], Judging]


def make_deployed_app(load_judging: LoadJudging) -> ServerApp:
    """Return the ServerApp of a deployed run.

    Args:
        load_judging: makes the judging of a deployment that asks for it.
    """

    def load_setup(context: Context) -> ServerSetup:
        folder = ServeFolder(Path(os.environ[STATE_VARIABLE]))
        _tell_into(folder.log)
        _held.append(hold(folder.root / "run.lock", _LOCK_SECONDS))  # for as long as this process lives
        return setup_of(folder, load_judging)

    return make_server_app(load_setup)


def setup_of(folder: ServeFolder, load_judging: LoadJudging) -> ServerSetup:
    """Return what the run in a folder needs.

    Args:
        folder: with settings and the adapter of the start.
        load_judging: makes the judging, where it is asked for.
    """
    deployment = Deployment.load(folder.settings)
    spec, vector, first_version = load_adapter(folder.start)
    config = deployment.config
    judging = None if deployment.judging is None else load_judging(deployment.judging, config)
    if folder.checkpoint.exists():
        _log.info("going on from %s", folder.checkpoint)

    def on_round(result: RoundResult, _: Vector) -> None:
        _log.info(_in_words(result, config))

    def on_result(result: FederationResult) -> None:
        write_rounds(folder.rounds, result.rounds)
        if result.stopped:
            _log.info("stopped: %s", result.stopped)
        if judging is not None and not judging.publishable(result.vector):
            _log.info("not published: the adapter is below the base on held-out public users")
            return
        save_adapter(folder.adapter, spec, result.vector, version=first_version + result.version)
        told = "" if judging is not None else ", not judged on public users"
        _log.info("adapter version %d in %s%s", first_version + result.version, folder.adapter, told)

    return ServerSetup(
        config=config,
        spec=spec,
        vector=vector,
        num_users=deployment.num_users,
        checkpoint=folder.checkpoint,
        resume=True,
        on_round=on_round,
        judge=None if judging is None else judging.judge,
        presence=Presence(
            min_nodes=deployment.min_nodes,
            num_partitions=deployment.num_nodes,
            wait_seconds=deployment.wait_seconds,
        ),
        on_result=on_result,
    )


def write_rounds(path: Path, rounds: tuple[RoundResult, ...]) -> None:
    """Write the records of rounds as JSON."""
    plain = [asdict(replace(record, clip_norm=min(record.clip_norm, 1e308))) for record in rounds]
    write_atomic(path, json.dumps(plain, indent=1).encode())


def hold(path: Path, wait_seconds: float) -> IO[bytes]:
    """Hold a lock until the returned file is closed, at the latest when this process ends.

    Raises:
        StateBusyError: another process holds it for longer than ``wait_seconds``.
    """
    file = path.open("ab")
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise StateBusyError(f"one server at a time must use {path.parent}, got another that runs") from None
            time.sleep(min(0.5, wait_seconds))


_held: list[IO[bytes]] = []


def _tell_into(path: Path) -> None:
    """Let everything that ownlet logs in this process go into a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("ownlet")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _in_words(result: RoundResult, config: FederationConfig) -> str:
    parts = [
        f"round {result.round} of {config.rounds}: asked {result.num_asked} users on {result.num_nodes} nodes",
        f"admitted {result.num_admitted} replies",
    ]
    if result.rejected or result.num_missing:
        parts.append(f"rejected {len(result.rejected)}, missing {result.num_missing}")
    if result.void:
        parts.append("void")
    if config.unit != "none":
        parts.append(f"epsilon {result.epsilon:.3f}")
    if result.quality is not None:
        parts.append(f"NDCG@10 on public users {result.quality:.4f}")
    return ", ".join([*parts, f"{result.seconds:.1f} s"])
