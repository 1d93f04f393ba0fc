"""From which fleet on does window-level (local) privacy pay? NDCG@10 against window-level epsilon and fleet size.

Under local privacy every device adds noise of its own to every one of the P numbers that it sends, so the sum of N
devices has signal ``N g`` and noise ``sigma sqrt(N P)``, both in units of the clip. What helps:

* a step that is the shorter, the more noise there is (``shared/window_mode.py``);
* every device is asked once (``turns = 1``): K turns need sqrt(K) times the noise for the same epsilon, and give
  sqrt(K) times the signal-to-noise ratio, so nothing is won, and unequal turns lose;
* one local step whose gradient is clipped to C, at a learning rate in units of the clip;
* the length of the step is chosen afterwards, on held-out public users. Scaling what was released is post-processing
  and costs no privacy. 0 is among the lengths, so what ships is never below the base on public users.

``python -m ownlet.simulations.benchmarks.window_level`` prints a table and writes ``bench/window_level.json`` and
``.png``: the built-in population in several fleet sizes, and a data set of one's own with ``--data``. With several
``--steps`` it compares them instead. Each run's ranks are kept, so one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.shared.config import AdapterConfig
from ownlet.shared.metrics import Metric, paired_difference
from ownlet.shared.store import write_atomic
from ownlet.simulations.benchmarks.window_cells import (
    Cell,
    WindowTask,
    make_window_base,
    run_cell,
    setting_of,
)
from ownlet.simulations.progress import Silent
from ownlet.simulations.quality import epsilon_label
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.workers import worker_pool

__all__ = ["Point", "main", "smallest_fleet"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One fleet at one epsilon.

    Args:
        epsilon: window level; infinity is a run that clips and adds nothing.
        fleet: devices, each asked once.
        step: how far a gradient of length C moved the adapter; 0 is what the noise suggests.
        gain: NDCG@10 over the base on the tested devices, paired, mean over seeds.
        lengths: of the step that public users chose, per seed; 0 is nothing published.
    """

    epsilon: float
    fleet: int
    step: float
    gain: Metric
    lengths: tuple[float, ...]


def smallest_fleet(points: Sequence[Point], epsilon: float) -> int | None:
    """Return the smallest fleet from which on the interval of the gain stays above 0, or None."""
    pays = None
    for point in sorted((p for p in points if p.epsilon == epsilon), key=lambda p: -p.fleet):
        if point.gain.low <= 0:
            break
        pays = point.fleet
    return pays


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="interactions; by default the built-in population")
    parser.add_argument("--fleets", default="300,1000,3000,10000,30000", help="devices; more than there are means all")
    parser.add_argument("--epsilons", default="none,8,4,2,1")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--method", default=AdapterConfig().method, choices=("lora-frozen-a", "iak"))
    parser.add_argument("--rank", type=int, default=AdapterConfig().rank)
    parser.add_argument("--targets", default="", help="layers with commas; by default what suits the method")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--steps", default="0", help="learning rates times C, with commas; 0 follows from the noise")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    adapter = AdapterConfig(
        method=options.method,
        rank=options.rank,
        alpha=2.0 * options.rank,
        target_modules=tuple(options.targets.split(",")) if options.targets else None,
    )
    task = WindowTask(data=_data(options.data, max(_numbers(options.fleets))), adapter=adapter)
    setting, console = setting_of(task.data), Console()
    fleets = sorted({min(fleet, len(setting.devices)) for fleet in _numbers(options.fleets)})
    epsilons = [math.inf if text == "none" else float(text) for text in options.epsilons.split(",")]
    steps = [float(text) for text in options.steps.split(",")]
    kinds = [(epsilon, fleet, step) for fleet in fleets for epsilon in epsilons for step in steps]
    points = measure(task, kinds, _numbers(options.seeds), options.out, options.workers, console)
    console.print(_table(setting.data.name, points))
    for epsilon in epsilons if len(steps) == 1 else ():
        smallest = smallest_fleet(points, epsilon)
        pays = "no fleet that was tried" if smallest is None else f"{smallest:,} devices"
        console.print(f"ε {epsilon_label(epsilon)}: it pays from {pays}", highlight=False)
    path = options.out / f"window_level_{setting.data.name.replace(' ', '_')}{'' if len(steps) == 1 else '_steps'}"
    plain = [{**asdict(point), "epsilon": epsilon_label(point.epsilon)} for point in points]
    write_atomic(path.with_suffix(".json"), (json.dumps(plain, indent=1) + "\n").encode())
    console.print(f"{path}.json", highlight=False)
    if len(steps) == 1:
        _draw(setting.data.name, points).savefig(path.with_suffix(".png"), dpi=120)
        console.print(f"{path}.png", highlight=False)


