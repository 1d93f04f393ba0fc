"""Hyperparameters of the quality benchmark, found in a rehearsal on public users that costs no privacy.

Half of the public users train a base of their own, the other half plays the devices, and held-out public users judge.
No device's data is touched. Noise is rehearsed at the strength that it will have in the average of the real fleet:
``sigma * rehearsing / devices``, since the rehearsal's cohorts are smaller in that proportion.

The budget per method and data set is one run without privacy per local learning rate, then one run per epsilon and
clip norm with the best rate, and one training of the rehearsing devices per learning rate of local-only training. A
grid whose best stands at its end grows there, by four values at the most.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.train import Engine
from ownlet.server.checkpoint import RoundResult
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig, MethodName, Plan, WindowConfig
from ownlet.shared.lora import attach_adapter
from ownlet.shared.metrics import ndcg
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.store import write_atomic
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import mean_ndcg, model_ranks
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.pretrain_once import pretrain_once
from ownlet.simulations.progress import Progress
from ownlet.simulations.quality_config import Choice, QualityConfig, QualityData, setting_of
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import Setting, last_event_cases
from ownlet.simulations.start import start_adapter
from ownlet.simulations.store import EventStore

__all__ = [
    "KeptScores",
    "Rehearsal",
    "Started",
    "Tuned",
    "best_on_grid",
    "local_plan",
    "make_rehearsal_base",
    "rehearsal_of",
    "run_rounds",
    "started",
    "train_each",
    "tune",
]


_MOST_GROWTH = 4  # values that are added to a grid


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What the rehearsal of a method chose.

    Args:
        learning_rate: of the rounds.
        clip_norms: epsilon -> C, for finite epsilons.
        local_rate: learning rate of local-only training.
        runs: how many trainings were compared.
    """

    learning_rate: float
    clip_norms: dict[float, float]
    local_rate: float
    runs: int

    def choice(self, epsilon: float) -> Choice:
        """Return what a run at an epsilon uses."""
        return Choice(learning_rate=self.learning_rate, clip_norm=self.clip_norms.get(epsilon, math.inf))


@dataclass(frozen=True, kw_only=True, eq=False)
class Started:
    """A base with a method attached, its spec, and the adapter (P,) that runs start from."""

    model: SASRec
    spec: AdapterSpec
    start: Vector


def started(
    config: QualityConfig,
    data: QualityData,
    base: Path,
    setting: Setting,
    method: MethodName,
    seed: int,
    progress: Progress,
) -> Started:
    """Load a base and attach a method to it."""
    model, adapter = load_base(base), config.adapter(method)
    spec = attach_adapter(model, adapter)
    start = start_adapter(adapter, config.compression, model, spec, setting.public, data.windows, seed, progress)
    return Started(model=model, spec=spec, start=start)


