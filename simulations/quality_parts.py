"""The parts of the quality benchmark, each of which trains something and leaves one file of ranks.

A part that is there is not done again, so a benchmark that was interrupted goes on, and parts run side by side in
processes of their own. Ranks are kept, not averages: every table, interval and paired comparison comes from the same
files.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.server.compression import CompressionConfig
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import (
    PERSONAL_PLAN,
    AdapterConfig,
    FederationConfig,
    MethodName,
    ModelConfig,
    Plan,
    WindowConfig,
)
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.methods import METHODS, rounds_for
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.store import write_atomic
from ownlet.simulations.centralised import CentralisedConfig, train_centralised
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import Cases, mean_ndcg, model_ranks
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain, save_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.results import plain_json
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, Setting, prepare
from ownlet.simulations.start import start_adapter
from ownlet.simulations.store import EventStore

__all__ = [
    "Federated",
    "QualityConfig",
    "QualityData",
    "Unfederated",
    "base_ranks",
    "check_settings",
    "make_base",
    "quality_data",
    "run_federated_part",
    "run_unfederated_part",
    "setting_of",
    "tested_devices",
    "tune_rate",
]

Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class QualityData:
    """One data set of the benchmark.

    Args:
        name: as tables show it.
        data: which interactions, and who is public.
        cohort_rate: the chance of each device to be in a round.
        tested: devices that results are measured on, drawn at random; None is all.
        recipe: training of the base.
    """

    name: str
    data: DataConfig
    cohort_rate: float = 0.2
    tested: int | None = None
    recipe: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What is trained.

    Args:
        data: the data sets.
        methods: the adapter methods.
        epsilons: targets of user-level privacy; infinity is a run without noise.
        seeds: of bases, adapters, cohorts and noise.
        rates: local learning rates that every method is tried with, on public users.
        model: shape of the base.
        rank: of adapters; alpha is twice the rank.
        federation: the rounds; unit, noise, seed, cohort rate and learning rate are set per run.
        compression: how A is learned, for ``iak``.
        personal: training of personal adapters.
        centralised: training of the oracle.
    """

    data: tuple[QualityData, ...]
    methods: tuple[MethodName, ...] = tuple(METHODS)
    epsilons: tuple[float, ...] = (math.inf, 8.0, 4.0, 2.0, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.1, 0.3, 1.0)
    model: ModelConfig = field(default_factory=ModelConfig)
    rank: int = 8
    federation: FederationConfig = field(
        default_factory=lambda: FederationConfig(
            rounds=30,
            clip_norm=0.3,
            server_momentum=0.9,
            plan=Plan(steps=1, learning_rate=0.3),
            windows=WindowConfig(window_length=20),
        )
    )
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    personal: Plan = PERSONAL_PLAN
    centralised: CentralisedConfig = field(default_factory=CentralisedConfig)

    def __post_init__(self) -> None:
        for name in ("data", "methods", "epsilons", "seeds", "rates"):
            require(len(getattr(self, name)) > 0, f"{name} must be at least one", **{name: getattr(self, name)})
        names = [one.name for one in self.data]
        require(len(set(names)) == len(names), "data sets must have names of their own", names=names)

    def adapter(self, method: MethodName) -> AdapterConfig:
        """Return the adapter of a method."""
        return AdapterConfig(method=method, rank=self.rank, alpha=2.0 * self.rank)

    def rounds(self, data: QualityData, method: MethodName, epsilon: float, rate: float, seed: int) -> FederationConfig:
        """Return the settings of one run: no privacy at infinite epsilon, else user-level with the noise it takes."""
        plain = replace(
            rounds_for(self.adapter(method), self.federation),
            cohort_rate=data.cohort_rate,
            plan=replace(self.federation.plan, learning_rate=rate),
            seed=seed,
        )
        if math.isinf(epsilon):
            return replace(plain, unit="none", noise_multiplier=0.0)
        sigma = noise_multiplier_for(
            target_epsilon=epsilon, dp_delta=plain.dp_delta, cohort_rate=plain.cohort_rate, rounds=plain.rounds
        )
        return replace(plain, unit="user", noise_multiplier=sigma, target_epsilon=epsilon)


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