def measure(
    task: WindowTask,
    kinds: Sequence[tuple[float, int, float]],
    seeds: Sequence[int],
    out: Path,
    workers: int,
    console: Console,
) -> list[Point]:
    """Run what is not on file, and return a point per (epsilon, fleet, step) over all seeds."""
    task.folder(out).mkdir(parents=True, exist_ok=True)
    cells = [Cell(epsilon=e, fleet=fleet, step=step, seed=seed) for e, fleet, step in kinds for seed in seeds]
    with worker_pool(workers, Silent()) as pool:
        trained = [pool.submit(make_window_base, task, seed, out) for seed in seeds]
        bases = [done.result() for done in track(trained, description="bases", console=console)]
        started = [(cell, pool.submit(run_cell, task, cell, out)) for cell in cells]
        found = {cell: done.result() for cell, done in track(started, description="runs", console=console)}
    points = []
    for epsilon, fleet, step in kinds:
        runs = [found[Cell(epsilon=epsilon, fleet=fleet, step=step, seed=seed)] for seed in seeds]
        gain = paired_difference(np.stack([ranks for ranks, _ in runs]), np.stack(bases))["ndcg@10"]
        lengths = tuple(length for _, length in runs)
        points.append(Point(epsilon=epsilon, fleet=fleet, step=step, gain=gain, lengths=lengths))
    return points


def _data(path: Path | None, largest: int) -> DataConfig:
    """Return the data; in the built-in population 150 users train the base and 600 more judge."""
    if path is not None:
        return DataConfig(path=path)
    users = largest + 750
    return DataConfig(num_users=users, public_fraction=750 / users, held_out_fraction=0.8)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _table(name: str, points: Sequence[Point]) -> Table:
    table = Table(title=f"{name}: gain in NDCG@10 under window-level privacy", title_justify="left")
    for column in ("devices", "ε", "step", "gain", "95 % interval", "lengths"):
        table.add_column(column, justify="right")
    for point in points:
        interval = f"{point.gain.low:+.4f} to {point.gain.high:+.4f}"
        lengths = ", ".join(f"{length:g}" for length in point.lengths)
        table.add_row(
            f"{point.fleet:,}",
            epsilon_label(point.epsilon),
            f"{point.step:g}" if point.step else "by noise",
            f"{point.gain.value:+.4f}",
            interval,
            lengths,
        )
    return table


def _draw(name: str, points: Sequence[Point]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    epsilons, fleets = sorted({p.epsilon for p in points}), sorted({p.fleet for p in points})
    for epsilon in epsilons:
        mine = sorted((p for p in points if p.epsilon == epsilon), key=lambda p: p.fleet)
        errors = [[p.gain.value - p.gain.low for p in mine], [p.gain.high - p.gain.value for p in mine]]
        label = "no noise" if math.isinf(epsilon) else f"ε = {epsilon:g}"
        left.errorbar(
            [p.fleet for p in mine], [p.gain.value for p in mine], errors, fmt="o-", markersize=4, label=label
        )
    left.set_xscale("log")
    left.set_xticks(fleets, [f"{fleet:,}" for fleet in fleets])
    left.set_xlabel("devices, each asked once")
    left.set_ylabel("gain in NDCG@10 over the base")
    for fleet in fleets:
        mine = sorted((p for p in points if p.fleet == fleet), key=lambda p: p.epsilon)
        right.plot(range(len(mine)), [p.gain.value for p in mine], "o-", markersize=4, label=f"{fleet:,} devices")
    right.set_xticks(range(len(epsilons)), [epsilon_label(epsilon) for epsilon in epsilons])
    right.set_xlabel("ε, window level")
    for axes in (left, right):
        axes.axhline(0, color="#718096", linewidth=1, linestyle="--")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{name}: window-level privacy", fontsize=11)
    return figure


if __name__ == "__main__":
    main()
