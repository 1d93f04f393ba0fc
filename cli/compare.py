"""``ownlet compare``: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ownlet.simulations.compare import Section

__all__ = ["compare"]


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of finished runs; the others are compared with the first.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Also write a page (.html), or the curves over each other as a picture (.png, .svg)."),
    ] = None,
) -> None:
    """Show runs side by side: settings and versions that differ, quality with intervals, privacy, last metrics."""
    from rich.console import Console

    from ownlet.simulations.compare import compare_runs, load_run, write_comparison

    loaded = [load_run(path) for path in runs]
    sections = compare_runs(loaded)
    written = None if out is None else write_comparison(out, loaded)
    console = Console()
    for section in sections:
        if section.rows:
            console.print(_table(section))
        else:
            console.print(f"[bold]{section.title}[/bold]")
        if section.note:
            console.print(section.note, highlight=False)
        console.print()
    if written is not None:
        console.print(f"Comparison: {written}", highlight=False, soft_wrap=True)


def _table(section: Section) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=section.title, title_justify="left", box=SIMPLE_HEAD)
    for name in section.head:
        table.add_column(Text(name), overflow="fold")
    for row in section.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