def quality_data(path: Path | None, *, cohort: int, tested: int) -> QualityData:
    """Return a data set of the benchmark, with a share of devices per round that gives a cohort of a wanted size.

    Args:
        path: the interactions; None is the built-in population.
        cohort: devices in a round on average, but at the most a fifth of all.
        tested: devices that results are measured on, at the most.
    """
    data = DataConfig(path=path, public_fraction=0.1 if path is None else 0.3)
    num_devices = len(prepare(data).devices)
    name = "built-in" if path is None else path.stem
    return QualityData(name=name, data=data, cohort_rate=min(0.2, cohort / num_devices), tested=tested)


def check_settings(config: QualityConfig, data: QualityData, folder: Path) -> None:
    """Write down with which settings a data set's parts are made, or refuse to mix them with parts of others.

    More methods, epsilons or seeds may be asked for; everything else must stay.

    Raises:
        ConfigError: the folder holds parts that were made with other settings.
    """
    kept = replace(config, data=(data,), methods=("lora",), epsilons=(1.0,), seeds=(config.seeds[0],))
    text = json.dumps(plain_json(kept), indent=1, sort_keys=True)
    path = folder / data.name / "settings.json"
    if path.exists() and path.read_text() != text:
        raise ConfigError(f"quality parts must have been made with the same settings, got others in {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


@lru_cache(maxsize=2)
def setting_of(data: QualityData) -> Setting:
    """Return the data, loaded once per process."""
    return prepare(data.data)


def tested_devices(data: QualityData) -> NDArray[np.int64]:
    """Return the devices that results are measured on, the same for all methods and seeds."""
    count = len(setting_of(data).devices)
    if data.tested is None or data.tested >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(data.data.seed).choice(count, data.tested, replace=False))


def make_base(config: QualityConfig, data: QualityData, seed: int, folder: Path, progress: Progress) -> None:
    """Train a base, and rank the devices' last events by it."""
    path = _base_path(folder, data, seed)
    setting = setting_of(data)
    if not path.exists():
        with progress.stage(f"{data.name}, seed {seed}: base", data.recipe.max_epochs) as step:
            model = pretrain(
                setting.public,
                setting.validation,
                content_vectors(setting.data.items),
                config.model,
                replace(data.recipe, seed=seed),
                checkpoint=path.with_suffix(".ckpt"),
                on_epoch=lambda epoch: step(str(epoch)),
            )
        save_base(path, model, setting.data.items)
    ranks = path.with_suffix(".npz")
    if not ranks.exists():
        _save(ranks, base=model_ranks(load_base(path), _test(data)))


def base_ranks(data: QualityData, seed: int, folder: Path) -> Ranks:
    """Return the base's ranks, (tested,)."""
    return _load(_base_path(folder, data, seed).with_suffix(".npz"))["base"]


