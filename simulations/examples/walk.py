"""The way of any base, step by step: train it on public users, adapt it in a federation, put it on a device.

Every step is a call that you would make for a base of your own; docs/your_model.md explains them. The numbers are small
so that all of it takes a few minutes, and too small to say anything about quality.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ownlet.device import Personalizer
from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.export.model_bundle import write_model_bundle
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, Plan, WindowConfig
from ownlet.shared.interactions import Item
from ownlet.shared.lora import attach_adapter
from ownlet.shared.probe import check_adapter, check_recommender
from ownlet.shared.recommender import Recommender, module_of
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.windows import Windows, cut_windows
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import mean_ndcg
from ownlet.simulations.pretrain import PretrainConfig, train_base
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, Setting, prepare
from ownlet.simulations.store import EventStore

__all__ = ["Outcome", "device_step", "walk"]

_MAX_LENGTH = 12
_WINDOWS = WindowConfig(window_length=6)
_DATA = DataConfig(num_users=400, num_items=150, public_fraction=0.4)
_RECIPE = PretrainConfig(max_epochs=6, patience=3, batch_size=32, learning_rate=5e-3, warmup_steps=5)
_FEDERATION = FederationConfig(
    rounds=3,
    cohort_rate=0.5,
    clip_norm=0.3,
    noise_multiplier=2.0,
    seed=0,
    plan=Plan(steps=1, learning_rate=0.3),
    windows=_WINDOWS,
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the walk saw.

    Args:
        base_ndcg: NDCG@10 of the base on held-out public users.
        adapted_ndcg: the same with the federated adapter.
        epsilon: spent by the federation, unit user.
        difference: largest difference between the adapters that the program and eager make in one DP-SGD step,
            divided by the largest change that the step makes.
        recommended: ids that the device recommends after the user's events.
    """

    base_ndcg: float
    adapted_ndcg: float
    epsilon: float
    difference: float
    recommended: tuple[str, ...]


def walk(
    make: Callable[[int, int], Recommender],
    adapter: AdapterConfig,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Take a base from nothing to a device.

    Args:
        make: returns a base for (num_items, max_length).
        adapter: which layers carry the adapter.
        folder: where bundle and device state go; by default a temporary one.
        say: shown what is done; by default printed.
    """
    show = say or Console(highlight=False, soft_wrap=True).print
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        setting = prepare(_DATA)
        model, base_ndcg = _train(make, setting, show)
        spec = attach_adapter(module_of(model), adapter)
        check_recommender(model)
        check_adapter(model, spec)
        show(f"adapter: rank {spec.rank} on {len(spec.layers)} layers, {spec.num_trainable:,} numbers are trained")
        vector, epsilon, adapted_ndcg = _federate(model, spec, setting, show)
        _export(place / "bundle", model, spec, vector, setting.data.items, show)
        windows = cut_windows(setting.devices[0], _WINDOWS)
        difference = device_step(place / "bundle", model, spec, vector, windows)
        show(f"one DP-SGD step in the program and in eager PyTorch: relative difference {difference:.1e}")
        recommended = _serve(place, setting, show)
    return Outcome(
        base_ndcg=base_ndcg,
        adapted_ndcg=adapted_ndcg,
        epsilon=epsilon,
        difference=difference,
        recommended=recommended,
    )


def device_step(bundle: Path, model: Recommender, spec: AdapterSpec, vector: Vector, windows: Windows) -> float:
    """Take one DP-SGD step twice, with the program's own engine and in eager PyTorch, on the same masks and noise.

    Args:
        bundle: what ``write_model_bundle`` wrote.
        model: the base it was written from.
        spec: the adapter's spec.
        vector: (P,) where the step starts.
        windows: all of which are in the batch.

    Returns:
        The largest difference, divided by the largest change of a number.
    """
    from ownlet.shared.noise import AesNoise

    plan = Plan(steps=1, learning_rate=0.3, expected_batch=2.0, clip_norm=0.2, noise_multiplier=0.5)
    got = ExecutorchEngine.open(bundle).train(vector, [windows], plan, [AesNoise.seeded(0)])[0]
    noise = AesNoise.seeded(0)
    noise.poisson_mask(len(windows), plan.sample_rate)  # the engine draws its coins first
    drawn = torch.from_numpy(noise.gaussian(spec.num_trainable, plan.noise_std))
    rows = [torch.from_numpy(part) for part in (windows.history, windows.target, windows.valid)]
    clip, rate = torch.tensor(plan.clip_norm), torch.tensor(plan.learning_rate / plan.expected_batch)
    want, _, _ = dp_sgd_step(model, spec, torch.from_numpy(vector), rows[0], rows[1], rows[2], drawn, clip, rate)
    return float(np.abs(got - want.numpy()).max() / np.abs(want.numpy() - vector).max())


def _train(
    make: Callable[[int, int], Recommender], setting: Setting, show: Callable[[str], None]
) -> tuple[Recommender, float]:
    torch.manual_seed(0)
    model = make(setting.data.num_items, _MAX_LENGTH)
    train_base(model, setting.public, setting.validation, _RECIPE)
    quality = mean_ndcg(model, setting.validation)
    users = f"{len(setting.public)} public users, {setting.data.num_items} items"
    show(f"{type(model).__name__} on {users}: NDCG@10 {quality:.4f} on held-out public users")
    return model, quality


def _federate(
    model: Recommender, spec: AdapterSpec, setting: Setting, show: Callable[[str], None]
) -> tuple[Vector, float, float]:
    store = EventStore.of(setting.devices)
    result = simulate(CohortEngine(model, spec), store, initial_adapter(spec, 0), _FEDERATION)
    quality = mean_ndcg(model, setting.validation, spec=spec, vector=result.vector)
    spent = f"epsilon {result.epsilon:.2f} per user at delta {_FEDERATION.dp_delta:g}"
    show(f"{len(result.rounds)} rounds over {len(setting.devices)} devices, {spent}: NDCG@10 {quality:.4f}")
    return result.vector, result.epsilon, quality


def _export(
    bundle: Path,
    model: Recommender,
    spec: AdapterSpec,
    vector: Vector,
    items: tuple[Item, ...],
    show: Callable[[str], None],
) -> None:
    begin = time.perf_counter()
    manifest = write_model_bundle(
        bundle, model, spec, vector, version=1, items=items, windows=_WINDOWS, federation=_FEDERATION
    )
    program = manifest.files["program.pte"].size_bytes
    names = ", ".join(method.name for method in manifest.methods)
    show(f"program.pte, {program:,} bytes in {time.perf_counter() - begin:.0f} s, verified against eager: {names}")


def _serve(place: Path, setting: Setting, show: Callable[[str], None]) -> tuple[str, ...]:
    """Open the bundle as an app does."""
    ids = [item.id for item in setting.data.items]
    with Personalizer.open(place / "bundle", place / "state") as personalizer:
        for second, number in enumerate(setting.devices[0]):
            personalizer.record(ids[number - 1], timestamp=1_700_000_000.0 + second)
        report = personalizer.train()
        found = tuple(recommendation.item for recommendation in personalizer.recommend(3))
    show(f"a device trained {report.steps_done} step and recommends {', '.join(found)}")
    return found
