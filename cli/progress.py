"""Progress of a long job on the terminal: one bar per stage, with the time left and a note."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ownlet.simulations.progress import Progress, Step

__all__ = ["progress_bars"]


class _Terminal:
    """Shows stages as bars; without a terminal, one plain line as each stage ends."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        """Open a stage; see ``Progress``."""
        task = self._bars.add_task(name, total=total, note="")
        last = ""

        def step(note: str, share: float = 1.0, /) -> None:
            nonlocal last
            last = note or last
            self._bars.update(task, advance=share * (1 + 1e-9), note=last)  # so that shares add up to whole steps

        yield step
        self._bars.update(task, total=self._bars.tasks[task].completed)  # a stage may end early
        if not self._bars.console.is_terminal:
            self._bars.console.print(f"{name}: {last}" if last else name, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Show the stages that are opened inside the block."""
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
    with bars:
        yield _Terminal(bars)