def run_rounds(
    name: str,
    ready: Started,
    setting: Setting,
    federation: FederationConfig,
    progress: Progress,
    *,
    engine: Engine | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> FederationResult:
    """Federate over a setting's devices.

    Args:
        name: of the stage.
        ready: base, spec and start.
        setting: with the devices.
        federation: the rounds.
        progress: told of rounds.
        engine: trains the users; by default the cohort engine.
        on_round: called after every round.
    """

    def step_on(result: RoundResult, vector: Vector) -> None:
        on_round()
        step("")

    with progress.stage(name, federation.rounds) as step:
        return simulate(
            engine or CohortEngine(ready.model, ready.spec),
            EventStore.of(setting.devices),
            ready.start,
            federation,
            on_round=step_on,
        )


def local_plan(config: QualityConfig, data: QualityData, rate: float) -> Plan:
    """Return a plan of all the local steps that a device does in the rounds on average."""
    plan = config.federation.plan
    return replace(
        plan, steps=max(1, round(config.federation.rounds * data.cohort_rate * plan.steps)), learning_rate=rate
    )


def rehearsal_of(data: QualityData) -> Setting:
    """Return the setting in which half of the public users play the devices."""
    setting = setting_of(data)
    playing = [history for history in setting.public[1::2] if len(history) >= 2]
    return replace(
        setting,
        public=setting.public[0::2],
        devices=tuple(history[:-1] for history in playing),
        test=last_event_cases(playing),
    )


def make_rehearsal_base(config: QualityConfig, data: QualityData, folder: Path, progress: Progress) -> None:
    """Train the rehearsal's base, on the first seed."""
    name, recipe = f"{data.name}: base of the rehearsal", replace(data.recipe, seed=config.seeds[0])
    pretrain_once(_base_path(data, folder), name, rehearsal_of(data), config.model, recipe, progress)


def tune(config: QualityConfig, data: QualityData, method: MethodName, folder: Path, progress: Progress) -> Tuned:
    """Return what is best in the rehearsal; runs that are on file are not run again."""
    found = KeptScores(folder / data.name / f"{method}-tuning.json")
    rehearse = Rehearsal(config, data, method, folder, progress)

    def quality(kind: str, value: float, epsilon: float = math.inf, rate: float = 0.0) -> float:
        key = f"{kind} {value:g}" + ("" if math.isinf(epsilon) else f" at epsilon {epsilon:g} and rate {rate:g}")
        if kind == "local rate":
            return found.score(key, partial(rehearse.alone, value))
        return found.score(key, partial(rehearse.rounds, epsilon, Choice(learning_rate=rate or value, clip_norm=value)))

    rate = best_on_grid(config.rates, partial(quality, "rate"))
    finite = [epsilon for epsilon in config.epsilons if math.isfinite(epsilon)]
    clips = {
        epsilon: best_on_grid(config.clips, partial(quality, "clip", epsilon=epsilon, rate=rate)) for epsilon in finite
    }
    local_rate = best_on_grid(config.local_rates, partial(quality, "local rate"))
    return Tuned(learning_rate=rate, clip_norms=clips, local_rate=local_rate, runs=len(found))


def best_on_grid(grid: Sequence[float], quality: Callable[[float], float]) -> float:
    """Return what is best of a grid, which grows at the end where its best stands, by its own factor."""
    values = sorted(grid)
    best = max(values, key=quality)
    for _ in range(_MOST_GROWTH if len(values) > 1 else 0):
        if best == values[0]:
            values.insert(0, best * values[0] / values[1])
        elif best == values[-1]:
            values.append(best * values[-1] / values[-2])
        else:
            break
        best = max(values, key=quality)
    return best


class KeptScores:
    """What runs scored, in a file: a run that is on file is not run again."""

    def __init__(self, path: Path) -> None:
        """Read the file, if there is one."""
        self._path = path
        self._found: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def __len__(self) -> int:
        """How many runs are on file."""
        return len(self._found)

    def score(self, key: str, run: Callable[[], float]) -> float:
        """Return what a run scored, and keep it."""
        if key not in self._found:
            self._found[key] = run()
            write_atomic(self._path, json.dumps(self._found, indent=1).encode())
        return self._found[key]


class Rehearsal:
    """Runs of one method in the rehearsal; loaded when first needed."""

    def __init__(
        self, config: QualityConfig, data: QualityData, method: MethodName, folder: Path, progress: Progress
    ) -> None:
        self._config, self._data, self._method, self._progress = config, data, method, progress
        self._base = _base_path(data, folder)

    def rounds(self, epsilon: float, choice: Choice) -> float:
        """Return NDCG@10 of a run's adapter on held-out public users."""
        ready, setting, seed = self._ready, rehearsal_of(self._data), self._config.seeds[0]
        federation = self._config.rounds(self._data, self._method, epsilon, choice, seed)
        share = len(setting.devices) / len(setting_of(self._data).devices)
        weaker = federation.noise_multiplier * share
        federation = replace(federation, noise_multiplier=weaker, target_epsilon=math.inf)
        privacy = "" if math.isinf(epsilon) else f", ε = {epsilon:g}, clip {choice.clip_norm:g}"
        name = f"{self._data.name}, rehearsal, {self._method}, rate {choice.learning_rate:g}{privacy}"
        result = run_rounds(name, ready, setting, federation, self._progress)
        return mean_ndcg(ready.model, setting.judging, spec=ready.spec, vector=result.vector)

    def alone(self, rate: float) -> float:
        """Return NDCG@10 of local-only adapters on the last events of the users that play devices."""
        ready, setting = self._ready, rehearsal_of(self._data)
        plan = local_plan(self._config, self._data, rate)
        own = train_each(
            ready, setting, np.arange(len(setting.devices)), plan, self._data.windows, self._config.seeds[0]
        )
        return float(ndcg(model_ranks(ready.model, setting.test, spec=ready.spec, vectors=own), 10).mean())

    @cached_property
    def _ready(self) -> Started:
        setting, seed = rehearsal_of(self._data), self._config.seeds[0]
        return started(self._config, self._data, self._base, setting, self._method, seed, self._progress)


def train_each(
    ready: Started,
    setting: Setting,
    devices: NDArray[np.int64],
    plan: Plan,
    windows: WindowConfig,
    seed: int,
    vector: Vector | None = None,
) -> NDArray[np.float32]:
    """Train an adapter of its own on each of these devices, (devices, P), by default from the start."""
    stack = EventStore.of(setting.devices).all_windows(windows)
    noises = [AesNoise.seeded(seed, "personal", int(device)) for device in devices]
    engine = CohortEngine(ready.model, ready.spec)
    return engine.train(ready.start if vector is None else vector, stack.take(devices), plan, noises)


def _base_path(data: QualityData, folder: Path) -> Path:
    return folder / data.name / "rehearsal.pt"
