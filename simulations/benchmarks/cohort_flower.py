"""The cohort engine through Flower: ServerApp, ClientApp and messages as deployed.

Nodes are either one node in this process whose engine uses several threads, or processes of one thread each (Ray).

Everything that a round does is timed: drawing the cohort, accounting, the message both ways, cutting windows, training,
clipping, summing, the server's step. A measurement runs in a process of its own, so that its peak memory is its own:
``python -m ownlet.simulations.benchmarks.cohort_flower --cohort 500``.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import ownlet.shared.quiet  # noqa: F401

# isort: split

import torch
from flwr.clientapp import ClientApp

from ownlet.device.client import make_client_app
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import require
from ownlet.simulations.benchmarks.processes import last_json, run_command
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.ray_grid import RayGrid
from ownlet.simulations.run import simulate
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["CohortSpeed", "measure_cohort"]

_DEFAULT = Workload()
_USER_PLAN = Plan(steps=DP_PLAN.steps, learning_rate=DP_PLAN.learning_rate, expected_batch=DP_PLAN.expected_batch)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class CohortSpeed:
    """What a measurement gives.

    Args:
        users_per_second: median over rounds after the first.
        round_seconds: of every round.
        peak_rss_bytes: of the process.
    """

    users_per_second: float
    round_seconds: tuple[float, ...]
    peak_rss_bytes: int


def measure_cohort(
    cohort: int,
    rounds: int = 4,
    *,
    population: int | None = None,
    unit: str = "window",
    threads: int = 1,
    grid: str = "in-process",
    dtype: str = "float32",
    num_negatives: int = 0,
    workload: Workload = _DEFAULT,
) -> CohortSpeed:
    """Time rounds in a process of their own.

    Args:
        cohort: users in a round; exactly, where the population is no larger, else on average.
        rounds: at least 2; the first is a warm-up.
        population: users in all; by default the cohort.
        unit: ``window`` is DP-SGD on every user (``DP_PLAN``); ``user`` has the same steps without it, and clips whole
            deltas.
        threads: cores that may be used: threads of one engine, or nodes of a Ray grid.
        grid: ``in-process`` or ``ray``.
        dtype: ``float32`` or ``bfloat16``.
        num_negatives: of a sampled softmax; 0 is the full one.
        workload: the users and the base.

    Raises:
        FederationError: the process failed.
    """
    require(rounds >= 2, "rounds must be at least 2", rounds=rounds)
    options = {
        "cohort": cohort,
        "rounds": rounds,
        "population": population or cohort,
        "unit": unit,
        "threads": threads,
        "grid": grid,
        "dtype": dtype,
        "negatives": num_negatives,
        "workload": json.dumps(asdict(workload)),
    }
    command = [sys.executable, "-m", "ownlet.simulations.benchmarks.cohort_flower"]
    command += [f"--{name}={value}" for name, value in options.items()]
    found = last_json(run_command(command))
    return CohortSpeed(**{**found, "round_seconds": tuple(found["round_seconds"])})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure in this process and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohort", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--population", type=int, default=None)
    parser.add_argument("--unit", choices=("window", "user"), default="window")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--grid", choices=("in-process", "ray"), default="in-process")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="float32")
    parser.add_argument("--negatives", type=int, default=0)
    parser.add_argument("--workload", type=json.loads, default={})
    options = parser.parse_args(arguments)
    print(json.dumps(asdict(_measure(options))))


def _measure(options: argparse.Namespace) -> CohortSpeed:
    workload = Workload(**options.workload)
    population = options.population or options.cohort
    model, spec, vector = workload.base()
    plan = replace(DP_PLAN if options.unit == "window" else _USER_PLAN, num_negatives=options.negatives)
    config = FederationConfig(
        rounds=options.rounds,
        cohort_rate=options.cohort / population,
        unit=options.unit,
        clip_norm=100.0 if options.unit == "window" else 0.3,
        noise_multiplier=0.0 if options.unit == "window" else 1.0,
        seed=0,
        plan=plan,
        windows=workload.windows,
    )
    engine = CohortEngine(model, spec, threads=options.threads, dtype=_DTYPES[options.dtype])
    with tempfile.TemporaryDirectory() as folder:
        store = workload.store(Path(folder) / "store", population)
        load = partial(_load_client_app, workload, Path(folder) / "store", options.dtype)
        with RayGrid(load, options.threads) if options.grid == "ray" else nullcontext() as grid:
            result = simulate(engine, store, vector, config, grid=grid)
    rates = [record.num_asked / record.seconds for record in result.rounds[1:]]
    return CohortSpeed(
        users_per_second=statistics.median(rates),
        round_seconds=tuple(record.seconds for record in result.rounds),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _load_client_app(workload: Workload, store: Path, dtype: str) -> ClientApp:
    model, spec, _ = workload.base()
    engine = CohortEngine(model, spec, threads=1, dtype=_DTYPES[dtype])
    shard = StoreShard(engine, EventStore.open(store), workload.windows)
    return make_client_app(lambda context: shard, simulated=True)


if __name__ == "__main__":
    from ownlet.simulations.benchmarks.cohort_flower import main as importable  # so that Ray pickles by name

    importable()
