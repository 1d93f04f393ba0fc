"""The job behind ``ownlet sweep``: which rank, alpha, layers and learning rate to take, judged on public users only.

Every cell of the grid is a federated run of its own over the same base, devices, cohorts and seed. Cells are judged on
held-out public users, and devices' results are not even computed: choosing by them would spend privacy that nobody
counts. The number of runs that were compared, the tuning budget, is stated beside the winner: the best of many is a
little lucky. Rounds on devices are never free: in a deployment the cells would spend their epsilon one on top of the
other, and what that comes to is stated too.
"""

from __future__ import annotations

import io
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from ownlet.server.checkpoint import RoundResult, spent_event
from ownlet.shared.adapter import Vector
from ownlet.shared.errors import DataError, require
from ownlet.shared.lora import attach_adapter
from ownlet.shared.methods import rounds_for, targets_of
from ownlet.shared.metrics import Metric, summarise
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.shared.store import write_atomic
from ownlet.simulations.curves import Line, Panel, draw_panels
from ownlet.simulations.evaluate import mean_ndcg, model_ranks
from ownlet.simulations.federated_run import FederatedRunConfig, load_parts, make_engine
from ownlet.simulations.fleet import Fleet
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.progress import Progress, Step
from ownlet.simulations.results import RunFolder, plain_json
from ownlet.simulations.run import simulate
from ownlet.simulations.start import start_adapter

