"""A federated task that benchmarks of the server share: one population, one base, many ways to run its rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ownlet.device.client import Shard
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.lora import attach_adapter
from ownlet.shared.metrics import Metric, paired_difference, summarise
from ownlet.shared.model import SASRec
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import model_ranks
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, Setting, prepare
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["ServerTask", "gain", "load_tasks"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerTask:
    """Devices, a base with an adapter attached, and the questions that adapters are judged by.

    Args:
        setting: who is who.
        model: the base.
        spec: of the adapter.
        start: (P,) the adapter to start from.
        devices: what devices may train on.
        base_ranks: (devices,) ranks of the base alone.
        seed: of the base and of everything that follows.
    """

    setting: Setting
    model: SASRec
    spec: AdapterSpec
    start: Vector
    devices: EventStore
    base_ranks: NDArray[np.int64]
    seed: int

    def shard(self, config: FederationConfig) -> Shard:
        """Return what a node hosts that trains any of the devices."""
        return StoreShard(CohortEngine(self.model, self.spec), self.devices, config.windows)

    def run(self, config: FederationConfig, grid: Grid | None = None) -> FederationResult:
        """Run the rounds, by default on one node in this process."""
        return simulate(CohortEngine(self.model, self.spec), self.devices, self.start, config, grid=grid)

    def ranks(self, vector: Vector) -> NDArray[np.int64]:
        """Return the rank of every device's last event under one adapter, (devices,)."""
        return model_ranks(self.model, self.setting.test, spec=self.spec, vectors=vector)


def load_tasks(data: DataConfig, bases: list[Path], seeds: int, adapter: AdapterConfig) -> list[ServerTask]:
    """Return one task per base, or, without bases, one per seed, whose base is trained here.

    Args:
        data: the population; the same for all.
        bases: files as ``ownlet pretrain`` leaves them, of this data.
        seeds: how many bases to train where none is given.
        adapter: what is federated.
    """
    setting = prepare(data)
    devices, content = EventStore.of(setting.devices), content_vectors(setting.data.items)
    tasks = []
    for seed in range(len(bases) or seeds):
        if bases:
            model = load_base(bases[seed])
        else:
            recipe = PretrainConfig(seed=seed)
            model = pretrain(setting.public, setting.validation, content, ModelConfig(), recipe)
        base_ranks = model_ranks(model, setting.test)
        spec = attach_adapter(model, adapter)
        start = initial_adapter(spec, seed)
        tasks.append(
            ServerTask(
                setting=setting, model=model, spec=spec, start=start, devices=devices, base_ranks=base_ranks, seed=seed
            )
        )
    return tasks


def gain(tasks: list[ServerTask], ranks: list[NDArray[np.int64]]) -> tuple[Metric, Metric]:
    """Return NDCG@10 over all tasks, and its difference to the bases, paired by user."""
    found, bases = np.stack(ranks), np.stack([task.base_ranks for task in tasks])
    return summarise(found)["ndcg@10"], paired_difference(found, bases)["ndcg@10"]
