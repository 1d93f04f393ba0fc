"""Users per second, four ways, taking turns in one run.

The same base, adapter, windows and steps: 4 windows of 20 events per user, 3 local steps, d = 64, rank 8, 1,000 items,
the full softmax.

* ``flower_opacus``: stock Flower on Ray, one Opacus client per user (``flower_opacus``, variant ``cached``).
* ``opacus_loop``: our Opacus engine, one user after the other, no federation around it.
* ``cohort``: the cohort engine through Flower, DP-SGD on every user as in the first two.
* ``pfl``: apple/pfl-research in an environment of its own. It clips and noises whole updates and knows no DP-SGD, so it
  does less; ``cohort_user`` is the cohort engine doing that too.

``python -m ownlet.simulations.benchmarks.users_per_second --cohorts 50,500`` prints a table and writes
``bench/cohort.json`` for a cohort of 500. Median of 3, 2026-11-22, 2 shared cores (Sapphire Rapids), torch 2.13:

===============  =========  ==========
users/s          cohort 50  cohort 500
===============  =========  ==========
flower_opacus    30         21
opacus_loop      30         29
cohort           183        312
cohort_bfloat16  193        408
pfl              84         79
cohort_user      202        337
===============  =========  ==========
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import ownlet.shared.quiet  # noqa: F401

# isort: split

from rich.console import Console
from rich.table import Table

from ownlet.shared.errors import require
from ownlet.shared.store import write_atomic
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.cohort_flower import measure_cohort
from ownlet.simulations.benchmarks.flower_opacus import measure_flower_opacus
from ownlet.simulations.benchmarks.matmul_limit import measure_limit
from ownlet.simulations.benchmarks.opacus_loop import measure_opacus_loop
from ownlet.simulations.benchmarks.pfl_environment import measure_pfl

__all__ = ["main", "measure"]

_LOOP_USERS = 60
_FLOWER_COHORT = 1000  # above it Flower's simulation takes hours, growing with the square of the cohort


def measure(cohort: int, repeats: int, threads: int, told: Callable[[str], None]) -> dict[str, list[float]]:
    """Return each way's users per second, one figure per repeat; ways take turns.

    Args:
        cohort: users in a round.
        repeats: how often each is measured; every measurement is itself a median over rounds.
        threads: cores that each may use.
        told: called before every measurement with what it is.
    """
    ways: dict[str, Callable[[], float]] = {
        "flower_opacus": lambda: measure_flower_opacus(cohort, 3),
        "cohort": lambda: measure_cohort(cohort, 4, threads=threads).users_per_second,
        "opacus_loop": lambda: measure_opacus_loop(min(cohort, _LOOP_USERS), num_threads=threads),
        "pfl": lambda: measure_pfl(cohort - cohort % threads, 3, threads),
        "cohort_user": lambda: measure_cohort(cohort, 4, unit="user", threads=threads).users_per_second,
        "cohort_bfloat16": lambda: measure_cohort(cohort, 4, threads=threads, dtype="bfloat16").users_per_second,
    }
    if cohort > _FLOWER_COHORT:
        del ways["flower_opacus"]
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            told(f"{name}, cohort {cohort}")
            found[name].append(way())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", default="500", help="comma-separated")
    parser.add_argument("--cohort", type=int, default=500, help="of the file, one of them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=file_to_write, default=Path("bench/cohort.json"))
    options = parser.parse_args(arguments)
    cohorts = [int(text) for text in options.cohorts.split(",")]
    require(options.cohort in cohorts, "cohort must be one of the cohorts", cohort=options.cohort, cohorts=cohorts)
    console = Console()
    rates: dict[int, dict[str, list[float]]] = {}
    with console.status("") as status:
        for cohort in cohorts:
            repeats = options.repeats if cohort <= _FLOWER_COHORT else 1  # a large cohort is steady, and takes minutes
            rates[cohort] = measure(cohort, repeats, options.threads, status.update)
    console.print(_table(rates))
    speed = measure_cohort(options.cohort, 3, threads=options.threads)
    result = {
        "users_per_second": {name: statistics.median(found) for name, found in rates[options.cohort].items()},
        "cohort_size": options.cohort,
        "matmul_fraction": measure_limit().fraction,
        "peak_rss_bytes": speed.peak_rss_bytes,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, (json.dumps(result, indent=1) + "\n").encode())
    console.print(f"matmul_fraction {result['matmul_fraction']:.2f}, peak RSS {speed.peak_rss_bytes / 2**20:.0f} MiB")
    console.print(f"{options.out}", highlight=False)


def _table(rates: dict[int, dict[str, list[float]]]) -> Table:
    table = Table(title="users per second: median (lowest to highest)")
    table.add_column("")
    for cohort in rates:
        table.add_column(f"cohort {cohort}", justify="right")
    for name in max(rates.values(), key=len):
        table.add_row(name, *(_cell(found.get(name)) for found in rates.values()))
    return table


def _cell(found: list[float] | None) -> str:
    return f"{statistics.median(found):.0f} ({min(found):.0f} to {max(found):.0f})" if found else "not run"


if __name__ == "__main__":
    main()
