"""Hours until the adapter is good, by what the server does about slow devices.

Every user is a node of its own and takes as long as a trace says, by a clock that only waiting moves
(``simulations/slow_grid.py``); training itself takes none of that time. The four strategies get equally many updates:

* ``synchronous`` waits for everybody;
* ``deadline`` takes what has come by twice the trace's median, of a third more users than are wanted;
* ``first N`` asks for a third more users than are wanted, and goes on once enough have answered;
* ``FedBuff`` takes a step after a fifth of a cohort; its learning rate is a fifth, too, so that an update moves the
  adapter as far as elsewhere.

There is no noise, since the last two promise nothing with it. Quality is NDCG@10 on held-out public users.

The trace is a file with columns ``user`` and ``seconds``; users beyond its end start over. Without one it is made: one
log-normal number per user (median 60 s, sigma 1), and one user in twenty takes a Pareto number (tail index 1.1) times
as long. Each training takes what its user's row says times a log-normal number of median 1 and sigma 0.3.

``python -m ownlet.simulations.benchmarks.stragglers`` prints a table, and writes ``bench/stragglers.json``, ``.png``
and the trace, ``.csv``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.device.client import make_client_app
from ownlet.server.checkpoint import RoundResult
from ownlet.server.rounds import run_rounds
from ownlet.shared.adapter import Vector
from ownlet.shared.config import AdapterConfig, FederationConfig, Plan
from ownlet.shared.errors import require
from ownlet.shared.store import write_atomic
from ownlet.shared.straggler_config import Buffer, Stragglers
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.server_task import ServerTask, load_tasks
from ownlet.simulations.evaluate import mean_ndcg
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.slow_grid import SimulatedClock, SlowGrid

__all__ = ["Curve", "hours_to", "made_trace", "main", "measure", "read_trace", "strategies", "trace_bytes"]

_MORE = 4 / 3  # users asked for each one wanted
_STEPS = 5  # of FedBuff for one of the others


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One strategy's run.

    Args:
        hours: simulated, at each look, the start included.
        quality: NDCG@10 on public users then.
        updates: that entered the adapter.
        late: replies that were refused because they were late.
    """

    hours: tuple[float, ...]
    quality: tuple[float, ...]
    updates: int
    late: int


def made_trace(num_users: int, seed: int) -> NDArray[np.float64]:
    """Return the seconds that each user takes, (num_users,)."""
    rng = np.random.default_rng(seed)
    seconds = 60 * np.exp(rng.normal(size=num_users))
    slow = rng.random(num_users) < 1 / 20
    return np.where(slow, seconds * (1 + rng.pareto(1.1, size=num_users)), seconds)


def read_trace(path: Path) -> NDArray[np.float64]:
    """Return the column ``seconds`` of a trace, in order of its column ``user``.

    Raises:
        ConfigError: no rows, or a time that is not positive.
    """
    rows = sorted(csv.DictReader(io.StringIO(path.read_text())), key=lambda row: int(row["user"]))
    seconds = np.array([float(row["seconds"]) for row in rows])
    valid = len(seconds) > 0 and bool(np.isfinite(seconds).all()) and bool((seconds > 0).all())
    require(valid, "trace must have rows with positive seconds", path=path)
    return seconds


def trace_bytes(seconds: NDArray[np.float64]) -> bytes:
    """Return a trace as the text that ``read_trace`` reads."""
    lines = [f"{user},{taken:.3f}" for user, taken in enumerate(seconds.tolist())]
    return ("user,seconds\n" + "\n".join(lines) + "\n").encode()


def strategies(config: FederationConfig, num_users: int, median_seconds: float) -> dict[str, FederationConfig]:
    """Return the runs to compare; each is for about as many updates as the first."""
    cohort = config.cohort_rate * num_users
    size = max(1, round(cohort / _STEPS))
    return {
        "synchronous": config,
        "deadline": replace(
            config, stragglers=Stragglers(deadline_seconds=2 * median_seconds, over_selection=_MORE), quorum=0.01
        ),
        "first N": replace(config, stragglers=Stragglers(over_selection=_MORE, take_first=True), quorum=0.01),
        "FedBuff": replace(
            config,
            buffer=Buffer(size=size, concurrency=max(size, round(cohort))),
            rounds=config.rounds * _STEPS,
            server_learning_rate=config.server_learning_rate / _STEPS,
        ),
    }


