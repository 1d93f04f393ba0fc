"""Strategies of the server x {no privacy, user-level epsilons}: NDCG@10 and its gain over the base.

Everything that is tuned is tuned in a rehearsal on public users (``simulations/strategies.py``). What is done is kept
in OUT/quality, where parts of ``ownlet bench quality`` with the same settings are used, too; an interrupted benchmark
goes on where it was.

``python -m ownlet.simulations.benchmarks.strategies`` prints a table and writes ``bench/strategies.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ownlet.shared.errors import require
from ownlet.shared.metrics import paired_difference, summarise
from ownlet.shared.store import write_atomic
from ownlet.simulations.progress import Step
from ownlet.simulations.quality import epsilon_label
from ownlet.simulations.quality_config import QualityConfig, quality_data
from ownlet.simulations.strategies import STRATEGIES, StrategyResult, run_strategies

__all__ = ["main", "strategy_rows", "strategy_table"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every strategy at every epsilon; print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="by default the built-in population")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--epsilons", default="none,8,2", help="none is a run without noise")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cohort", type=int, default=800, help="devices in a round, at the most a fifth of all")
    parser.add_argument("--tested", type=int, default=4000, help="devices that results are measured on, at the most")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 is one per core")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="of strategies.json, and of the parts")
    options = parser.parse_args(arguments)
    console, names = Console(), tuple(options.strategies.split(","))
    require(set(names) <= set(STRATEGIES), f"strategies must be among {', '.join(STRATEGIES)}", strategies=names)
    config = QualityConfig(
        data=(quality_data(options.data, cohort=options.cohort, tested=options.tested),),
        epsilons=tuple(math.inf if part == "none" else float(part) for part in options.epsilons.split(",")),
        seeds=tuple(int(part) for part in options.seeds.split(",")),
    )
    config = replace(config, federation=replace(config.federation, rounds=options.rounds))
    workers = options.workers or os.cpu_count() or 1
    base, results = run_strategies(config, names, options.out / "quality", _Lines(console), workers=workers)
    rows = strategy_rows(base, results)
    told = {
        "data": config.data[0].name,
        "devices": base.shape[1],
        "seeds": list(config.seeds),
        "rounds": config.federation.rounds,
        "cohort_rate": config.data[0].cohort_rate,
        "base": asdict(summarise(base)["ndcg@10"]),
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / "strategies.json", (json.dumps(told, indent=1, allow_nan=False) + "\n").encode())
    base_ndcg = summarise(base)["ndcg@10"].value
    title = f"{config.data[0].name}: NDCG@10 on {base.shape[1]:,} devices (gain over the base, {base_ndcg:.4f})"
    console.print(strategy_table(rows, title))


def strategy_rows(base: NDArray[np.int64], results: Sequence[StrategyResult]) -> list[dict[str, Any]]:
    """Return what the file holds of every strategy and epsilon.

    Args:
        base: (seeds, tested) ranks of the bases.
        results: what strategies gave.
    """
    rows = []
    for result in results:
        strategy, choice = STRATEGIES[result.name], result.choice
        row: dict[str, Any] = {
            "strategy": result.name,
            "method": strategy.method,
            "server_optimizer": strategy.optimizer,
            "epsilon": epsilon_label(result.epsilon),
            "ndcg@10": asdict(summarise(result.ranks)["ndcg@10"]),
            "gain": asdict(paired_difference(result.ranks, base)["ndcg@10"]),
            "learning_rate": choice.learning_rate,
            "server_learning_rate": choice.server_learning_rate,
            "clip_norm": choice.clip_norm if math.isfinite(choice.clip_norm) else None,
        }
        if result.errors is not None:
            row["cross_covariance"] = float(result.errors.mean())
            row["cross_covariance_by_round"] = result.errors.mean(axis=0).tolist()
        rows.append(row)
    return rows


def strategy_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """Return the rows as a table: a line per strategy, a column per epsilon."""
    labels = list(dict.fromkeys(row["epsilon"] for row in rows))
    heads = ["no privacy" if label == "none" else f"ε = {label}" for label in labels]
    table = Table("strategy", *heads, "error of the average", title=title, title_justify="left")
    for name in dict.fromkeys(row["strategy"] for row in rows):
        mine = {row["epsilon"]: row for row in rows if row["strategy"] == name}
        cells = []
        for label in labels:
            gain = mine[label]["gain"]
            interval = f"{gain['value']:+.4f}, {gain['low']:+.4f} to {gain['high']:+.4f}"
            cells.append(f"{mine[label]['ndcg@10']['value']:.4f}\n({interval})")
        errors = [f"{mine[label]['cross_covariance']:.2g}" for label in labels if "cross_covariance" in mine[label]]
        table.add_row(name, *cells, ", ".join(errors))
    return table


class _Lines:
    """The ``Progress`` of this benchmark: a line for every stage that is over."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """Open a stage; see ``Progress``."""
        yield lambda note, share=1.0: None
        self._console.print(name, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