def tune_rate(config: QualityConfig, data: QualityData, method: MethodName, folder: Path, progress: Progress) -> float:
    """Return the local learning rate whose run without privacy, on the first seed, is best on held-out public users."""
    path = folder / data.name / f"{method}-rate.json"
    if path.exists():
        return float(json.loads(path.read_text())["rate"])
    seed = config.seeds[0]
    quality = {}
    for rate in config.rates:
        model, spec, start = _started(config, data, method, seed, folder, progress)
        result = _rounds(config, data, method, math.inf, rate, seed, model, spec, start, progress)
        quality[rate] = mean_ndcg(model, setting_of(data).validation, spec=spec, vector=result.vector)
    best = max(quality, key=lambda rate: quality[rate])
    record = {"rate": best, "runs": len(quality), "public_ndcg@10": {f"{r:g}": q for r, q in quality.items()}}
    write_atomic(path, json.dumps(record).encode())
    return best


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
        rate = tune_rate(config, data, method, folder, progress)
        model, spec, start = _started(config, data, method, seed, folder, progress)
        result = _rounds(config, data, method, epsilon, rate, seed, model, spec, start, progress)
        validation, test = setting_of(data).validation, _test(data)
        own = _train_each(model, spec, result.vector, data, config, config.personal, seed)
        _save(
            path,
            federated=model_ranks(model, test, spec=spec, vectors=result.vector),
            personal=model_ranks(model, test, spec=spec, vectors=own),
            public=np.array([mean_ndcg(model, validation, spec=spec, vector=result.vector)]),
            base_public=np.array([mean_ndcg(model, validation)]),
            epsilon=np.array([result.epsilon]),
            delta_bytes=np.array([4 * spec.num_trainable]),
        )
    found = _load(path)
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
        rate = tune_rate(config, data, method, folder, progress)
        model, spec, start = _started(config, data, method, seed, folder, progress)
        setting, test = setting_of(data), _test(data)
        alone = replace(
            config.federation.plan,
            steps=max(1, round(config.federation.rounds * data.cohort_rate * config.federation.plan.steps)),
            learning_rate=rate,
        )
        windows = EventStore.of(setting.devices).all_windows(config.federation.windows).windows
        with progress.stage(f"{data.name}, seed {seed}, {method}: oracle", config.centralised.max_epochs) as step:
            oracle = train_centralised(
                model,
                spec,
                start,
                windows,
                setting.validation,
                config.centralised,
                seed,
                on_epoch=lambda epoch, quality: step(f"NDCG@10 on public users {quality:.4f}"),
            )
        ranks = {
            "personal": _train_each(model, spec, start, data, config, config.personal, seed),
            "local_only": _train_each(model, spec, start, data, config, alone, seed),
            "centralised": oracle,
        }
        _save(path, **{name: model_ranks(model, test, spec=spec, vectors=own) for name, own in ranks.items()})
    return Unfederated(**_load(path))


def _started(
    config: QualityConfig, data: QualityData, method: MethodName, seed: int, folder: Path, progress: Progress
) -> tuple[SASRec, AdapterSpec, Vector]:
    """Return the base with the method attached, its spec, and the adapter that runs start from."""
    model, adapter = load_base(_base_path(folder, data, seed)), config.adapter(method)
    spec = attach_adapter(model, adapter)
    public, windows = setting_of(data).public, config.federation.windows
    return model, spec, start_adapter(adapter, config.compression, model, spec, public, windows, seed, progress)


def _rounds(
    config: QualityConfig,
    data: QualityData,
    method: MethodName,
    epsilon: float,
    rate: float,
    seed: int,
    model: SASRec,
    spec: AdapterSpec,
    start: Vector,
    progress: Progress,
) -> Any:
    federation = config.rounds(data, method, epsilon, rate, seed)
    privacy = "no privacy" if math.isinf(epsilon) else f"ε = {epsilon:g}"
    name = f"{data.name}, seed {seed}, {method}, {privacy}, rate {rate:g}"
    with progress.stage(name, federation.rounds) as step:
        return simulate(
            CohortEngine(model, spec),
            EventStore.of(setting_of(data).devices),
            start,
            federation,
            on_round=lambda result, vector: step(""),
        )


def _train_each(
    model: SASRec, spec: AdapterSpec, vector: Vector, data: QualityData, config: QualityConfig, plan: Plan, seed: int
) -> NDArray[np.float32]:
    """Train an adapter of its own on every tested device, (tested, P)."""
    windows = EventStore.of(setting_of(data).devices).all_windows(config.federation.windows)
    devices = tested_devices(data)
    noises = [AesNoise.seeded(seed, "personal", int(device)) for device in devices]
    return CohortEngine(model, spec).train(vector, windows.take(devices), plan, noises)


def _test(data: QualityData) -> Cases:
    test, devices = setting_of(data).test, tested_devices(data)
    return Cases(histories=tuple(test.histories[device] for device in devices), targets=test.targets[devices])


def _base_path(folder: Path, data: QualityData, seed: int) -> Path:
    return folder / data.name / f"base-{seed}.pt"


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


def _load(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as found:
        return {name: found[name] for name in found.files}
