"""A deployed run on the server: its folder and its settings.

    serve.json              what was asked for; a later start must ask for the same
    start.safetensors       the adapter of the start
    checkpoint.safetensors  the run after its last whole round, and beside it which round has begun
    rounds.json             a record of every round
    adapter.safetensors     the outcome, once the run has ended
    publication.json        what the registry needs to know of it, where public users judged it
    serve.log               what the ServerApp tells, which ``ownlet serve`` shows
    flower/                 SuperLink's database and log, and the app that is submitted

SuperLink starts the ServerApp (``server/deployed_app.py``) in a process of its own, which finds the folder in an
environment variable: nothing of it travels to the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from ownlet.server.nodes import Presence
from ownlet.server.published import ADAPTER_FILE
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError, StateBusyError, require
from ownlet.shared.filelock import take_lock
from ownlet.shared.store import write_atomic

__all__ = [
    "LOCK_SECONDS",
    "STATE_VARIABLE",
    "Deployment",
    "ServeFolder",
    "hold",
    "public_config",
]

STATE_VARIABLE = "OWNLET_SERVE_STATE"

LOCK_SECONDS = 90.0
"""SuperLink's old ServerApp may need as long to see that its SuperLink is gone."""


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
        return self.root / ADAPTER_FILE

    @property
    def run_lock(self) -> Path:
        """Held by the process that runs the rounds."""
        return self.root / "run.lock"

    @property
    def log(self) -> Path:
        """What the ServerApp tells."""
        return self.root / "serve.log"

    @property
    def finished(self) -> Path:
        """Holds the hash of the settings whose run has ended, so that a supervisor's next start is none."""
        return self.root / "finished"

    @property
    def is_finished(self) -> bool:
        """Whether the run of the present settings has ended; with more rounds, say, it goes on."""
        return self.finished.exists() and self.finished.read_text() == self._settings_hash()

    def mark_finished(self) -> None:
        """Say that the run of the present settings has ended."""
        write_atomic(self.finished, self._settings_hash().encode())

    def _settings_hash(self) -> str:
        return sha256(self.settings.read_bytes()).hexdigest()

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
        status_port: of this machine, for status page and metrics; 0 takes a free one, None serves neither.
        registry: a registry's folder, to show on that page.
    """

    config: FederationConfig
    num_users: int
    num_nodes: int
    min_nodes: int = 1
    wait_seconds: float = 600.0
    judging: Mapping[str, Any] | None = field(default=None)
    status_port: int | None = None
    registry: Path | None = None

    def __post_init__(self) -> None:
        require(self.num_users >= 1, "num_users must be at least 1", num_users=self.num_users)
        ranks = self.config.ranks
        require(
            not ranks or self.num_nodes % len(ranks) == 0,
            f"nodes must be a multiple of the {len(ranks)} ranks",
            nodes=self.num_nodes,
        )
        require(
            self.config.patience == 0 or self.judging is not None,
            "judging data must be given where a run has patience",
            patience=self.config.patience,
        )
        secure = self.config.secure.enabled
        least = 3 if secure else 1  # of two, each knows the other's part from the sum
        hidden = " under secure aggregation" if secure else ""
        require(self.num_nodes >= least, f"nodes must be at least {least}{hidden}", nodes=self.num_nodes)
        require(self.min_nodes >= least, f"min_nodes must be at least {least}{hidden}", min_nodes=self.min_nodes)
        require(
            self.status_port is not None or self.registry is None,
            "registry must go with a status port",
            registry=self.registry,
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
            registry = None if values["registry"] is None else Path(values["registry"])
            return cls(**{**values, "config": FederationConfig.from_plain(values["config"]), "registry": registry})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FederationError(f"settings of a deployed run must be readable, got {path}: {error}") from error


def public_config(deployment: Deployment, spec: AdapterSpec) -> dict[str, str | int]:
    """Return what nodes are told of a run beside its requests, as the run's configuration."""
    windows = deployment.config.windows
    return {
        "adapter-spec": spec.to_json(),
        "ranks": ",".join(str(rank) for rank in deployment.config.ranks),
        "windows.window-length": windows.window_length,
        "windows.context-length": windows.context_length,
    }


def hold(path: Path, wait_seconds: float) -> IO[bytes]:
    """Hold a lock until the returned file is closed, at the latest when this process ends.

    Raises:
        StateBusyError: another process holds it for longer than ``wait_seconds``.
    """
    try:
        return take_lock(path, wait_seconds)
    except TimeoutError:
        raise StateBusyError(f"one server at a time must use {path.parent}, got another that runs") from None
