"""The job behind ``ownlet simulate``: one federated run over a base that exists."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from ownlet.device.client import make_client_app
from ownlet.device.train import Engine
from ownlet.server.checkpoint import RoundResult
from ownlet.server.compression import CompressionConfig
from ownlet.server.metrics import RunStatus
from ownlet.server.publication import leave_publication, spent_by
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.candidates import CandidateSampler
from ownlet.shared.config import AdapterConfig, FederationConfig, Plan, simulated_federation
from ownlet.shared.errors import require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.methods import rounds_for
from ownlet.shared.metrics import Metric, paired_difference, summarise
from ownlet.shared.model import SASRec
from ownlet.shared.privacy import ACCOUNTANT
from ownlet.shared.ranks import low_rank_spec
from ownlet.shared.recommender import known_frequencies
from ownlet.simulations.board import Board
from ownlet.simulations.cross_covariance import CrossCovarianceEngine, cross_covariance_applies
from ownlet.simulations.curves import CURVES_FILE, draw_panels, panels_of_rows
from ownlet.simulations.evaluate import mean_ndcg, model_ranks, public_quality
from ownlet.simulations.fleet import Fleet, fleet_of_data, fleet_of_store, window_advice
from ownlet.simulations.line_search import chosen_length
from ownlet.simulations.pretrain import load_base, load_catalogue
from ownlet.simulations.progress import Progress
from ownlet.simulations.results import RunFolder, plain_metrics
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.start import start_adapter
from ownlet.simulations.traffic import traffic_of

__all__ = [
    "EngineName",
    "FederatedRunConfig",
    "FederatedRunResult",
    "GridName",
    "load_parts",
    "make_engine",
    "run_federated",
]

_log = logging.getLogger(__name__)

EngineName = Literal["cohort", "opacus", "executorch"]
GridName = Literal["in-process", "ray"]


@dataclass(frozen=True, kw_only=True)
class FederatedRunConfig:
    """Settings of a run.

    Args:
        base: file of the base, as ``ownlet pretrain`` leaves it.
        data: which interactions; must be those that the base was trained on. Unused with a store.
        store: folder that ``ownlet store`` wrote for the base: a population of any size.
        public_users: of a store: users at its end that are public and decide about publication.
        sampled_users: of a store: devices that the result is measured on.
        adapter: where LoRA goes.
        compression: how the server learns A, for the method ``iak``.
        federation: the rounds.
        engine: ``cohort`` trains many users at once; ``opacus`` and ``executorch`` train one after the other.
        precision: of the cohort engine's arithmetic; ``bfloat16`` is an approximation.
        device: of the cohort engine, as torch names it: ``cpu``, ``cuda``.
        num_nodes: Flower nodes that the devices are spread over; never changes the result.
        grid: ``in-process``, or ``ray`` for nodes that are processes, on one machine or a Ray cluster.
        ray_address: of a running Ray cluster; None starts one on this machine.
        evaluate_every: rounds between evaluations on held-out public users.
    """

    base: Path
    data: DataConfig = field(default_factory=DataConfig)
    store: Path | None = None
    public_users: int = 1000
    sampled_users: int = 2000
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    compression: CompressionConfig = field(default_factory=CompressionConfig)
    federation: FederationConfig = field(default_factory=lambda: simulated_federation(seed=0))
    engine: EngineName = "cohort"
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    num_nodes: int = 1
    grid: GridName = "in-process"
    ray_address: str | None = None
    evaluate_every: int = 5

    def __post_init__(self) -> None:
        require(
            self.engine in get_args(EngineName), f"engine must be one of {get_args(EngineName)}", engine=self.engine
        )
        require(
            self.precision in ("float32", "bfloat16"),
            "precision must be float32 or bfloat16",
            precision=self.precision,
        )
        require(
            self.store is None or self.data.path is None,
            "data and store must not be given together",
            data=self.data.path,
            store=self.store,
        )
        require(self.grid in get_args(GridName), f"grid must be one of {get_args(GridName)}", grid=self.grid)
        require(
            self.grid == "in-process" or self.engine != "executorch",
            "engine must be cohort or opacus on a Ray grid",
            engine=self.engine,
        )
        require(
            not self.federation.ranks or (self.grid == "in-process" and self.engine != "executorch"),
            "ranks must not differ on a Ray grid or with the engine executorch",
            ranks=self.federation.ranks,
        )
        require(
            self.engine != "executorch" or not rounds_for(self.adapter, self.federation).alternate,
            "engine must be cohort or opacus where rounds alternate: a program trains the same numbers in every round",
            engine=self.engine,
        )
        require(
            self.grid == "in-process" or not self.federation.wire.error_feedback,
            "error_feedback of wire must be false on a Ray grid, whose actors keep nothing of a device",
            grid=self.grid,
        )
        for name in ("num_nodes", "public_users", "sampled_users", "evaluate_every"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})


@dataclass(frozen=True, kw_only=True, eq=False)
class FederatedRunResult:
    """What the run ends with.

    Args:
        federation: rounds and last adapter.
        quality: ``base`` and ``federated`` -> HR, NDCG and MRR@10 on device users.
        gain: NDCG@10 of the second minus that of the first, paired by user.
        published: the adapter file, or None where the adapter is below the base on held-out public users.
        length: under the unit ``window``, how much of the way that the rounds went public users found best
            (``simulations/line_search.py``); 0 is the base.
    """

    federation: FederationResult
    quality: dict[str, dict[str, Metric]]
    gain: Metric
    published: Path | None
    length: float = 1.0


def run_federated(
    config: FederatedRunConfig,
    folder: RunFolder,
    progress: Progress,
    board: Board | None = None,
    *,
    status: RunStatus | None = None,
) -> FederatedRunResult:
    """Run the rounds; leave checkpoint, metrics, their curves, adapter and summary in the run folder.

    Args:
        config: the settings.
        folder: of this run; an interrupted run is continued from its last round.
        progress: told of rounds.
        board: told of every round's row.
        status: told of every round, and of the end.

    Returns:
        The result. An adapter that is below the base on held-out public users is not published.

    Raises:
        DataError: base or data cannot be read.
        ConfigError: the base was trained on another catalogue or on the devices, or reads context that the data lacks.
        ConnectionError: no Ray cluster at the address.
    """
    started = time.monotonic()
    fleet, model, spec = load_parts(config)
    _check_negatives(config.federation.plan, model)
    if advice := window_advice(fleet.store, config.federation.windows, model.max_length):
        _log.warning(advice)
    start = start_adapter(
        config.adapter,
        config.compression,
        model,
        spec,
        fleet.public,
        config.federation.windows,
        config.federation.seed or 0,
        progress,
    )
    engine = make_engine(config, model, spec, start, folder.path)
    rounds = rounds_for(config.adapter, config.federation)
    watched = None
    if config.grid == "in-process" and cross_covariance_applies(spec, rounds):
        engine = watched = CrossCovarianceEngine(engine, rounds)
    rows = folder.read_metrics()  # of the rounds before an interruption
    known = [row for row in rows if row.get("cross_covariance") is not None]
    errors: dict[int, float] = {row["round"]: row["cross_covariance"] for row in known}
    name = "rounds" if config.federation.unit == "none" else f"{config.federation.unit}-level rounds"
    with (
        progress.stage(f"{name} over {fleet.num_users:,} devices", config.federation.rounds) as step,
        _grid(config) as grid,
    ):
        trained_before, began, quality_now, base_quality = 0, time.monotonic(), math.nan, math.nan

        def on_users(trained: int, asked: int) -> None:
            nonlocal trained_before
            trained_before += trained
            speed = trained_before / (time.monotonic() - began)
            step(f"{speed:,.0f} users/s", trained / asked / config.num_nodes)

        def judge(number: int, vector: Vector) -> float | None:
            nonlocal quality_now, base_quality
            if number % config.evaluate_every and number != config.federation.rounds:
                return None
            quality_now = mean_ndcg(model, fleet.validation, spec=spec, vector=vector)
            base_quality = quality_now if number == 0 else base_quality
            return quality_now

        def on_round(result: RoundResult, vector: Vector) -> None:
            if status is not None:
                status.on_round(result, vector)
            if watched is not None:
                errors[result.round] = watched.take()
            rows.append(_row(result, errors))
            folder.write_metrics(rows)
            if board is not None:
                board.row(result.round, rows[-1])
            spent = f", ε {result.epsilon:.3f}" if math.isfinite(result.epsilon) else ""
            void = ", void" if result.void else ""
            speed = f"{result.num_asked / result.seconds:,.0f} users/s, "
            share = 0.0 if grid is None and result.num_asked else 1.0
            step(f"{speed}NDCG@10 on public users {quality_now:.4f}{spent}{void}", share)

        result = simulate(
            engine,
            fleet.store,
            start,
            rounds,
            num_users=fleet.num_users,
            held_out=fleet.held_out,
            num_nodes=config.num_nodes,
            grid=grid,
            checkpoint=folder.path / "federation.ckpt",
            resume=True,
            on_round=on_round,
            on_users=on_users,
            judge=judge,
            engine_of_rank=lambda rank: make_engine(config, model, low_rank_spec(spec, rank), start, folder.path),
        )
    if status is not None:
        status.finish(result.stopped)
    vector, length = chosen_length(config.federation, model, spec, start, result.vector, fleet.validation)
    result = replace(result, vector=vector)
    published = None
    if length > 0:
        quality_public = public_quality(model, spec, result.vector, fleet.validation)
        published = leave_publication(
            folder.path,
            spec,
            result.vector,
            version=result.version,
            quality=quality_public.adapter,
            base_quality=quality_public.base,
            spent=spent_by(config.federation, result),
        )
    rows = [_row(record, errors) for record in result.rounds]
    folder.write_metrics(rows)
    if panels := panels_of_rows({"federated": rows}, base=base_quality):
        draw_panels(folder.path / CURVES_FILE, panels)
    ranks = model_ranks(model, fleet.test, spec=spec, vectors=result.vector)
    base_ranks = model_ranks(model, fleet.test)
    quality = {"base": summarise(base_ranks), "federated": summarise(ranks)}
    folder.write_summary(_summary(config, fleet.facts, quality, result, time.monotonic() - started, spec))
    gain = paired_difference(ranks, base_ranks)["ndcg@10"]
    return FederatedRunResult(federation=result, quality=quality, gain=gain, published=published, length=length)


def load_parts(config: FederatedRunConfig) -> tuple[Fleet, SASRec, AdapterSpec]:
    """Return the devices, the base with the adapter attached, and the adapter's spec."""
    model = load_base(config.base)
    if config.store is None:
        fleet = fleet_of_data(config.data, config.base, model)
    else:
        names = [field.name for field in model.config.context]
        require(not names, "base must read no context where users come from a store, which keeps none", context=names)
        fleet = fleet_of_store(
            config.store,
            load_catalogue(config.base),
            public_users=config.public_users,
            sampled_users=config.sampled_users,
            seed=config.federation.seed or 0,
        )
    return fleet, model, attach_adapter(model, config.adapter)


