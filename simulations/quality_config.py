"""What the quality benchmark trains and on which data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.server.compression import CompressionConfig
from ownlet.shared.config import (
    PERSONAL_PLAN,
    AdapterConfig,
    FederationConfig,
    MethodName,
    ModelConfig,
    Plan,
    WindowConfig,
)
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.methods import METHODS, rounds_for
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.store import write_atomic
from ownlet.simulations.centralised import CentralisedConfig
from ownlet.simulations.fleet import windows_fall_short
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.results import plain_json
from ownlet.simulations.setting import DataConfig, Setting, prepare

__all__ = [
    "Choice",
    "QualityConfig",
    "QualityData",
    "check_settings",
    "quality_data",
    "setting_of",
    "tested_devices",
]


@dataclass(frozen=True, kw_only=True)
class QualityData:
    """One data set of the benchmark.

    Args:
        name: as tables show it.
        data: which interactions, and who is public.
        cohort_rate: the chance of each device to be in a round.
        tested: devices that results are measured on, drawn at random; None is all.
        windows: how histories are cut for training.
        recipe: training of the base.
    """

    name: str
    data: DataConfig
    cohort_rate: float = 0.2
    tested: int | None = None
    windows: WindowConfig = field(default_factory=WindowConfig)
    recipe: PretrainConfig = field(default_factory=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is tuned.

    Args:
        learning_rate: of devices.
        clip_norm: the bound C on a user's delta; unused without privacy.
        server_learning_rate: of the server's optimiser; None is the federation's.
    """

    learning_rate: float
    clip_norm: float
    server_learning_rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What is trained.

    Args:
        data: the data sets.
        methods: the adapter methods.
        epsilons: targets of user-level privacy; infinity is a run without noise.
        seeds: of bases, adapters, cohorts and noise.
        rates: local learning rates that every method is tried with, in a rehearsal on public users.
        clips: bounds C on a user's delta that are tried at every epsilon, in the same rehearsal.
        local_rates: learning rates of local-only training that are tried in the same rehearsal.
        model: shape of the base.
        rank: of adapters; alpha is twice the rank.
        federation: the rounds; unit, noise, clip, seed, cohort rate, windows and learning rate are set per run.
        compression: how A is learned, for ``iak``.
        personal: training of personal adapters.
        centralised: training of the oracle.
    """

    data: tuple[QualityData, ...]
    methods: tuple[MethodName, ...] = tuple(METHODS)
    epsilons: tuple[float, ...] = (math.inf, 8.0, 4.0, 2.0, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)
    clips: tuple[float, ...] = (0.1, 0.3, 1.0)
    local_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    model: ModelConfig = field(default_factory=ModelConfig)
    rank: int = 8
    federation: FederationConfig = field(
        default_factory=lambda: FederationConfig(
            rounds=30,
            clip_norm=0.3,
            server_momentum=0.9,
            plan=Plan(steps=1, learning_rate=0.3),
        )
    )
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    personal: Plan = PERSONAL_PLAN
    centralised: CentralisedConfig = field(default_factory=CentralisedConfig)

    def __post_init__(self) -> None:
        for name in ("data", "methods", "epsilons", "seeds", "rates", "clips", "local_rates"):
            require(len(getattr(self, name)) > 0, f"{name} must be at least one", **{name: getattr(self, name)})
        names = [one.name for one in self.data]
        require(len(set(names)) == len(names), "data sets must have names of their own", names=names)

    def adapter(self, method: MethodName) -> AdapterConfig:
        """Return the adapter of a method."""
        return AdapterConfig(method=method, rank=self.rank, alpha=2.0 * self.rank)

    def rounds(
        self, data: QualityData, method: MethodName, epsilon: float, choice: Choice, seed: int
    ) -> FederationConfig:
        """Return the settings of one run: no privacy at infinite epsilon, else user-level with the noise it takes."""
        plain = replace(
            rounds_for(self.adapter(method), self.federation),
            unit="none",
            noise_multiplier=0.0,
            cohort_rate=data.cohort_rate,
            windows=data.windows,
            clip_norm=choice.clip_norm,
            server_learning_rate=choice.server_learning_rate or self.federation.server_learning_rate,
            plan=replace(self.federation.plan, learning_rate=choice.learning_rate),
            seed=seed,
        )
        if math.isinf(epsilon):
            return plain
        sigma = noise_multiplier_for(
            target_epsilon=epsilon, dp_delta=plain.dp_delta, cohort_rate=plain.cohort_rate, rounds=plain.rounds
        )
        return replace(plain, unit="user", noise_multiplier=sigma, target_epsilon=epsilon)


def quality_data(path: Path | None, *, cohort: int, tested: int, window_length: int | None = None) -> QualityData:
    """Return a data set of the benchmark, with a share of devices per round that gives a cohort of a wanted size.

    Args:
        path: the interactions; None is the built-in population.
        cohort: devices in a round on average, but at the most a fifth of all.
        tested: devices that results are measured on, at the most.
        window_length: events in a window; None is 20, or what the base reads where half of the histories are longer.
    """
    data = DataConfig(path=path, public_fraction=0.1 if path is None else 0.3)
    devices, windows, longest = prepare(data).devices, WindowConfig(), ModelConfig().max_length
    if window_length is not None:
        windows = WindowConfig(window_length=window_length)
    elif windows_fall_short([len(history) for history in devices], windows, longest):
        windows = WindowConfig(window_length=longest)
    return QualityData(
        name="built-in" if path is None else path.stem,
        data=data,
        cohort_rate=min(0.2, cohort / len(devices)),
        tested=tested,
        windows=windows,
    )


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
