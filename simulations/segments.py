"""Whom an adapter helps and whom it harms: quality by segment, and a floor that no segment may fall below.

A mean can rise while some users lose. Cases are therefore put into segments by what is known of them (how active the
user is, how new the user or the item is, region or other context, genre of the target), and in each one a method is
compared with the base on the same cases, by paired bootstrap. Segments overlap: a case is in one of each kind, and in
several genres. With 20 segments at 95 %, half a segment falls significantly below by chance alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ownlet.shared.errors import require
from ownlet.shared.interactions import Item
from ownlet.shared.metrics import Metric, paired_difference, summarise
from ownlet.simulations.evaluate import Cases

__all__ = [
    "FloorRow",
    "Segments",
    "activity_segments",
    "check_floor",
    "context_segments",
    "floor_table",
    "genre_segments",
    "item_segments",
    "user_segments",
]

Segments = dict[str, NDArray[np.bool_]]
"""Name -> (n,) which cases are in the segment, in order of showing."""

Verdict = Literal["above", "not below", "nominally below", "below"]


def activity_segments(cases: Cases) -> Segments:
    """Put cases into thirds by the length of the history; equal lengths stay together.

    Returns:
        At most three segments, ``activity: 1 to 5 events`` first; fewer where lengths hardly differ.
    """
    lengths = np.array([len(history) for history in cases.histories], np.int64)
    if not len(lengths):
        return {}
    edges = np.unique(np.quantile(lengths, [1 / 3, 2 / 3], method="lower"))
    third = np.searchsorted(edges, lengths, side="left")  # a length on an edge belongs below it
    segments = {}
    for number in np.unique(third):
        mask = third == number
        segments[f"activity: {lengths[mask].min()} to {lengths[mask].max()} events"] = mask
    return segments


def user_segments(cases: Cases, *, cold_events: int = 5) -> Segments:
    """Mark cold users: at most ``cold_events`` events of them are known."""
    cold = np.array([len(history) <= cold_events for history in cases.histories], bool)
    return {f"user: at most {cold_events} events known": cold}


def item_segments(cases: Cases, training_events: NDArray[np.int64], *, rare_events: int = 5) -> Segments:
    """Put cases by how often training had the item that is asked for.

    Args:
        cases: the questions.
        training_events: (num_items + 1,) events of each item in training (``list_metrics.item_events``).
        rare_events: an item with 1 to so many training events is rare.
    """
    count = training_events[cases.targets]
    return {
        "item: never in training": count == 0,
        f"item: 1 to {rare_events} times in training": (count >= 1) & (count <= rare_events),
        f"item: over {rare_events} times in training": count > rare_events,
    }


def context_segments(name: str, values: NDArray[Any], *, min_cases: int = 30) -> Segments:
    """Put cases by a context value, such as the region.

    Args:
        name: of the context.
        values: (n,) of the cases.
        min_cases: values with fewer cases make no segment: their intervals would say nothing.
    """
    found, counts = np.unique(values, return_counts=True)
    return {
        f"{name}: {value}": values == value for value, count in zip(found, counts, strict=True) if count >= min_cases
    }


def genre_segments(cases: Cases, items: Sequence[Item], *, min_cases: int = 30) -> Segments:
    """Put cases by the genres of the item that is asked for; an item of two genres is in both.

    Args:
        cases: the questions.
        items: the catalogue in order of item number.
        min_cases: genres with fewer cases make no segment.
    """
    genres = [items[target - 1].genres for target in cases.targets]
    names = sorted({genre for found in genres for genre in found})
    masks = {f"genre: {name}": np.array([name in found for found in genres], bool) for name in names}
    return {name: mask for name, mask in masks.items() if mask.sum() >= min_cases}


@dataclass(frozen=True, kw_only=True)
class FloorRow:
    """A method in a segment.

    Args:
        method: its name.
        segment: its name.
        cases: in the segment.
        base: the base's metric there.
        value: the method's metric there.
        gain: the second minus the first, paired.
    """

    method: str
    segment: str
    cases: int
    base: Metric
    value: Metric
    gain: Metric

    @property
    def verdict(self) -> Verdict:
        """Return ``below`` or ``above`` where the interval of the gain leaves out 0, else where its mean lies."""
        if self.gain.high < 0:
            return "below"
        if self.gain.low > 0:
            return "above"
        return "nominally below" if self.gain.value < 0 else "not below"


def check_floor(
    base: NDArray[np.int64],
    methods: Mapping[str, NDArray[np.int64]],
    segments: Segments,
    *,
    metric: Literal["hr", "ndcg", "mrr"] = "ndcg",
    k: int = 10,
    seed: int = 0,
) -> tuple[FloorRow, ...]:
    """Compare methods with the base in every segment.

    Args:
        base: (n,) ranks of the base, or (seeds, n).
        methods: name -> ranks of the same cases (and seeds).
        segments: name -> (n,) mask; one without cases gives no row.
        metric: what is compared.
        k: length of the list that is shown.
        seed: of the bootstrap.

    Returns:
        A row per method and segment, the whole population first (``everybody``). The floor holds where no row's
        ``verdict`` is ``below``; ``nominally below`` deserves a look.

    Raises:
        ConfigError: ranks or masks are not of the same cases.
    """
    num_cases = base.shape[-1]
    rows = []
    for method, ranks in methods.items():
        for segment, mask in {"everybody": np.ones(num_cases, bool), **segments}.items():
            require(mask.shape == (num_cases,), "segments must be masks over the cases", segment=segment)
            require(ranks.shape == base.shape, "ranks must be of the same cases", method=method, shape=ranks.shape)
            if not mask.any():
                continue
            ours, theirs, name = ranks[..., mask], base[..., mask], f"{metric}@{k}"
            rows.append(
                FloorRow(
                    method=method,
                    segment=segment,
                    cases=int(mask.sum()),
                    base=summarise(theirs, k, seed)[name],
                    value=summarise(ours, k, seed)[name],
                    gain=paired_difference(ours, theirs, k, seed)[name],
                )
            )
    return tuple(rows)


_STYLES = {"below": "bold red", "nominally below": "yellow", "not below": None, "above": "green"}


def floor_table(rows: Sequence[FloorRow], *, metric: str = "NDCG@10") -> Table:
    """Return the rows as a terminal table, with what the floor check says of each."""
    table = Table(title=f"{metric} by segment, against the base", title_justify="left", box=SIMPLE_HEAD)
    for name in ("method", "segment"):
        table.add_column(name)
    for name in ("cases", "base", "method", "gain", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("floor", no_wrap=True)
    for row in rows:
        cells = [f"{row.base.value:.4f}", f"{row.value.value:.4f}", f"{row.gain.value:+.4f}"]
        interval = f"{row.gain.low:+.4f}…{row.gain.high:+.4f}"
        table.add_row(
            row.method, row.segment, f"{row.cases:,}", *cells, interval, row.verdict, style=_STYLES[row.verdict]
        )
    return table