def _check_negatives(plan: Plan, model: SASRec) -> None:
    """Raise ConfigError, before the first round, where the plan's negatives need to know more than the base does."""
    CandidateSampler(plan, model.num_items, known_frequencies(model))


def _grid(config: FederatedRunConfig) -> AbstractContextManager[Grid | None]:
    """Return the Ray grid where it is asked for; None stands for nodes in this process."""
    if config.grid == "in-process":
        return nullcontext()
    from ownlet.simulations.ray_grid import RayGrid

    config = replace(config, base=config.base.resolve(), store=config.store and config.store.resolve())
    return RayGrid(partial(load_client_app, config), config.num_nodes, address=config.ray_address)


def load_client_app(config: FederatedRunConfig) -> ClientApp:
    """Return the app of a node that loads base and devices itself: what a Ray actor runs."""
    fleet, model, spec = load_parts(config)
    engine = make_engine(config, model, spec, initial_adapter(spec, 0), Path())
    shard = StoreShard(engine, fleet.store, config.federation.windows, held_out=fleet.held_out)
    return make_client_app(lambda context: shard, simulated=True)


def make_engine(config: FederatedRunConfig, model: SASRec, spec: AdapterSpec, vector: Vector, folder: Path) -> Engine:
    """Return the engine by name; what one engine needs is imported only for it."""
    if config.engine == "cohort":
        from ownlet.simulations.cohort import CohortEngine

        return CohortEngine(model, spec, device=config.device, dtype=getattr(torch, config.precision))
    if config.engine == "opacus":
        from ownlet.device.opacus_engine import OpacusEngine

        return OpacusEngine(model, spec)
    from ownlet.device.executorch_engine import ExecutorchEngine
    from ownlet.export.bundle import write_bundle
    from ownlet.export.objectives import program_objective

    bundle = folder / "bundle"
    plan = config.federation.plan
    write_bundle(
        bundle,
        model,
        spec,
        vector,
        version=0,
        items=load_catalogue(config.base),
        windows=config.federation.windows,
        objective=program_objective(plan.objective),
        num_negatives=plan.num_negatives,
    )
    return ExecutorchEngine.open(bundle)


