"""Nodes that lie: NDCG@10 of the adapter by attack, by how many attack, and by how the server combines replies.

A node hosts many users; an attacking one changes the sum that it sends, in every round:

* ``sign-flip``: its sum, turned around;
* ``scaling``: turned around and ten times as long, or as long as is admitted, whichever is less;
* ``nan``: not a number;
* ``replay``: its first sum again, in every round.

There is no noise, so that only the attack and the combiner count. ``unbounded`` neither clips users nor bounds replies;
all others clip each user to the default clip norm, and a reply longer than its users can add up to is rejected.

``python -m ownlet.simulations.benchmarks.byzantine`` (``make bench-byzantine``) prints a table and writes
``bench/byzantine.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.device.client import Shard, make_client_app
from ownlet.shared.adapter import Vector
from ownlet.shared.config import AdapterConfig, FederationConfig, simulated_federation
from ownlet.shared.server_config import Robust
from ownlet.shared.store import write_atomic
from ownlet.shared.wire import decode_vector
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.server_task import ServerTask, gain, load_tasks
from ownlet.simulations.grid import InProcessGrid
from ownlet.simulations.setting import DataConfig

__all__ = ["ATTACKS", "COMBINERS", "LyingGrid", "main"]

_SCALE = 10.0

Attack = Callable[[Vector, float, Vector], Vector]
"""From a node's sum, the largest norm that is admitted, and its first sum of the run, to what it sends."""


def _scaled(total: Vector, largest: float, first: Vector) -> Vector:
    norm = float(np.linalg.norm(total))
    return np.float32(-min(_SCALE, 0.999 * largest / max(norm, 1e-12))) * total


ATTACKS: dict[str, Attack] = {
    "sign-flip": lambda total, largest, first: -total,
    "scaling": _scaled,
    "nan": lambda total, largest, first: np.full_like(total, np.nan),
    "replay": lambda total, largest, first: first,
}

_CLIPPED = replace(simulated_federation(), noise_multiplier=0.0, rounds=10, cohort_rate=0.1)
COMBINERS: dict[str, FederationConfig] = {
    "unbounded": replace(_CLIPPED, unit="none"),
    "sum": _CLIPPED,
    "median": replace(_CLIPPED, robust=Robust(name="median")),
    "trimmed-mean": replace(_CLIPPED, robust=Robust(name="trimmed-mean")),
    "norm-bound": replace(_CLIPPED, robust=Robust(name="norm-bound")),
}


class LyingGrid(InProcessGrid):
    """Some of its nodes change what they send, and send the right header with it."""

    def __init__(
        self, shard: Shard, size: int, config: FederationConfig, num_nodes: int, liars: int, attack: Attack
    ) -> None:
        """Let the first ``liars`` nodes attack; all host the same shard, with ``size`` trained numbers."""
        super().__init__(make_client_app(lambda context: shard, simulated=True), num_nodes)
        self._liars, self._attack, self._size = set(self.get_node_ids()[:liars]), attack, size
        self._clip_norm = config.delta_bound(size)
        self._first: dict[int, Vector] = {}

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out the replies, those of attackers changed."""
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.src_node_id in self._liars and "delta" in reply.content:
                self._lie(reply)
        return replies

    def _lie(self, reply: Message) -> None:
        total = decode_vector(reply.content, "delta", "total", self._size)
        first = self._first.setdefault(reply.metadata.src_node_id, total)
        header = reply.content["reply"]
        assert isinstance(header, ConfigRecord)  # what our own client app answers
        users = header["num-users"]
        assert isinstance(users, int)
        changed = self._attack(total, users * self._clip_norm, first)
        reply.content["delta"] = ArrayRecord({"total": Array(changed.astype(np.float32))})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every combiner under every attack; print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="by default the built-in population")
    parser.add_argument("--base", type=Path, action="append", default=[], help="one per seed; else they are trained")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--shares", default="0.1,0.3", help="of nodes that attack")
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--combiners", default=",".join(COMBINERS))
    parser.add_argument("--out", type=file_to_write, default=Path("bench/byzantine.json"))
    options = parser.parse_args(arguments)
    console = Console()
    tasks = load_tasks(DataConfig(path=options.data), options.base, options.seeds, AdapterConfig())
    shares = [float(share) for share in options.shares.split(",")]
    cells = [("none", 0.0)] + [(attack, share) for attack in options.attacks.split(",") for share in shares]
    names = options.combiners.split(",")
    found: dict[tuple[str, str, float], dict[str, float]] = {}
    for (attack, share), name in track(list(product(cells, names)), "attacks", console=console):
        found[name, attack, share] = _run(tasks, COMBINERS[name], ATTACKS.get(attack), options.nodes, share)
    table = Table("attack", "nodes", *names, title="gain in NDCG@10 over the base, and its 95 % interval")
    for attack, share in cells:
        rows = [found[name, attack, share] for name in names]
        told = [f"{row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})" for row in rows]
        table.add_row(attack, f"{share:.0%}", *told)
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    every = [
        {"combiner": name, "attack": attack, "share": share, **row} for (name, attack, share), row in found.items()
    ]
    written = {"nodes": options.nodes, "seeds": len(tasks), "rows": every}
    write_atomic(options.out, (json.dumps(written, indent=1) + "\n").encode())


def _run(
    tasks: list[ServerTask], config: FederationConfig, attack: Attack | None, num_nodes: int, share: float
) -> dict[str, float]:
    ranks: list[NDArray[np.int64]] = []
    for task in tasks:
        seeded = replace(config, seed=task.seed)
        liars = round(share * num_nodes) if attack is not None else 0
        shard, size = task.shard(seeded), task.spec.num_trainable
        grid = LyingGrid(shard, size, seeded, num_nodes, liars, attack or ATTACKS["replay"])
        ranks.append(task.ranks(task.run(seeded, grid).vector))
    quality, gained = gain(tasks, ranks)
    return {"ndcg@10": quality.value, "gain": gained.value, "low": gained.low, "high": gained.high}


if __name__ == "__main__":
    main()
