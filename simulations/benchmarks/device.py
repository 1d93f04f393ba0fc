"""Everything that is measured about a device: latency, size, memory, the ledger, long histories, and faults.

    python -m ownlet.simulations.benchmarks.device --out bench/device.json

Times are medians of calls that take turns in one process, on one thread. Faults are done to real processes, on a bundle
of a small base.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ownlet.export.bundle import write_bundle
from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import ModelConfig, WindowConfig
from ownlet.shared.interactions import Item
from ownlet.shared.store import write_atomic
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.device_history import recommend_milliseconds
from ownlet.simulations.benchmarks.device_latency import SIZES, measure_sizes, random_base
from ownlet.simulations.benchmarks.ledger_charge import charge_milliseconds
from ownlet.simulations.benchmarks.processes import last_json, run_command

__all__ = ["main", "measure_device"]

_LEDGER_ENTRIES = 10_000
_FAULT_BASE, _FAULT_ITEMS = ModelConfig(dim=16, num_layers=1, max_length=12), 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="items, comma-separated")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--kills", type=int, default=200, help="processes to kill")
    parser.add_argument("--out", type=file_to_write, default=Path("bench/device.json"))
    options = parser.parse_args(arguments)
    sizes, console = [int(size) for size in options.sizes.split(",")], Console()
    with console.status("latency and size"):
        found = measure_device(sizes, options.repeats, options.kills)
    for table in _tables(found):
        console.print(table)
    write_atomic(options.out, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    console.print(f"written to {options.out}")


def measure_device(sizes: Sequence[int], repeats: int, kills: int) -> dict[str, Any]:
    """Return all figures.

    Args:
        sizes: of catalogues.
        repeats: timed calls of each kind.
        kills: processes to kill.

    Returns:
        What ``device_latency.measure_sizes`` returns, and ``ledger_charge_ms`` (open and charge, at 10,000 entries),
        ``ledger`` (the same, and a charge on an open ledger, by entries), ``recommend_ms_by_events`` and ``faults``
        (name -> trials, losses).
    """
    found = measure_sizes(sizes, repeats=repeats)
    ledger = charge_milliseconds(_LEDGER_ENTRIES, repeats=repeats)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _small_bundle(Path(folder) / "bundle")
        events = recommend_milliseconds(bundle, repeats=repeats)
        faults = last_json(_run("device_faults", "--bundle", str(bundle), "--kills", str(kills)))
    for name, counted in last_json(_run("ledger_faults", "--kills", str(kills))).items():
        faults[f"ledger_{name}"] = {"trials": counted["trials"], "losses": counted["losses"]}
    charge = ledger["cold"][str(_LEDGER_ENTRIES)]
    return {**found, "ledger_charge_ms": charge, "ledger": ledger, "recommend_ms_by_events": events, "faults": faults}


def _run(name: str, *options: str) -> str:
    """Run another benchmark in a process of its own, which forks: this one has threads."""
    return run_command([sys.executable, "-m", f"ownlet.simulations.benchmarks.{name}", *options])


def _small_bundle(folder: Path) -> Path:
    """Write a bundle that opens and trains in milliseconds."""
    model, spec = random_base(_FAULT_ITEMS, _FAULT_BASE)
    items = tuple(Item(number=number, id=f"item-{number}") for number in range(1, _FAULT_ITEMS + 1))
    windows = WindowConfig(window_length=6)
    write_bundle(folder, model, spec, initial_adapter(spec, 0), version=1, items=items, windows=windows, batches=(1, 4))
    return folder


def _tables(found: dict[str, Any]) -> list[Table]:
    names = ("items", "recommend, .pte / eager", "step, .pte / eager / Opacus", "program", "bundle", "peak memory")
    latency = Table(*names)
    for size, recommend in found["recommend"].items():
        step, peak = found["steps"][size], found["peak_mib"][size]
        latency.add_row(
            f"{int(size):,}",
            f"{recommend['pte_ms']:.2f} / {recommend['eager_ms']:.2f} ms",
            f"{step['pte_ms']:.2f} / {step['eager_ms']:.2f} / {step['opacus_ms']:.2f} ms",
            f"{found['program_bytes'][size]:,} B",
            f"{found['bundle_bytes'][size]:,} B",
            f"{peak['pte']:.0f} / {peak['eager']:.0f} / {peak['opacus']:.0f} MiB",
        )
    faults = Table("fault", "trials", "losses")
    for name, counted in found["faults"].items():
        faults.add_row(name, str(counted["trials"]), str(counted["losses"]))
    return [latency, faults]


if __name__ == "__main__":
    main()
