"""The engine of a finished run, rebuilt from its settings and its base: what trained is what is audited."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ownlet.device.train import Engine
from ownlet.shared.adapter import Vector, initial_adapter
from ownlet.shared.config import AdapterConfig
from ownlet.shared.errors import AdapterError, ConfigError, DataError
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.simulations.audit.subject import RunSubject
from ownlet.simulations.base_file import load_base
from ownlet.simulations.federated_run import FederatedRunConfig, make_engine
from ownlet.simulations.setting import DataConfig

__all__ = ["Trainer", "find_base", "trainer_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trainer:
    """What trains.

    Args:
        engine: of the run.
        vector: (P,) an adapter of its spec.
        model: the base, prepared with ``attach``.
        config: the settings that it was rebuilt from, with the base as it was found.
    """

    engine: Engine
    vector: Vector
    model: SASRec
    config: FederatedRunConfig

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        return self.model.num_items


def trainer_of(subject: RunSubject, base: Path | None = None) -> Trainer:
    """Rebuild the engine of a run, on this machine's CPU.

    Args:
        subject: the run.
        base: its base; by default the one that its settings name.

    Raises:
        DataError: the base cannot be found or read.
        AdapterError: the base is not the one that the run's adapter belongs to.
        ConfigError: the settings are not those of a run.
    """
    raw = json.loads((subject.path / "config.json").read_bytes())["config"]
    path = find_base(subject.path, Path(raw["base"])) if base is None else base
    config = _config(raw, path, subject)
    model = load_base(path)
    spec = attach_adapter(model, config.adapter)
    if subject.adapter is not None and subject.adapter[0] != spec:
        theirs = subject.adapter[0].base_hash[:12]
        raise AdapterError(f"base must be {theirs}, the one of the run's adapter, got {spec.base_hash[:12]} in {path}")
    vector = initial_adapter(spec, 0) if subject.adapter is None else subject.adapter[1]
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:  # an engine may write its program there
        engine = make_engine(config, model, spec, vector, Path(folder))
    return Trainer(engine=engine, vector=vector, model=model, config=config)


def find_base(run: Path, named: Path) -> Path:
    """Return where a run's base lies: where its settings say, or beside the run where both were moved together.

    Raises:
        DataError: at neither place.
    """
    beside = run.resolve().parent / named.parent.name / named.name
    for path in (named, beside):
        if path.is_file():
            return path
    raise DataError(f"base of the run must be there to measure anything, got none at {named} (name it with --base)")


def _config(raw: dict[str, Any], base: Path, subject: RunSubject) -> FederatedRunConfig:
    try:
        adapter = dict(raw["adapter"])
        targets = adapter.get("target_modules")
        adapter["target_modules"] = None if targets is None else tuple(targets)
        data = DataConfig.from_plain(raw["data"])
        config = FederatedRunConfig(base=base, adapter=AdapterConfig(**adapter), federation=subject.terms, data=data)
        config = replace(config, store=None if raw["store"] is None else Path(raw["store"]))
        return replace(config, engine=raw["engine"], precision=raw["precision"])
    except (KeyError, TypeError) as error:
        raise ConfigError(f"config must be that of a federated run, got {error} in {subject.path}") from error
