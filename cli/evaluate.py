"""``ownlet evaluate``: what a base and an adapter are worth, and to whom."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ownlet.cli.options import Columns, Core, Data, Threads, column_pairs, use_threads

if TYPE_CHECKING:
    from rich.table import Table

    from ownlet.shared.metrics import Metric
    from ownlet.simulations.evaluation import Evaluation

__all__ = ["evaluate"]

_NAMES = {"popular": "most popular", "item_knn": "item-kNN"}


class Split(StrEnum):
    """Which event of a user is asked for."""

    leave_one_out = "leave-one-out"
    time = "time"
    session = "session"


def evaluate(
    base: Annotated[Path, typer.Option(help="The base.pt that `ownlet pretrain` left.")],
    adapter: Annotated[Path | None, typer.Option(help="The adapter.safetensors of a run on this base.")] = None,
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    split: Annotated[
        Split,
        typer.Option(
            help="leave-one-out: every user's last event. time: the first from --date on. session: the first of the "
            "last session."
        ),
    ] = Split.leave_one_out,
    date: Annotated[str | None, typer.Option(help="ISO date of split time.")] = None,
    gap_hours: Annotated[float, typer.Option(help="Split session: a longer gap ends a session.")] = 24.0,
    segments: Annotated[bool, typer.Option(help="Show quality by segment, with the floor check.")] = True,
    recbole: Annotated[Path | None, typer.Option(help="Write the figures as JSON under RecBole's names.")] = None,
    threads: Threads = 0,
) -> None:
    """Measure most-popular, item-kNN, base and adapter on one split, one question per user.

    Without --data, the interactions are those of the base's run. Users that the base was trained on are not asked, and
    an answer that base or adapter was trained on ends the command.
    """
    import json

    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.shared.store import write_atomic
    from ownlet.simulations.evaluation import EvaluationConfig, run_evaluation
    from ownlet.simulations.segments import floor_table
    from ownlet.simulations.setting import DataConfig

    use_threads(threads)
    source = None if data is None else DataConfig(path=data, columns=column_pairs(columns), core=core)
    config = EvaluationConfig(
        base=base, adapter=adapter, data=source, split=split.value, date=date, gap_hours=gap_hours
    )
    console = Console()
    with progress_bars(console) as progress:
        found = run_evaluation(config, progress)
    console.print(_table(found, split.value))
    if segments:
        console.print(floor_table(found.floor))
        lost = "above" if adapter is None else "below"  # the base must hold against item-kNN, an adapter against it
        names = [row.segment for row in found.floor if row.verdict == lost]
        said = f"in {len(names)} ({'; '.join(names)})" if names else "in none beyond chance"
        method = found.floor[0].method
        console.print(f"Floor: of {len(found.floor)} segments, {method} is {lost} the base {said}.", highlight=False)
    for note in found.notes:
        console.print(f"Note: {note}", highlight=False)
    if recbole is not None:
        write_atomic(recbole, (json.dumps(found.recbole, indent=2) + "\n").encode())
        console.print(f"RecBole: {recbole}", highlight=False, soft_wrap=True)


def _table(found: Evaluation, split: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{found.data}, split {split}: {found.num_cases:,} users asked"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model")
    for name in ("HR@10", "NDCG@10", "MRR@10", "NDCG@10 gain", "novelty", "coverage", "Gini"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        accuracy = [_cell(metric, "{:.4f}") for metric in row.accuracy.values()]
        gain = "" if row.gain is None else _cell(row.gain, "{:+.4f}")
        lists = [_cell(row.novelty, "{:.2f}"), f"{row.coverage:.3f}", f"{row.gini:.3f}"]
        table.add_row(_NAMES.get(row.label, row.label), *accuracy, gain, *lists)
    return table


def _cell(metric: Metric, form: str) -> str:
    """Return the value with its interval under it, so that the table fits a terminal."""
    return f"{form.format(metric.value)}\n[dim]{form.format(metric.low)}…{form.format(metric.high)}[/dim]"
