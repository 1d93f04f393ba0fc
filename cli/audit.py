"""``ownlet audit``: what was promised, what was spent, and a measured lower bound beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ownlet.cli.ledger import KeyFile
from ownlet.cli.options import Threads, use_threads

if TYPE_CHECKING:
    from rich.console import Console

    from ownlet.simulations.audit.report import AuditReport

__all__ = ["audit"]


def audit(
    path: Annotated[
        Path | None,
        typer.Argument(help="A run's folder, a device's state folder or ledger file, or a bundle's folder."),
    ] = None,
    ledgers: Annotated[
        Path | None, typer.Option(help="In place of PATH: a folder with the ledgers of a whole fleet.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="With --ledgers: a folder of keys, one file per device, named like it.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="The machine-readable report to write.")] = None,
    key_file: KeyFile = None,
    base: Annotated[Path | None, typer.Option(help="The base.pt of a run, where it was moved.")] = None,
    record_only: Annotated[
        bool, typer.Option("--record-only", help="Check what was written down, and measure nothing.")
    ] = False,
    thorough: Annotated[bool, typer.Option("--thorough", help="Run the longer audits, too.")] = False,
    max_epsilon: Annotated[
        float | None, typer.Option(help="Fail where more than this is promised, or nothing.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random, so that an audit can be repeated.")] = 0,
    threads: Threads = 0,
) -> None:
    """Audit what was promised, what was spent, and what can be measured, of a run, a ledger or a bundle.

    Exit code 0 if nothing is wrong, 1 if a measured bound exceeds its claim or a check failed, 2 if the record does not
    verify or cannot be read. A report is written in every case but the last.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.shared.errors import require
    from ownlet.shared.seal import read_key
    from ownlet.simulations.audit.fleet import device_keys
    from ownlet.simulations.audit.output import check_outputs, write_report
    from ownlet.simulations.audit.report import assemble, assemble_fleet

    use_threads(threads)
    key = None if key_file is None else read_key(key_file)
    require((path is None) != (ledgers is None), "one of PATH and --ledgers must be given", path=path, ledgers=ledgers)
    require(keys is None or (ledgers is not None and key is None), "keys must go with --ledgers and no key file")
    check_outputs(out, json)
    console = Console(highlight=False)
    with progress_bars(console) as progress:
        if path is None:
            each = key if keys is None else device_keys(keys)
            report = assemble_fleet(ledgers or Path(), progress, keys=each, max_epsilon=max_epsilon)
        else:
            report = assemble(
                path,
                progress,
                key=key,
                base=base,
                measuring=not record_only,
                thorough=thorough,
                seed=seed,
                max_epsilon=max_epsilon,
            )
    written = write_report(report, page=out, json_file=json)
    _print(console, report)
    for file in written:
        console.print(f"Written: {file}", soft_wrap=True)
    raise typer.Exit(report.exit_code)


def _print(console: Console, report: AuditReport) -> None:
    from ownlet.simulations.audit.page import VERDICTS

    console.print(f"{VERDICTS[report.status]}: {report.kind} {report.name}", soft_wrap=True, markup=False)
    for reason in report.reasons:
        console.print(f"  {reason}", soft_wrap=True, markup=False)
    for field in report.fields:
        if field.name in ("privacy_unit", "epsilon_total", "trust_model", "audit_results"):
            console.print(f"{field.title}: {field.value}", soft_wrap=True, markup=False)
