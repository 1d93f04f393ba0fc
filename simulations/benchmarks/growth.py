"""How time and peak memory of a round grow with the population, the cohort, the rank and the catalogue.

Each point is a process of its own (``cohort_flower``). On each axis the exponent k of ``cost ~ size^k`` is fitted by
least squares on logarithms: 0 is no growth, 1 is proportional.

``python -m ownlet.simulations.benchmarks.growth`` prints a table and writes ``bench/growth.json`` and ``growth.png``.
2026-11-22, 2 cores (Sapphire Rapids, shared), 24 GiB, torch 2.13: exponents of time and memory 0.00 and 0.09 in users,
0.92 and 0.12 in the cohort, 0.27 and 0.06 in the rank, 0.59 and 0.05 in items (0.05 and 0.05 with 128 negatives).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.shared.store import write_atomic
from ownlet.simulations.benchmarks.cohort_flower import measure_cohort
from ownlet.simulations.benchmarks.workload import Workload

__all__ = ["Axis", "Point", "exponent", "main"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement: the size on its axis, seconds per user of a cohort, and peak memory of the process."""

    size: int
    seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What grows, the sizes that are measured, and how the rest is set.

    Args:
        name: ``users``, ``cohort``, ``rank``, ``items`` or ``items, 128 negatives``.
        sizes: in rising order.
        cohort: users in a round, where the cohort is not what grows.
        num_negatives: of a sampled softmax; 0 is the full one.
    """

    name: str
    sizes: tuple[int, ...]
    cohort: int
    num_negatives: int = 0

    def measure(self, size: int, threads: int) -> Point:
        """Measure one size: seconds of a whole round."""
        workload = Workload(
            num_items=size if self.name.startswith("items") else 1000, rank=size if self.name == "rank" else 8
        )
        cohort = size if self.name == "cohort" else self.cohort
        speed = measure_cohort(
            cohort,
            4,
            population=size if self.name == "users" else cohort,
            threads=threads,
            num_negatives=self.num_negatives,
            workload=workload,
        )
        return Point(size=size, seconds=cohort / speed.users_per_second, peak_rss_bytes=speed.peak_rss_bytes)


AXES = (
    Axis(name="users", sizes=(10_000, 100_000, 1_000_000), cohort=500),
    Axis(name="cohort", sizes=(250, 500, 1000, 2000, 4000), cohort=0),
    Axis(name="rank", sizes=(4, 8, 16, 32), cohort=300),
    Axis(name="items", sizes=(1000, 10_000, 100_000), cohort=100),
    Axis(name="items, 128 negatives", sizes=(1000, 10_000, 100_000), cohort=100, num_negatives=128),
)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return k of ``cost ~ size^k``, by least squares on logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args(arguments)
    console = Console()
    points: dict[str, list[Point]] = {}
    for axis in AXES:
        sizes = track(axis.sizes, description=axis.name, console=console)
        points[axis.name] = [axis.measure(size, options.threads) for size in sizes]
    console.print(_table(points))
    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        name: {
            "points": [asdict(point) for point in found],
            "time_exponent": exponent([p.size for p in found], [p.seconds for p in found]),
            "memory_exponent": exponent([p.size for p in found], [p.peak_rss_bytes for p in found]),
        }
        for name, found in points.items()
    }
    write_atomic(options.out / "growth.json", (json.dumps(result, indent=1) + "\n").encode())
    _draw(points).savefig(options.out / "growth.png", dpi=120)
    console.print(f"{options.out / 'growth.json'}, {options.out / 'growth.png'}", highlight=False)


def _table(points: dict[str, list[Point]]) -> Table:
    table = Table(title="one round, and how it grows")
    for column in ("axis", "size", "seconds", "peak MiB", "exponent of time", "of memory"):
        table.add_column(column, justify="left" if column == "axis" else "right")
    for name, found in points.items():
        sizes = [point.size for point in found]
        time = exponent(sizes, [point.seconds for point in found])
        memory = exponent(sizes, [point.peak_rss_bytes for point in found])
        for at, point in enumerate(found):
            last = at == len(found) - 1
            table.add_row(
                name if at == 0 else "",
                f"{point.size:,}",
                f"{point.seconds:.2f}",
                f"{point.peak_rss_bytes / 2**20:.0f}",
                f"{time:.2f}" if last else "",
                f"{memory:.2f}" if last else "",
                end_section=last,
            )
    return table


def _draw(points: dict[str, list[Point]]) -> Figure:
    figure = Figure(figsize=(3.2 * len(points), 5.6), layout="constrained")
    labels = ("seconds per round", "peak memory, MiB")
    panels = figure.subplots(2, len(points), squeeze=False)
    for column, (name, found) in enumerate(points.items()):
        sizes = [point.size for point in found]
        both = [point.seconds for point in found], [point.peak_rss_bytes / 2**20 for point in found]
        for row, (label, costs) in enumerate(zip(labels, both, strict=True)):
            panel = panels[row][column]
            panel.loglog(sizes, costs, "o-", color="#2b6cb0")
            panel.set_ylim(min(costs) / 3, max(costs) * 3)
            panel.set_title(f"{name}: exponent {exponent(sizes, costs):.2f}", fontsize=9)
            panel.set_xlabel(name if row else "")
            panel.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
            panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
            panel.set_ylabel("" if column else label)
            panel.grid(True, which="both", alpha=0.25)
    return figure


if __name__ == "__main__":
    main()
