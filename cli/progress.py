"""Progress of a long job on the terminal: one bar per stage, with the time left and a note."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ownlet.simulations.trial import Progress

__all__ = ["progress_bars"]


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Show stages as bars inside the block; without a terminal, one plain line as each stage ends."""
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    open_stage: list[tuple[TaskID, str, str]] = []

    def finish() -> None:
        if open_stage:
            task, name, note = open_stage.pop()
            bars.update(task, total=bars.tasks[task].completed)
            if not console.is_terminal:
                console.print(f"{name}: {note}" if note else name, highlight=False, markup=False)

    def on_stage(name: str, total: int) -> None:
        finish()
        open_stage.append((bars.add_task(name, total=total, note=""), name, ""))

    def on_step(note: str) -> None:
        task, name, _ = open_stage.pop()
        bars.update(task, advance=1, note=note)
        open_stage.append((task, name, note))

    with bars:
        yield Progress(on_stage=on_stage, on_step=on_step)
        finish()
