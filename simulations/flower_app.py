"""The two apps that ``flwr run .`` starts, over the built-in population or a file of interactions.

``pyproject.toml`` names ``simulations.flower_app:server_app`` and ``:client_app`` and the run's settings. Flower
copies only this file and its package into the app; everything else comes from the installed ``ownlet``. A node of
Flower's simulation is a process of its own, so each prepares the data itself and reads the base from the run's
folder, where the server has put it before it asks anything. Telemetry is off only if the shell that starts ``flwr``
says so: ``ownlet.shared.quiet`` names the variables.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flwr.app import Context

from ownlet.device.client import Shard, make_client_app
from ownlet.server.app import ServerSetup, make_server_app
from ownlet.server.checkpoint import RoundResult
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter, save_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.shared.run_config import federation_config
from ownlet.shared.store import write_atomic
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import is_publishable, mean_ndcg
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain, save_base
from ownlet.simulations.setting import DataConfig, Setting, prepare
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["client_app", "server_app"]

_OWN_KEYS = frozenset({"folder", "data", "num-users", "num-items", "data-seed", "dim", "base-epochs", "resume"})

_log = logging.getLogger("flwr")  # the logger that ``flwr run --stream`` shows


@dataclass(frozen=True, kw_only=True)
class AppData:
    """The settings that are not the federation's: which population, which base, where the run is kept."""

    folder: str = ""
    data: str = ""
    num_users: int = 400
    num_items: int = 200
    data_seed: int = 0
    dim: int = 32
    base_epochs: int = 5

    def __post_init__(self) -> None:
        for name in ("num_users", "num_items", "dim", "base_epochs"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})

    @classmethod
    def of(cls, context: Context) -> AppData:
        """Read the settings from a run's configuration."""
        named = {key.replace("-", "_"): context.run_config[key] for key in _OWN_KEYS & set(context.run_config)}
        named.pop("resume", None)
        return cls(**named)  # type: ignore[arg-type]

    @property
    def path(self) -> Path:
        """The run's folder; by default one in the user's cache."""
        return Path(self.folder or "~/.cache/ownlet/flwr").expanduser()

    @property
    def source(self) -> DataConfig:
        """Return the settings of the data."""
        path = Path(self.data).expanduser() if self.data else None
        return DataConfig(path=path, num_users=self.num_users, num_items=self.num_items, seed=self.data_seed)

    @property
    def base_path(self) -> Path:
        """Where the base for these settings lies."""
        settings = replace(self, folder="")  # the same base serves every run over it
        return self.path / f"base-{hashlib.sha256(repr(settings).encode()).hexdigest()[:12]}.pt"


def _load_setup(context: Context) -> ServerSetup:
    data, config = AppData.of(context), _federation(context)
    if not data.base_path.exists():
        save_base(data.base_path, _train_base(data), _setting(data).data.items)
    model, spec = _base(data, config)

    def report(result: RoundResult, vector: Vector) -> None:
        _log.info(
            "round %d: asked %d users on %d nodes, admitted %d replies, epsilon %.3f, update norm %.4f",
            *(result.round, result.num_asked, result.num_nodes, result.num_admitted, result.epsilon),
            result.update_norm,
        )

    def judge(number: int, vector: Vector) -> float | None:
        return mean_ndcg(model, _setting(data).judging, spec=spec, vector=vector) if config.patience else None

    def finish(result: FederationResult) -> None:
        if result.stopped:
            _log.info("stopped: %s", result.stopped)
        path = data.path / "adapter.safetensors"
        rounds = [asdict(record) for record in result.rounds]
        write_atomic(data.path / "rounds.json", json.dumps(rounds, indent=1).encode())
        if is_publishable(model, spec, result.vector, _setting(data).judging):
            save_adapter(path, spec, result.vector, version=result.version)
            _log.info("adapter version %d in %s", result.version, path)
        else:
            path.unlink(missing_ok=True)  # that of an earlier run
            _log.info("not published: the adapter is below the base on held-out public users")

    return ServerSetup(
        config=config,
        spec=spec,
        vector=initial_adapter(spec, seed=data.data_seed),
        num_users=len(_setting(data).devices),
        checkpoint=data.path / "checkpoint.safetensors",
        resume=bool(context.run_config.get("resume", False)),
        on_round=report,
        judge=judge,
        on_result=finish,
    )


def _load_shard(context: Context) -> Shard:
    return _shard(AppData.of(context), _federation(context))


@functools.lru_cache(maxsize=1)
def _shard(data: AppData, config: FederationConfig) -> StoreShard:
    model, spec = _base(data, config)
    return StoreShard(CohortEngine(model, spec), EventStore.of(_setting(data).devices), config.windows)


def _federation(context: Context) -> FederationConfig:
    return federation_config(context.run_config, other_keys=_OWN_KEYS)


@functools.lru_cache(maxsize=1)
def _setting(data: AppData) -> Setting:
    return prepare(data.source)


def _train_base(data: AppData) -> SASRec:
    setting = _setting(data)
    recipe = PretrainConfig(max_epochs=data.base_epochs, seed=data.data_seed)
    content = content_vectors(setting.data.items)
    return pretrain(setting.public, setting.validation, content, ModelConfig(dim=data.dim), recipe)


def _base(data: AppData, config: FederationConfig) -> tuple[SASRec, AdapterSpec]:
    model = load_base(data.base_path)
    return model, attach_adapter(model, AdapterConfig(method="rolora") if config.alternate else AdapterConfig())


server_app = make_server_app(_load_setup)
client_app = make_client_app(_load_shard, simulated=True)
