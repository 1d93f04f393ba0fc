"""How many updates a second one server process admits and adds up, and what its memory does.

What is measured: ``run_rounds``, the whole loop of a deployed server, at user-level privacy. For every update the
server writes a request of its own with the global adapter in it, sends it, reads the reply, checks it (all of
``server/admit.py``) and adds it to the exact sum; for every round it draws the cohort, charges, adds noise and steps
the optimiser. An update is one device's delta: every device is a Flower node of its own, with one user. Requests and
replies are Flower's own messages, serialised, over TCP on the loopback; all devices are in one other process
(``load_nodes.py``), which answers each request as it comes and trains nothing.

What is not in it: SuperLink, which keeps messages in a database and is a process of its own, TLS, and training.

The server has one core's worth of Python; the process of the devices needs the other core of two, and its time is
waited for, so the figure is what both reach together. ``updates_per_cpu_second`` counts the server's own CPU time only.
Memory is the resident size of the server's process: ``rss_bytes_start`` after the first round, when everything that is
allocated once has been, ``rss_bytes_end`` after the last. The first round is warm-up and is in neither count nor time.
The accountant's distributions of the privacy loss grow with the number of rounds, to some 50 MB after twenty; what each
round will have spent is therefore computed before, so that memory here is that of messages, checks and sums.

``python -m ownlet.simulations.benchmarks.server_load`` prints both and writes ``bench/server.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ownlet.server.checkpoint import RoundResult, spent_event
from ownlet.server.rounds import run_rounds
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError, require
from ownlet.shared.privacy import epsilon
from ownlet.shared.store import write_atomic
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.load_nodes import SocketGrid, other_process

__all__ = ["Connect", "Load", "main", "measure"]

Connect = Callable[[int, int, float], AbstractContextManager[socket.socket]]
"""From the number of nodes, the numbers in a delta and the clip norm to a connection to such nodes."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a load test found.

    Args:
        updates_per_second: admitted and added up, by the wall clock.
        updates_per_cpu_second: the same by the CPU time of the server's process.
        rss_bytes_start, rss_bytes_end: resident memory of the server's process.
        updates: how many were counted.
        numbers: in each.
        devices: nodes, each of which sends one update in every round.
        bytes_per_update: of a reply, Flower's envelope included.
    """

    updates_per_second: float
    updates_per_cpu_second: float
    rss_bytes_start: int
    rss_bytes_end: int
    updates: int
    numbers: int
    devices: int
    bytes_per_update: float


def measure(
    updates: int,
    devices: int,
    numbers: int,
    *,
    connect: Connect = other_process,
    on_updates: Callable[[int], None] = lambda count: None,
) -> Load:
    """Run rounds in which every device takes part.

    Args:
        updates: to count; a multiple of ``devices``.
        devices: nodes of one user each.
        numbers: in a delta.
        connect: starts the nodes.
        on_updates: told after each round how many came in it.

    Raises:
        ConfigError: updates are not whole rounds.
        FederationError: an update was not admitted; the figures would mean nothing.
    """
    require(updates >= devices and updates % devices == 0, f"updates must be a multiple of {devices}", updates=updates)
    spec = _spec(numbers)
    config = FederationConfig(rounds=1 + updates // devices, cohort_rate=1.0, clip_norm=0.3, noise_multiplier=1.0)
    for number in range(1, config.rounds + 1):  # the rounds find these in the accountant's cache
        epsilon(spent_event(config, number, np.zeros(devices, np.int64)), config.dp_delta)
    process = psutil.Process()
    rss_start, wall, cpu, received = 0, 0.0, 0.0, 0
    with (
        connect(devices, spec.num_trainable, config.clip_norm) as connection,
        closing(SocketGrid(connection, devices)) as grid,
    ):

        def on_round(result: RoundResult, vector: Vector) -> None:
            nonlocal rss_start, wall, cpu, received
            if result.num_admitted != devices:
                raise FederationError(f"all {devices} updates must be admitted, got {result.num_admitted}")
            if result.round == 1:
                rss_start, received = process.memory_info().rss, grid.bytes_received
                wall, cpu = time.perf_counter(), time.process_time()
            else:
                on_updates(devices)

        run_rounds(grid, config, spec, np.zeros(spec.size, np.float32), devices, on_round=on_round)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rss_end = process.memory_info().rss
        received = grid.bytes_received - received
    return Load(
        updates_per_second=updates / wall,
        updates_per_cpu_second=updates / cpu,
        rss_bytes_start=rss_start,
        rss_bytes_end=rss_end,
        updates=updates,
        numbers=spec.num_trainable,
        devices=devices,
        bytes_per_update=received / updates,
    )


def _spec(numbers: int) -> AdapterSpec:
    """Return an adapter of rank 8 on layers of width 64 with so many trainable numbers (B), and as many in A."""
    require(numbers >= 512 and numbers % 512 == 0, "numbers must be a multiple of 512", numbers=numbers)
    layers = tuple(LayerShape(name=f"layer{i}", in_features=64, out_features=64) for i in range(numbers // 512))
    return AdapterSpec(layers=layers, rank=8, alpha=16.0, base_hash="b" * 64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=10_000, help="nodes, of which each sends one update a round")
    parser.add_argument("--numbers", type=int, default=7168, help="in a delta; 7168 is rank 8 on the default base")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/server.json"))
    options = parser.parse_args(arguments)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("updates", total=options.updates)
        devices = min(options.devices, options.updates)
        load = measure(options.updates, devices, options.numbers, on_updates=lambda count: bars.advance(task, count))
    grown = (load.rss_bytes_end - load.rss_bytes_start) / 2**20
    console.print(
        f"{load.updates_per_second:,.0f} updates/s ({load.updates_per_cpu_second:,.0f} per second of the server's CPU "
        f"time), {load.updates:,} updates of {load.numbers} numbers, memory {load.rss_bytes_start / 2**20:.0f} MiB "
        f"{grown:+.1f} MiB",
        highlight=False,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {**asdict(load), "cores": os.cpu_count()}
    write_atomic(options.out, (json.dumps(told, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
