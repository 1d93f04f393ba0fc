"""The cells of ``window_level``: one fleet at one epsilon with one step and seed. Each leaves a file of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.server.compression import CompressionConfig
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig
from ownlet.shared.lora import attach_adapter
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.window_mode import window_federation, window_step
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import Cases, model_ranks
from ownlet.simulations.line_search import best_length
from ownlet.simulations.pretrain import PretrainConfig, load_base
from ownlet.simulations.pretrain_once import pretrain_once
from ownlet.simulations.progress import Progress
from ownlet.simulations.quality import epsilon_label
from ownlet.simulations.quality_parts import load_arrays, save_arrays
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, Setting, prepare
from ownlet.simulations.start import start_adapter
from ownlet.simulations.store import EventStore

__all__ = ["Cell", "WindowTask", "make_window_base", "run_cell", "setting_of"]

_TESTED = 3000
_JUDGED = 4000


@dataclass(frozen=True, kw_only=True)
class WindowTask:
    """What all cells share; its parts lie in a folder of their own."""

    data: DataConfig
    adapter: AdapterConfig

    def folder(self, out: Path) -> Path:
        """Return where the parts lie: a folder per data set, adapter and number of users."""
        users = "" if self.data.path is not None else f"-{self.data.num_users}"
        targets = "" if self.adapter.target_modules is None else "-" + "-".join(self.adapter.target_modules)
        name = f"{setting_of(self.data).data.name}{users}-{self.adapter.method}-rank{self.adapter.rank}{targets}"
        return out / "window_level" / name.replace(" ", "_")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run.

    Args:
        epsilon: window level; infinity is a run that clips and adds nothing.
        fleet: devices, each asked once.
        step: how far a gradient of length C moves the adapter; 0 is what the noise suggests.
        seed: of base, cohorts and noise.
    """

    epsilon: float
    fleet: int
    step: float
    seed: int

    def path(self, folder: Path) -> Path:
        """Return the file of its ranks."""
        step = f"-step{self.step:g}" if self.step else ""
        return folder / f"eps{epsilon_label(self.epsilon)}-{self.fleet}{step}-{self.seed}.npz"


def make_window_base(task: WindowTask, seed: int, out: Path, progress: Progress) -> NDArray[np.int64]:
    """Return the ranks (tested,) of a seed's base, which is trained where it is not on file."""
    path, setting = _base_path(task, seed, out), setting_of(task.data)
    model = pretrain_once(path, f"base, seed {seed}", setting, ModelConfig(), PretrainConfig(seed=seed), progress)
    return model_ranks(model, _test(setting))


def run_cell(task: WindowTask, cell: Cell, out: Path, progress: Progress) -> tuple[NDArray[np.int64], float]:
    """Return ranks (tested,) of what public users let through of a run, and the length of the step they chose."""
    path = cell.path(task.folder(out))
    if not path.exists():
        ranks, length = _run(task, cell, out, progress)
        save_arrays(path, ranks=ranks, length=np.array(length))
    found = load_arrays(path)
    return found["ranks"], float(found["length"])


def _run(task: WindowTask, cell: Cell, out: Path, progress: Progress) -> tuple[NDArray[np.int64], float]:
    """Federate over the first devices."""
    setting = setting_of(task.data)
    model = load_base(_base_path(task, cell.seed, out))
    spec = attach_adapter(model, task.adapter)
    config = _federation(cell)
    public, windows = setting.public, config.windows
    start = start_adapter(task.adapter, CompressionConfig(), model, spec, public, windows, cell.seed, progress)
    devices = EventStore.of(setting.devices[: cell.fleet])
    name = f"{cell.fleet:,} devices, ε {epsilon_label(cell.epsilon)}, seed {cell.seed}"
    with progress.stage(name, config.rounds) as step:
        result = simulate(CohortEngine(model, spec), devices, start, config, on_round=lambda result, vector: step(""))
    vector, length = best_length(model, spec, start, result.vector, setting.validation)
    return model_ranks(model, _test(setting), spec=spec, vectors=vector), length


def _federation(cell: Cell) -> FederationConfig:
    if math.isinf(cell.epsilon):  # the same without noise: what the clip alone leaves
        noised = window_federation(1.0, seed=cell.seed, step=cell.step or window_step(0.0))
        return replace(noised, unit="none", plan=replace(noised.plan, noise_multiplier=0.0))
    sigma = noise_multiplier_for(target_epsilon=cell.epsilon, dp_delta=1e-5, cohort_rate=1.0, rounds=1)
    return window_federation(sigma, seed=cell.seed, step=cell.step or None, target_epsilon=cell.epsilon)


@lru_cache(maxsize=1)
def setting_of(data: DataConfig) -> Setting:
    """Return the data, loaded once per process; public users judge on some thousand events, evenly spread."""
    setting = prepare(data)
    cases = setting.validation
    kept = np.linspace(0, len(cases) - 1, min(_JUDGED, len(cases))).astype(np.int64)
    return replace(setting, validation=cases.at(kept))


def _test(setting: Setting) -> Cases:
    return Cases(histories=setting.test.histories[:_TESTED], targets=setting.test.targets[:_TESTED])


def _base_path(task: WindowTask, seed: int, out: Path) -> Path:
    return task.folder(out) / f"base-{seed}.pt"