def _row(record: RoundResult, errors: Mapping[int, float]) -> dict[str, Any]:
    size = {"bytes_up": record.bytes_up, "bytes_down": record.bytes_down}  # not counted under secure aggregation
    secure = {"noise_multiplier": record.noise_multiplier, "server_epsilon": record.server_epsilon}
    return {
        "round": record.round,
        "version": record.version,
        "void": record.void,
        "num_asked": record.num_asked,
        "num_nodes": record.num_nodes,
        "num_admitted": record.num_admitted,
        "num_missing": record.num_missing,
        "num_late": record.num_late,
        "rejected": "; ".join(record.rejected),
        "epsilon": record.epsilon,
        "update_norm": record.update_norm,
        "clip_norm": record.clip_norm,
        "public_ndcg@10": record.quality,
        "seconds": record.seconds,
        **({"cross_covariance": errors[record.round]} if record.round in errors else {}),
        **{name: value for name, value in {**size, **secure}.items() if value is not None},  # under secure aggregation
    }


def _summary(
    config: FederatedRunConfig,
    facts: dict[str, object],
    quality: dict[str, dict[str, Metric]],
    result: FederationResult,
    seconds: float,
    spec: AdapterSpec,
) -> dict[str, object]:
    summary: dict[str, object] = {
        "command": "simulate",
        "seconds": seconds,
        "data": facts,
        "quality": {label: plain_metrics(metrics) for label, metrics in quality.items()},
    }
    if not config.federation.secure.enabled:  # whose five messages are not counted
        summary["wire"] = traffic_of(spec, config.federation, result.rounds)
    if math.isfinite(result.epsilon):
        summary["privacy"] = {
            "federated": {
                "epsilon": result.epsilon,
                "dp_delta": config.federation.dp_delta,
                "unit": config.federation.unit,
                "rounds": len(result.rounds),
                "accountant": ACCOUNTANT,
                **_against_server(result),
            }
        }
    return summary


def _against_server(result: FederationResult) -> dict[str, float]:
    """Return what a run under secure aggregation spent against the server itself."""
    spent = result.rounds[-1].server_epsilon if result.rounds else None
    return {} if spent is None or math.isinf(spent) else {"server_epsilon": spent}
