"""``ownlet ledger show|verify``: what a device spent on privacy, and whether its record can be trusted."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ownlet.cli.node_ledgers import ledgers_of_node, summary_of

if TYPE_CHECKING:
    from ownlet.device.chain import Entry
    from ownlet.device.ledger import LedgerReport

__all__ = ["KeyFile", "show", "verify"]

_Path = Annotated[
    Path, typer.Argument(help="A ledger file, or the state folder of a device or of a node (`join --state`).")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the app's key, 32 bytes or 64 hex digits; without it, the key is empty."),
]


def show(
    path: _Path,
    last: Annotated[int, typer.Option(min=0, help="Show only the last so many entries; 0 shows all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show the entries of a privacy ledger, and what is spent and left.

    Reads without the app's key, so macs are not checked; `ownlet ledger verify` does that. Newest entries come last.
    A node's folder has a ledger per user, ledgers/NUMBER.jsonl: they are shown in sum, and each by its own path.
    """
    from ownlet.device.ledger import read_ledger

    if files := ledgers_of_node(path):
        _print_node(path, files, as_json)
        return
    report, entries = read_ledger(_ledger_file(path))
    shown, opened = entries[-last:] if last else entries, _open_charges(entries)
    if as_json:
        typer.echo(json.dumps({**_plain(report), "entries": shown, "open": opened}, sort_keys=True))
    else:
        _print(report, shown, opened)


def verify(path: _Path, key_file: KeyFile = None) -> None:
    """Verify every line of a privacy ledger; exit code 0 if all is well, 2 if not.

    Checks the chain of macs, the totals in every checkpoint, and that no charge went past the budget of its time. Of a
    node's folder (`ownlet join --state`) every user's ledger must verify.
    """
    from ownlet.device.ledger import verify_ledger
    from ownlet.shared.seal import Keys, read_key

    if files := ledgers_of_node(path):
        for one in files:
            verify_ledger(one, Keys.of(None if key_file is None else read_key(key_file)).ledger)
        typer.echo(f"{path} verifies: the ledgers of {len(files)} users")
        return
    file = _ledger_file(path)
    report = verify_ledger(file, Keys.of(None if key_file is None else read_key(key_file)).ledger)
    typer.echo(
        f"{file} verifies: {report.entries} entries, {report.charges} charges ({report.uncommitted} uncommitted), "
        f"head {report.head}"
    )
    for unit, spent in report.spent.items():
        typer.echo(
            f"{unit}: epsilon {spent.epsilon:.4f} of {report.budget.epsilon:g} at delta {report.budget.dp_delta:g}"
        )
    if key_file is None:
        typer.echo("No key: this finds damage, not forgery.")
    if report.torn_bytes:
        typer.echo(f"{report.torn_bytes} bytes of a torn line at the end do not count.")


def _print_node(path: Path, files: list[Path], as_json: bool) -> None:
    from dataclasses import asdict

    from ownlet.device.ledger_state import finite

    found = summary_of(files)
    if as_json:
        typer.echo(json.dumps({**asdict(found), "least_left": finite(found.least_left)}, sort_keys=True))
        return
    rounds = ", ".join(map(str, found.rounds)) or "none"
    typer.echo(f"{found.users} users have a ledger in {path / 'ledgers'}, with {found.charges} charges in all")
    typer.echo(f"Rounds that were charged: {rounds}")
    typer.echo(f"The user with the least budget has epsilon {found.least_left:.4f} left")
    typer.echo(f"One user: ownlet ledger show {files[0]}")


def _ledger_file(path: Path) -> Path:
    from ownlet.device.ledger import LEDGER_FILE

    return path / LEDGER_FILE if path.is_dir() else path


def _open_charges(entries: list[Entry]) -> list[int]:
    """Return the numbers of the charges that no entry commits."""
    committed = {entry["of"] for entry in entries if entry["state"] == "commit"}
    return [entry["seq"] for entry in entries if entry["state"] == "intent" and entry["seq"] not in committed]


def _plain(report: LedgerReport) -> dict[str, object]:
    from ownlet.device.ledger_state import budget_to_plain, finite

    return {
        "budget": budget_to_plain(report.budget),
        "charges": report.charges,
        "head": report.head,
        "seq": report.entries,
        "torn_bytes": report.torn_bytes,
        "uncommitted": report.uncommitted,
        "units": {
            unit: {
                "charges": spent.charges,
                "epsilon": finite(spent.epsilon),
                "events": report.events[unit],
                "left": finite(spent.left),
                "uncommitted": spent.uncommitted,
            }
            for unit, spent in report.spent.items()
        },
    }


def _print(report: LedgerReport, entries: list[Entry], opened: list[int]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("seq", "time (UTC)", "entry", "unit", "round", "what", box=None, pad_edge=False)
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry["at"]))
        rounds = "" if entry.get("round") is None else str(entry["round"])
        state = f"{entry['state']} (open)" if entry["seq"] in opened else entry["state"]
        table.add_row(str(entry["seq"]), when, state, entry.get("unit", ""), rounds, _what(entry))
    console.print(table)
    if len(entries) < report.entries:
        console.print(f"The last {len(entries)} of {report.entries} entries; --last 0 shows all.")
    console.print()
    units = Table("unit", "charges", "uncommitted", "epsilon", "left", box=None, pad_edge=False)
    for unit, spent in report.spent.items():
        row = (spent.charges, spent.uncommitted, f"{spent.epsilon:.4f}", f"{spent.left:.4f}")
        units.add_row(unit, *map(str, row))
    console.print(units)
    console.print(f"Budget: epsilon {report.budget.epsilon:g} at delta {report.budget.dp_delta:g} for each unit.")
    console.print(f"Head: {report.entries} {report.head}", soft_wrap=True)
    if report.torn_bytes:
        console.print(f"{report.torn_bytes} bytes of a torn line at the end do not count.")


def _what(entry: Entry) -> str:
    match entry["state"]:
        case "budget":
            return f"epsilon {entry['budget']['epsilon']} at delta {entry['budget']['dp_delta']}"
        case "intent":
            return f"{_mechanism(entry['event'])}; adapter {entry['adapter']} of base {entry['base'][:8]}"
        case "commit":
            return f"of {entry['of']}, update {entry['update'][:8]}"
    return "totals of all entries before"


def _mechanism(event: dict[str, object]) -> str:
    """Say an event in words, ``3 x sigma 1.0 at rate 0.1``; others as they are written."""
    from ownlet.shared.privacy import flip_epsilon

    match event:
        case {"kind": "repeated", "count": count, "event": inner} if isinstance(inner, dict):
            return f"{count} x {_mechanism(inner)}"
        case {"kind": "poisson", "rate": rate, "event": {"kind": "gaussian", "noise_multiplier": sigma}}:
            return f"sigma {sigma} at rate {rate}"
        case {"kind": "gaussian", "noise_multiplier": sigma}:
            return f"sigma {sigma}"
        case {"kind": "randomized_response", "noise_parameter": float(noise_parameter)}:
            return f"one bit at epsilon {flip_epsilon(noise_parameter):.4g}"
    return json.dumps(event, sort_keys=True)