__all__ = ["Cell", "CellResult", "SweepConfig", "SweepResult", "cells_of", "run_sweep"]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A grid over a federated run.

    Args:
        run: what all cells share. Its unit must be ``user`` or ``none``.
        ranks: ranks to try.
        alphas: alphas to try; none is twice the rank of each cell.
        targets: layers to try, each a tuple of last parts of names; none is what suits the method.
        learning_rates: of the local steps; none is that of the run.
    """

    run: FederatedRunConfig
    ranks: tuple[int, ...] = (2, 4, 8)
    alphas: tuple[float, ...] = ()
    targets: tuple[tuple[str, ...], ...] = ()
    learning_rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        unit = self.run.federation.unit
        require(unit in ("user", "none"), "unit of a sweep must be user or none", unit=unit)
        require(len(self.ranks) > 0, "ranks must be at least one", ranks=self.ranks)
        for name in ("ranks", "alphas", "targets", "learning_rates"):
            values = getattr(self, name)
            require(len(set(values)) == len(values), f"{name} must differ from each other", **{name: values})


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the grid."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    learning_rate: float

    @property
    def name(self) -> str:
        """A file name that tells the cell from every other."""
        return f"rank{self.rank}-alpha{self.alpha:g}-{'+'.join(self.targets)}-lr{self.learning_rate:g}"


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What came of a cell.

    Args:
        cell: which.
        num_trained: numbers that devices train and send.
        ndcg: NDCG@10 on held-out public users.
        rounds: that were run.
        epsilon: that this run alone spent, infinity without privacy.
        seconds: that it took.
    """

    cell: Cell
    num_trained: int
    ndcg: Metric
    rounds: int
    epsilon: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Cells with the best first, the base on the same users, and what all runs together would spend on one fleet."""

    cells: tuple[CellResult, ...]
    base: Metric
    total_epsilon: float


def cells_of(config: SweepConfig) -> tuple[Cell, ...]:
    """Return the cells of the grid, in order."""
    targets = config.targets or (targets_of(config.run.adapter),)
    rates = config.learning_rates or (config.run.federation.plan.learning_rate,)
    return tuple(
        Cell(rank=rank, alpha=alpha, targets=places, learning_rate=rate)
        for places, rank, rate in itertools.product(targets, config.ranks, rates)
        for alpha in (config.alphas or (2.0 * rank,))
    )


def run_sweep(config: SweepConfig, folder: RunFolder, progress: Progress) -> SweepResult:
    """Run every cell that is not done yet; leave ``sweep.json``, ``sweep.parquet`` and ``sweep.png``.

    Args:
        config: the grid.
        folder: of this run; cells from an interrupted one are kept.
        progress: told of cells and rounds.

    Raises:
        DataError: base or data cannot be read.
        ConfigError: a cell's layers are not in the base.
    """
    started = time.monotonic()
    fleet, _, _ = load_parts(config.run)
    base = summarise(model_ranks(load_base(config.run.base), fleet.validation))["ndcg@10"]
    cells = cells_of(config)
    results: list[CellResult] = []
    for cell in cells:  # a misspelt layer is found before the first round
        attach_adapter(load_base(config.run.base), _run_of(config, cell).adapter)
    with progress.stage(f"{len(cells)} runs", len(cells)) as step:
        for cell in cells:
            path = folder.path / "cells" / f"{cell.name}.json"
            if path.exists():
                results.append(_load_cell(path))
            else:
                results.append(_run_cell(_run_of(config, cell), cell, fleet, progress, step))
                _save_cell(path, results[-1])
            best = max(results, key=lambda result: result.ndcg.value)
            step(f"best so far: {best.cell.name}, NDCG@10 {best.ndcg.value:.4f}", 1.0)
    ordered = tuple(sorted(results, key=lambda result: (-result.ndcg.value, result.num_trained)))
    result = SweepResult(cells=ordered, base=base, total_epsilon=_total_epsilon(config, ordered))
    _write(result, folder, fleet, time.monotonic() - started)
    return result


def _run_of(config: SweepConfig, cell: Cell) -> FederatedRunConfig:
    run = config.run
    adapter = replace(run.adapter, rank=cell.rank, alpha=cell.alpha, target_modules=cell.targets)
    plan = replace(run.federation.plan, learning_rate=cell.learning_rate)
    return replace(run, adapter=adapter, federation=replace(run.federation, plan=plan))


def _run_cell(run: FederatedRunConfig, cell: Cell, fleet: Fleet, progress: Progress, step: Step) -> CellResult:
    started = time.monotonic()
    model = load_base(run.base)
    spec = attach_adapter(model, run.adapter)
    federation = rounds_for(run.adapter, run.federation)
    start = start_adapter(
        run.adapter, run.compression, model, spec, fleet.public, federation.windows, federation.seed or 0, progress
    )

    def judge(number: int, vector: Vector) -> float | None:
        looks = federation.patience and (number % run.evaluate_every == 0 or number == federation.rounds)
        return mean_ndcg(model, fleet.validation, spec=spec, vector=vector) if looks else None

    def on_round(result: RoundResult, vector: Vector) -> None:
        step(f"{cell.name}: round {result.round} of {federation.rounds}", 0.0)

    result = simulate(
        make_engine(run, model, spec, start, run.base.parent),
        fleet.store,
        start,
        federation,
        num_users=fleet.num_users,
        held_out=fleet.held_out,
        num_nodes=run.num_nodes,
        on_round=on_round,
        judge=judge,
    )
    ranks = model_ranks(model, fleet.validation, spec=spec, vectors=result.vector)
    return CellResult(
        cell=cell,
        num_trained=spec.num_trainable,
        ndcg=summarise(ranks)["ndcg@10"],
        rounds=len(result.rounds),
        epsilon=result.epsilon,
        seconds=time.monotonic() - started,
    )


def _save_cell(path: Path, result: CellResult) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(plain_json(result)).encode())


def _load_cell(path: Path) -> CellResult:
    try:
        raw = json.loads(path.read_bytes())
        cell = Cell(**{**raw["cell"], "targets": tuple(raw["cell"]["targets"])})
        return CellResult(**{**raw, "cell": cell, "ndcg": Metric(**raw["ndcg"]), "epsilon": float(raw["epsilon"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cell must be a file that a sweep wrote, got {path}: {error!r}") from error


def _total_epsilon(config: SweepConfig, cells: Sequence[CellResult]) -> float:
    """Return what the rounds of all cells would spend if one fleet had run them."""
    federation, rounds = config.run.federation, sum(cell.rounds for cell in cells)
    if federation.unit != "user":
        return epsilon(user_level_event(federation.cohort_rate, 0.0, rounds), federation.dp_delta)
    return epsilon(spent_event(federation, rounds, np.array([federation.turns * len(cells)])), federation.dp_delta)


def _write(result: SweepResult, folder: RunFolder, fleet: Fleet, seconds: float) -> None:
    rows = [
        {
            "rank": found.cell.rank,
            "alpha": found.cell.alpha,
            "targets": ", ".join(found.cell.targets),
            "learning_rate": found.cell.learning_rate,
            "num_trained": found.num_trained,
            "public_ndcg@10": found.ndcg.value,
            "public_ndcg@10_low": found.ndcg.low,
            "public_ndcg@10_high": found.ndcg.high,
            "rounds": found.rounds,
            "epsilon": found.epsilon,
            "seconds": found.seconds,
        }
        for found in result.cells
    ]
    told = {"runs_compared": len(rows), "total_epsilon": result.total_epsilon, "base": asdict(result.base)}
    write_atomic(folder.path / "sweep.json", json.dumps(plain_json({**told, "cells": rows}), indent=2).encode() + b"\n")
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    write_atomic(folder.path / "sweep.parquet", buffer.getvalue())
    draw_panels(folder.path / "sweep.png", _panels(result))
    folder.write_summary({"command": "sweep", "seconds": seconds, "data": fleet.facts})


def _panels(result: SweepResult) -> tuple[Panel, Panel]:
    """Return quality by rank, the best alpha and rate of each, and quality by the numbers that devices send."""
    places = list(dict.fromkeys(found.cell.targets for found in result.cells))
    by_rank, by_size = [], []
    for colour, targets in enumerate(sorted(places)):
        mine = [found for found in result.cells if found.cell.targets == targets]
        ranks = sorted({found.cell.rank for found in mine})
        best = [max(found.ndcg.value for found in mine if found.cell.rank == rank) for rank in ranks]
        label, sizes = ", ".join(targets), [found.num_trained for found in mine]
        by_rank.append(Line(label=label, x=ranks, y=best, colour=colour))
        values = [found.ndcg.value for found in mine]
        by_size.append(Line(label=label, x=sizes, y=values, colour=colour, joined=False))
    level = result.base.value
    return (
        Panel(title="NDCG@10 on public users, best of each rank", axis="rank", lines=tuple(by_rank), level=level),
        Panel(title="NDCG@10 on public users, every run", axis="trained numbers", lines=tuple(by_size), level=level),
    )
