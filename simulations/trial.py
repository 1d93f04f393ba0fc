"""One seed of the main experiment: base, federated adapters, personal adapters.

A base is trained on public users and adapters are federated over the devices: one without privacy, and one per epsilon
with user-level differential privacy. The last is what one would ship, so it is the one that may be published and that
every device personalises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.server.checkpoint import RoundResult
from ownlet.server.compression import CompressionConfig
from ownlet.server.publication import leave_publication, spent_by
from ownlet.server.published import ADAPTER_FILE
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector, save_adapter
from ownlet.shared.config import PERSONAL_PLAN, AdapterConfig, FederationConfig, ModelConfig, Plan, simulated_federation
from ownlet.shared.delta import delta_of
from ownlet.shared.errors import require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.methods import rounds_for
from ownlet.shared.metrics import PublicQuality, ndcg
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.windows import WindowStack
from ownlet.simulations.baselines import item_knn, most_popular
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import Cases, model_ranks, public_quality, scorer_ranks
from ownlet.simulations.moments import ContextRequest
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.pretrain_once import pretrain_once
from ownlet.simulations.progress import Progress
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, Setting
from ownlet.simulations.start import start_adapter
from ownlet.simulations.store import EventStore

__all__ = [
    "FederatedRun",
    "PublicRound",
    "SeedResult",
    "TrialConfig",
    "baseline_ranks",
    "federated_labels",
    "ranks_by_label",
    "run_seed",
]

Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that an experiment decides.

    The federation's numbers were chosen on held-out public users only; ``docs/decisions.md`` has the measurements.

    Args:
        data: which interactions.
        model: shape of the base.
        context: what the base reads beside the history; its vocabularies are taken from public users.
        recipe: training of the base.
        adapter: where LoRA goes.
        federation: the run without noise; its ``unit``, ``noise_multiplier`` and ``seed`` are set per run.
        compression: how the server learns A, for the method ``iak``.
        personal: local training of the personal adapter, which never leaves the device.
        epsilons: targets of the private runs, in falling order; the last is shipped.
        seeds: of base, cohorts and noise.
        num_nodes: Flower nodes that the devices are spread over.
        workers: processes that seeds run in; None is one per core, never more than seeds.
        evaluate_every: rounds between evaluations on held-out public users.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextRequest = field(default_factory=ContextRequest)
    recipe: PretrainConfig = field(default_factory=PretrainConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    federation: FederationConfig = field(default_factory=simulated_federation)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    personal: Plan = PERSONAL_PLAN
    epsilons: tuple[float, ...] = (8.0, 2.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_nodes: int = 2
    workers: int | None = None
    evaluate_every: int = 10

    def __post_init__(self) -> None:
        require(len(self.seeds) > 0, "seeds must be at least one", seeds=self.seeds)
        require(self.evaluate_every >= 1, "evaluate_every must be at least 1", evaluate_every=self.evaluate_every)


@dataclass(frozen=True, kw_only=True)
class PublicRound:
    """One evaluation on held-out public users."""

    round: int
    ranks: Ranks
    delta_norm: float


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedRun:
    """One federated run of one seed.

    Args:
        label: ``federated``, ``federated_eps8``, ...
        config: its public numbers.
        result: its rounds and last adapter.
        public: evaluations on held-out public users, round 0 first.
        ranks: (devices,) of the last adapter on the devices' test events.
        quality: of the last adapter on held-out public users, beside the base.
    """

    label: str
    config: FederationConfig
    result: FederationResult
    public: tuple[PublicRound, ...]
    ranks: Ranks
    quality: PublicQuality

    @property
    def published(self) -> bool:
        """Whether the last adapter is not below the base on held-out public users."""
        return self.quality.publishable


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedResult:
    """Everything that one seed gave.

    Args:
        seed: the seed.
        model: the base, prepared with ``attach``.
        spec: the adapter's spec.
        base_ranks: (devices,) of the base.
        runs: the federated runs, in order.
        shipped: (P,) the adapter that is published: the last run's, or the one that changes nothing.
        shipped_version: its version; 0 changes nothing.
        personal_ranks: (devices,) with each device's own adapter on top of the shipped one.
    """

    seed: int
    model: SASRec
    spec: AdapterSpec
    base_ranks: Ranks
    runs: tuple[FederatedRun, ...]
    shipped: Vector
    shipped_version: int
    personal_ranks: Ranks


def federated_labels(config: TrialConfig) -> tuple[str, ...]:
    """Return the names of the federated runs: ``federated``, then one per epsilon."""
    return ("federated", *(f"federated_eps{epsilon:g}" for epsilon in config.epsilons))


def baseline_ranks(setting: Setting) -> dict[str, Ranks]:
    """Rank the devices' test events by the two baselines, trained on what the base is trained on."""
    num_items = setting.data.num_items
    return {
        "popular": scorer_ranks(most_popular(setting.public, num_items), setting.test),
        "item_knn": scorer_ranks(item_knn(setting.public, num_items), setting.test),
    }


