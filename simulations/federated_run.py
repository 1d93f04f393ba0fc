"""The job behind ``ownlet simulate``: one federated run over a base that exists."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ownlet.device.train import Engine
from ownlet.server.checkpoint import RoundResult
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter, save_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.metrics import Metric, summarise
from ownlet.shared.model import SASRec
from ownlet.shared.privacy import ACCOUNTANT
from ownlet.simulations.evaluate import is_publishable, mean_ndcg, model_ranks
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.results import RunFolder, plain_metrics
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, prepare
from ownlet.simulations.store import EventStore

__all__ = ["EngineName", "FederatedRunConfig", "FederatedRunResult", "make_engine", "run_federated"]

EngineName = Literal["cohort", "opacus", "executorch"]


@dataclass(frozen=True, kw_only=True)
class FederatedRunConfig:
    """Settings of a run.

    Args:
        base: file of the base, as ``ownlet pretrain`` leaves it.
        data: which interactions; must be those that the base was trained on.
        adapter: where LoRA goes.
        federation: the rounds.
        engine: ``cohort`` trains many users at once; ``opacus`` and ``executorch`` train one after the other.
        num_nodes: Flower nodes that the devices are spread over; never changes the result.
        evaluate_every: rounds between evaluations on held-out public users.
    """

    base: Path
    data: DataConfig = field(default_factory=DataConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    engine: EngineName = "cohort"
    num_nodes: int = 1
    evaluate_every: int = 5

    def __post_init__(self) -> None:
        require(
            self.engine in get_args(EngineName), f"engine must be one of {get_args(EngineName)}", engine=self.engine
        )
        require(self.num_nodes >= 1, "num_nodes must be at least 1", num_nodes=self.num_nodes)
        require(self.evaluate_every >= 1, "evaluate_every must be at least 1", evaluate_every=self.evaluate_every)


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedRunResult:
    """What the run ends with.

    Args:
        federation: rounds and last adapter.
        quality: ``base`` and ``federated`` -> HR, NDCG and MRR@10 on device users.
        published: the adapter file, or None where the adapter is below the base on held-out public users.
    """

    federation: FederationResult
    quality: dict[str, dict[str, Metric]]
    published: Path | None


def run_federated(config: FederatedRunConfig, folder: RunFolder, progress: Progress) -> FederatedRunResult:
    """Run the rounds; leave checkpoint, metrics, adapter and summary in the run folder.

    Args:
        config: the settings.
        folder: of this run; an interrupted run is continued from its last round.
        progress: told of rounds.

    Returns:
        The result. An adapter that is below the base on held-out public users is not published.

    Raises:
        DataError: base or data cannot be read.
        ConfigError: the base was trained on another catalogue.
    """
    started = time.monotonic()
    setting = prepare(config.data)
    model = load_base(config.base)
    if model.num_items != setting.data.num_items:
        raise ConfigError(
            f"data must have the catalogue of the base, got {setting.data.num_items} items where "
            f"the base has {model.num_items}"
        )
    spec = attach_adapter(model, config.adapter)
    start = initial_adapter(spec, config.federation.seed or 0)
    engine = make_engine(config, model, spec, start, folder.path)
    public: dict[int, float] = {0: mean_ndcg(model, setting.validation, spec=spec, vector=start)}
    name = "rounds" if config.federation.unit == "none" else f"{config.federation.unit}-level rounds"
    with progress.stage(f"{name} over {len(setting.devices)} devices", config.federation.rounds) as step:

        def on_round(result: RoundResult, vector: Vector) -> None:
            if result.round % config.evaluate_every == 0 or result.round == config.federation.rounds:
                public[result.round] = mean_ndcg(model, setting.validation, spec=spec, vector=vector)
            spent = f", ε {result.epsilon:.3f}" if math.isfinite(result.epsilon) else ""
            void = ", void" if result.void else ""
            step(f"NDCG@10 on public users {public[max(public)]:.4f}{spent}{void}")

        result = simulate(
            engine,
            EventStore.of(setting.devices),
            start,
            config.federation,
            num_nodes=config.num_nodes,
            checkpoint=folder.path / "federation.ckpt",
            resume=True,
            on_round=on_round,
        )
    published = None
    if is_publishable(model, spec, result.vector, setting.validation):
        published = folder.path / "adapter.safetensors"
        save_adapter(published, spec, result.vector, version=result.version)
    folder.write_metrics([_row(record, public) for record in result.rounds])
    quality = {
        "base": summarise(model_ranks(model, setting.test)),
        "federated": summarise(model_ranks(model, setting.test, spec=spec, vectors=result.vector)),
    }
    folder.write_summary(_summary(config, setting.facts, quality, result, time.monotonic() - started))
    return FederatedRunResult(federation=result, quality=quality, published=published)


def make_engine(config: FederatedRunConfig, model: SASRec, spec: AdapterSpec, vector: Vector, folder: Path) -> Engine:
    """Return the engine by name; what one engine needs is imported only for it."""
    if config.engine == "cohort":
        from ownlet.simulations.cohort import CohortEngine

        return CohortEngine(model, spec)
    if config.engine == "opacus":
        from ownlet.device.opacus_engine import OpacusEngine

        return OpacusEngine(model, spec)
    from ownlet.device.executorch_engine import ExecutorchEngine
    from ownlet.export.bundle import write_bundle
    from ownlet.simulations.pretrain import load_catalogue

    bundle = folder / "bundle"
    write_bundle(
        bundle, model, spec, vector, version=0, items=load_catalogue(config.base), windows=config.federation.windows
    )
    return ExecutorchEngine.open(bundle)


def _row(record: RoundResult, public: dict[int, float]) -> dict[str, object]:
    return {
        "round": record.round,
        "version": record.version,
        "void": record.void,
        "num_asked": record.num_asked,
        "num_nodes": record.num_nodes,
        "num_admitted": record.num_admitted,
        "num_missing": record.num_missing,
        "rejected": "; ".join(record.rejected),
        "epsilon": record.epsilon,
        "update_norm": record.update_norm,
        "public_ndcg@10": public.get(record.round),
        "seconds": record.seconds,
    }


def _summary(
    config: FederatedRunConfig,
    facts: dict[str, object],
    quality: dict[str, dict[str, Metric]],
    result: FederationResult,
    seconds: float,
) -> dict[str, object]:
    summary: dict[str, object] = {
        "command": "simulate",
        "seconds": seconds,
        "data": facts,
        "quality": {label: plain_metrics(metrics) for label, metrics in quality.items()},
    }
    if math.isfinite(result.epsilon):
        summary["privacy"] = {
            "federated": {
                "epsilon": result.epsilon,
                "dp_delta": config.federation.dp_delta,
                "unit": config.federation.unit,
                "rounds": len(result.rounds),
                "accountant": ACCOUNTANT,
            }
        }
    return summary