def measure(task: ServerTask, config: FederationConfig, seconds: NDArray[np.float64], looks: int) -> Curve:
    """Run one strategy, and look at the adapter some times on the way."""
    num_users, shard, clock = len(task.setting.devices), task.shard(config), SimulatedClock()

    def seconds_of(user: int, times: int) -> float:
        jitter = np.random.default_rng([task.seed, user, times]).normal(scale=0.3)
        return float(seconds[user % len(seconds)] * np.exp(jitter))

    grid = SlowGrid(make_client_app(lambda context: shard, simulated=True), num_users, clock, seconds_of)
    hours, quality = [0.0], [mean_ndcg(task.model, task.setting.validation)]
    updates, late, every = 0, 0, max(1, config.rounds // looks)

    def on_round(result: RoundResult, vector: Vector) -> None:
        nonlocal updates, late
        updates, late = updates + result.num_admitted, late + result.num_late
        if result.round % every == 0 or result.round == config.rounds:
            hours.append(clock.now() / 3600)
            quality.append(mean_ndcg(task.model, task.setting.validation, spec=task.spec, vector=vector))

    run_rounds(grid, config, task.spec, task.start, num_users, on_round=on_round, clock=clock)
    return Curve(hours=tuple(hours), quality=tuple(quality), updates=updates, late=late)


def hours_to(curve: Curve, quality: float) -> float | None:
    """Return when a curve first reaches a quality, None where it does not."""
    return next((hours for hours, found in zip(curve.hours, curve.quality, strict=True) if found >= quality), None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every strategy; print the table; write file, figure and trace."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="by default the built-in population")
    parser.add_argument("--base", type=Path, action="append", default=[], help="else one is trained")
    parser.add_argument("--trace", type=Path, help="CSV with columns user and seconds; by default one is made")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cohort-rate", type=float, default=0.05)
    parser.add_argument("--looks", type=int, default=10, help="evaluations on the way")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/stragglers.json"))
    options = parser.parse_args(arguments)
    console = Console()
    logging.getLogger("ownlet").setLevel(logging.ERROR)  # late replies are what this is about
    (task,) = load_tasks(DataConfig(path=options.data), options.base[:1], 1, AdapterConfig())
    num_users = len(task.setting.devices)
    seconds = read_trace(options.trace) if options.trace else made_trace(num_users, task.seed)
    config = FederationConfig(
        rounds=options.rounds,
        cohort_rate=options.cohort_rate,
        noise_multiplier=0.0,
        seed=task.seed,
        reply_timeout_seconds=1e6,
        plan=Plan(steps=1, learning_rate=0.3),
    )
    compared = strategies(config, num_users, float(np.median(seconds)))
    curves = {
        name: measure(task, one, seconds, options.looks)
        for name, one in track(compared.items(), "strategies", console=console)
    }
    first = curves["synchronous"].quality
    target = first[0] + 0.9 * (max(first) - first[0])
    table = Table("strategy", "hours in all", f"hours to {target:.4f}", "NDCG@10", "updates", "late")
    for name, curve in curves.items():
        reached = hours_to(curve, target)
        told = "never" if reached is None else f"{reached:.2f}"
        numbers = f"{curve.quality[-1]:.4f}", f"{curve.updates:,}", str(curve.late)
        table.add_row(name, f"{curve.hours[-1]:.2f}", told, *numbers)
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"strategy": name, "hours_to_target": hours_to(curve, target), **vars(curve)} for name, curve in curves.items()
    ]
    write_atomic(options.out, (json.dumps({"target": target, "rows": rows}, indent=1) + "\n").encode())
    write_atomic(options.out.with_suffix(".csv"), trace_bytes(seconds))
    _draw(options.out.with_suffix(".png"), curves)


def _draw(path: Path, curves: dict[str, Curve]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(np.maximum(curve.hours, 1e-2), curve.quality, marker="o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("simulated hours")
    axes.set_ylabel("NDCG@10 on public users")
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