def run_seed(config: TrialConfig, setting: Setting, seed: int, folder: Path, progress: Progress) -> SeedResult:
    """Train a base, federate adapters over the devices, and personalise on every device.

    Args:
        config: the settings.
        setting: the data.
        seed: of base, cohorts and noise.
        folder: for checkpoints; what lies there from an interrupted run with equal settings is continued.
        progress: told of stages and steps.

    Returns:
        The results of this seed.
    """
    model = _base(config, setting, seed, folder, progress)
    spec = attach_adapter(model, config.adapter)
    start = start_adapter(
        config.adapter, config.compression, model, spec, setting.public, config.federation.windows, seed, progress
    )
    epsilons = (math.inf, *config.epsilons)
    runs = tuple(
        _federate(config, setting, model, spec, start, label, epsilon, seed, progress)
        for label, epsilon in zip(federated_labels(config), epsilons, strict=True)
    )
    last = runs[-1]
    shipped, version = (last.result.vector, last.result.version) if last.published else (start, 0)
    left = leave_publication(
        folder,
        spec,
        last.result.vector,
        version=last.result.version,
        quality=last.quality.adapter,
        base_quality=last.quality.base,
        spent=spent_by(last.config, last.result),
    )
    if left is None:
        save_adapter(folder / ADAPTER_FILE, spec, shipped, version=version)
    with progress.stage(f"seed {seed}: personal adapters on {len(setting.devices)} devices", 1) as step:
        personal = personalise(model, spec, shipped, setting, config, seed)
        personal_ranks = model_ranks(model, setting.test, spec=spec, vectors=personal)
        step("")
    return SeedResult(
        seed=seed,
        model=model,
        spec=spec,
        base_ranks=model_ranks(model, setting.test),
        runs=runs,
        shipped=shipped,
        shipped_version=version,
        personal_ranks=personal_ranks,
    )


def _base(config: TrialConfig, setting: Setting, seed: int, folder: Path, progress: Progress) -> SASRec:
    name, recipe = f"seed {seed}: base on {len(setting.public)} public users", replace(config.recipe, seed=seed)
    return pretrain_once(folder / "base.pt", name, setting, config.model, recipe, progress)


def run_config(config: TrialConfig, epsilon: float, seed: int) -> FederationConfig:
    """Return the settings of one run: no privacy at infinite epsilon, else user-level with the noise that it takes."""
    plain = replace(rounds_for(config.adapter, config.federation), seed=seed)
    if math.isinf(epsilon):
        return replace(plain, unit="none", noise_multiplier=0.0)
    sigma = noise_multiplier_for(
        target_epsilon=epsilon, dp_delta=plain.dp_delta, cohort_rate=plain.cohort_rate, rounds=plain.rounds
    )
    return replace(plain, unit="user", noise_multiplier=sigma, target_epsilon=epsilon)


def _federate(
    config: TrialConfig,
    setting: Setting,
    model: SASRec,
    spec: AdapterSpec,
    start: Vector,
    label: str,
    epsilon: float,
    seed: int,
    progress: Progress,
) -> FederatedRun:
    federation = run_config(config, epsilon, seed)
    devices = EventStore.of(setting.devices, setting.device_context)
    held_out = EventStore.of(setting.held_out, setting.held_out_context).all_windows(federation.windows)
    engine = CohortEngine(model, spec)
    public: list[PublicRound] = []

    with progress.stage(f"seed {seed}: {label}", federation.rounds) as step:

        def judge(number: int, vector: Vector) -> float | None:
            if number % config.evaluate_every and number != federation.rounds:
                return None
            public.append(_on_public(model, vector, setting.judging, held_out, engine, federation.plan, number))
            return float(ndcg(public[-1].ranks, 10).mean())

        def on_round(result: RoundResult, vector: Vector) -> None:
            quality = float(ndcg(public[-1].ranks, 10).mean())
            spent = f", ε {result.epsilon:.2f}" if math.isfinite(result.epsilon) else ""
            step(f"NDCG@10 on public users {quality:.4f}{spent}")

        result = simulate(
            engine, devices, start, federation, num_nodes=config.num_nodes, on_round=on_round, judge=judge
        )
    return FederatedRun(
        label=label,
        config=federation,
        result=result,
        public=tuple(public),
        ranks=model_ranks(model, setting.test, spec=spec, vectors=result.vector),
        quality=public_quality(model, spec, result.vector, setting.judging),
    )


def _on_public(
    model: SASRec,
    vector: Vector,
    validation: Cases,
    held_out: WindowStack,
    engine: CohortEngine,
    plan: Plan,
    number: int,
) -> PublicRound:
    """Evaluate on held-out public users, and see how long their deltas would be before clipping."""
    noises = [AesNoise.seeded("public", number, user) for user in range(len(held_out))]
    trained = engine.train(vector, held_out, plan, noises)
    norms = np.linalg.norm(delta_of(engine.spec, trained, vector), axis=1)
    return PublicRound(
        round=number,
        ranks=model_ranks(model, validation, spec=engine.spec, vectors=vector),
        delta_norm=float(np.median(norms)),
    )


def personalise(
    model: SASRec, spec: AdapterSpec, vector: Vector, setting: Setting, config: TrialConfig, seed: int
) -> NDArray[np.float32]:
    """Fine-tune a personal adapter on every device from the shipped one; (devices, P). It never leaves the device."""
    windows = EventStore.of(setting.devices, setting.device_context).all_windows(config.federation.windows)
    noises = [AesNoise.seeded(seed, "personal", user) for user in range(len(windows))]
    return CohortEngine(model, spec).train(vector, windows, config.personal, noises)


def ranks_by_label(results: Sequence[SeedResult]) -> dict[str, Ranks]:
    """Return label -> (seeds, devices) ranks of everything that was trained, ``base`` first and ``personal`` last."""
    labels = [run.label for run in results[0].runs]
    return {
        "base": np.stack([result.base_ranks for result in results]),
        **{label: np.stack([result.runs[at].ranks for result in results]) for at, label in enumerate(labels)},
        "personal": np.stack([result.personal_ranks for result in results]),
    }
