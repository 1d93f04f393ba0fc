"""Bytes of a user in a round, and quality, by the form in which deltas travel.

Every user is a device of its own: the bytes are those of its message as Flower serialises it, up and down. Beside them
stand the same delta as JSON numbers, and the whole device program (``.pte``) that another framework sends to every
device in every round. Quality is NDCG@10 of the adapter after the rounds, at user-level privacy; one form's rounds have
the cohorts, noise and trainings of the others'.

``python -m ownlet.simulations.benchmarks.wire`` prints a table and writes ``bench/wire.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.export.bundle import write_bundle
from ownlet.shared.config import AdapterConfig, FederationConfig, Plan
from ownlet.shared.delta import clip_to_norm
from ownlet.shared.manifest import PROGRAM_FILE
from ownlet.shared.store import write_atomic
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.server_task import ServerTask, gain, load_tasks
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.traffic import wire_bytes

__all__ = ["FORMS", "json_bytes", "main", "program_bytes"]

FORMS: dict[str, WireConfig] = {
    "float32": WireConfig(),
    "float16": WireConfig(name="float16"),
    "int8": WireConfig(name="int8"),
    "int8, error feedback": WireConfig(name="int8", error_feedback=True),
    "sparse 1/8": WireConfig(name="sparse"),
    "sparse 1/8, error feedback": WireConfig(name="sparse", error_feedback=True),
}


def json_bytes(num_trainable: int, clip_norm: float) -> int:
    """Return the length of a clipped delta of normal numbers as a JSON list, each as short as float32 can be read."""
    drawn = np.random.default_rng(0).normal(size=(1, num_trainable)).astype(np.float32)
    return len("[" + ",".join(str(number) for number in clip_to_norm(drawn, clip_norm)[0]) + "]")


def program_bytes(task: ServerTask) -> int:
    """Return the size of the device program of the task's base."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        config = FederationConfig()
        items = task.setting.data.items
        write_bundle(path, task.model, task.spec, task.start, version=0, items=items, windows=config.windows)
        return (path / PROGRAM_FILE).stat().st_size


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every form; print the table and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="by default the built-in population")
    parser.add_argument("--base", type=Path, action="append", default=[], help="one per seed; else they are trained")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cohort-rate", type=float, default=0.1)
    parser.add_argument("--noise-multiplier", type=float, default=1.0)
    parser.add_argument("--no-program", action="store_true", help="do not export the device program for its size")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/wire.json"))
    options = parser.parse_args(arguments)
    console = Console()
    tasks = load_tasks(DataConfig(path=options.data), options.base, options.seeds, AdapterConfig())
    config = FederationConfig(
        rounds=options.rounds,
        cohort_rate=options.cohort_rate,
        noise_multiplier=options.noise_multiplier,
        plan=Plan(steps=1, learning_rate=0.3),
    )
    spec = tasks[0].spec
    rows: list[dict[str, object]] = []
    for name in track(FORMS, "forms", console=console):
        seeded = [replace(config, wire=FORMS[name], seed=task.seed) for task in tasks]
        ranks = [task.ranks(task.run(one).vector) for task, one in zip(tasks, seeded, strict=True)]
        quality, gained = gain(tasks, ranks)
        up, down = wire_bytes(spec, seeded[0])
        found = {"ndcg@10": quality.value, "gain": gained.value, "low": gained.low, "high": gained.high}
        rows.append({"form": name, "bytes_up": up, "bytes_down": down, **found})
    others = {"float32 as JSON": json_bytes(spec.num_trainable, config.clip_norm)}
    if not options.no_program:
        others["device program (.pte)"] = program_bytes(tasks[0])
    table = Table("form", "bytes up", "of float32", "bytes down", "NDCG@10", "gain over the base")
    first = wire_bytes(spec, config)[0]
    for row in rows:
        interval = f"{row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
        sizes = f"{row['bytes_up']:,}", f"{int(str(row['bytes_up'])) / first:.2f}", f"{row['bytes_down']:,}"
        table.add_row(str(row["form"]), *sizes, f"{row['ndcg@10']:.4f}", interval)
    for name, size in others.items():
        table.add_row(name, f"{size:,}", f"{size / first:.2f}", "", "", "")
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    told = {
        "numbers": spec.num_trainable,
        "rounds": options.rounds,
        "seeds": len(tasks),
        "rows": rows,
        "others": others,
    }
    write_atomic(options.out, (json.dumps(told, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
