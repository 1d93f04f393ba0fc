"""The parts of the quality benchmark, each of which trains something and leaves one file of ranks.

A part that is there is not done again, so a benchmark that was interrupted goes on, and parts run side by side in
processes of their own. Ranks are kept, not averages: every table, interval and paired comparison comes from the same
files.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import MethodName
from ownlet.shared.store import write_atomic
from ownlet.simulations.centralised import train_centralised
from ownlet.simulations.evaluate import Cases, mean_ndcg, model_ranks
from ownlet.simulations.pretrain_once import pretrain_once
from ownlet.simulations.progress import Progress
from ownlet.simulations.quality_config import (
    QualityConfig,
    QualityData,
    setting_of,
    tested_devices,
)
from ownlet.simulations.quality_tuning import local_plan, run_rounds, started, train_each, tune
from ownlet.simulations.store import EventStore

__all__ = [
    "Federated",
    "Unfederated",
    "base_path",
    "base_ranks",
    "load_arrays",
    "make_base",
    "run_federated_part",
    "run_unfederated_part",
    "save_arrays",
    "test_cases",
]

Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Unfederated:
    """What a method gives without rounds, as ranks (tested,)."""

    personal: Ranks
    local_only: Ranks
    centralised: Ranks


@dataclass(frozen=True, kw_only=True, eq=False)
class Federated:
    """What a run gives.

    Args:
        federated: (tested,) ranks with its adapter.
        personal: (tested,) ranks with personal adapters on top of that.
        public_ndcg: of the adapter on held-out public users.
        base_public_ndcg: of the base on them: an adapter below it is not published.
        epsilon: spent.
        delta_bytes: what a device sends in a round.
    """

    federated: Ranks
    personal: Ranks
    public_ndcg: float
    base_public_ndcg: float
    epsilon: float
    delta_bytes: int


def make_base(config: QualityConfig, data: QualityData, seed: int, folder: Path, progress: Progress) -> None:
    """Train a base, and rank the devices' last events by it."""
    path, recipe = base_path(folder, data, seed), replace(data.recipe, seed=seed)
    model = pretrain_once(path, f"{data.name}, seed {seed}: base", setting_of(data), config.model, recipe, progress)
    ranks = path.with_suffix(".npz")
    if not ranks.exists():
        save_arrays(ranks, base=model_ranks(model, test_cases(data)))


def base_ranks(data: QualityData, seed: int, folder: Path) -> Ranks:
    """Return the base's ranks, (tested,)."""
    return load_arrays(base_path(folder, data, seed).with_suffix(".npz"))["base"]


def run_federated_part(
    config: QualityConfig,
    data: QualityData,
    method: MethodName,
    epsilon: float,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Federated:
    """Run the rounds of one method at one epsilon, and personalise every tested device on top."""
    path = folder / data.name / f"{method}-eps{epsilon:g}-{seed}.npz"
    if not path.exists():
        choice = tune(config, data, method, folder, progress).choice(epsilon)
        setting, test, devices = setting_of(data), test_cases(data), tested_devices(data)
        ready = started(config, data, base_path(folder, data, seed), setting, method, seed, progress)
        model, spec, judging = ready.model, ready.spec, setting.judging
        name = f"{data.name}, seed {seed}, {method}, " + ("no privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}")
        result = run_rounds(name, ready, setting, config.rounds(data, method, epsilon, choice, seed), progress)
        own = train_each(ready, setting, devices, config.personal, data.windows, seed, result.vector)
        save_arrays(
            path,
            federated=model_ranks(model, test, spec=spec, vectors=result.vector),
            personal=model_ranks(model, test, spec=spec, vectors=own),
            public=np.array([mean_ndcg(model, judging, spec=spec, vector=result.vector)]),
            base_public=np.array([mean_ndcg(model, judging)]),
            epsilon=np.array([result.epsilon]),
            delta_bytes=np.array([4 * spec.num_trainable]),
        )
    found = load_arrays(path)
    return Federated(
        federated=found["federated"],
        personal=found["personal"],
        public_ndcg=float(found["public"][0]),
        base_public_ndcg=float(found["base_public"][0]),
        epsilon=float(found["epsilon"][0]),
        delta_bytes=int(found["delta_bytes"][0]),
    )


def run_unfederated_part(
    config: QualityConfig, data: QualityData, method: MethodName, seed: int, folder: Path, progress: Progress
) -> Unfederated:
    """Train what needs no rounds: personal adapters, local-only adapters and the oracle."""
    path = folder / data.name / f"{method}-alone-{seed}.npz"
    if not path.exists():
        rate = tune(config, data, method, folder, progress).local_rate
        setting, test, devices = setting_of(data), test_cases(data), tested_devices(data)
        ready = started(config, data, base_path(folder, data, seed), setting, method, seed, progress)
        model, spec, start = ready.model, ready.spec, ready.start
        windows = EventStore.of(setting.devices).all_windows(data.windows).windows
        with progress.stage(f"{data.name}, seed {seed}, {method}: oracle", config.centralised.max_epochs) as step:
            oracle = train_centralised(
                model,
                spec,
                start,
                windows,
                setting.judging,
                config.centralised,
                seed,
                on_epoch=lambda epoch, quality: step(f"NDCG@10 on public users {quality:.4f}"),
            )
        ranks = {
            "personal": train_each(ready, setting, devices, config.personal, data.windows, seed),
            "local_only": train_each(ready, setting, devices, local_plan(config, data, rate), data.windows, seed),
            "centralised": oracle,
        }
        save_arrays(path, **{name: model_ranks(model, test, spec=spec, vectors=own) for name, own in ranks.items()})
    return Unfederated(**load_arrays(path))


def test_cases(data: QualityData) -> Cases:
    """Return the questions that results are measured by."""
    return setting_of(data).test.at(tested_devices(data))


def base_path(folder: Path, data: QualityData, seed: int) -> Path:
    """Return where a seed's base lies."""
    return folder / data.name / f"base-{seed}.pt"


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write a part's file, atomically."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read what ``save_arrays`` wrote."""
    with np.load(path) as found:
        return {name: found[name] for name in found.files}
