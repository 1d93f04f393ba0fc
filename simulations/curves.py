"""The picture in a run folder: what was measured, over rounds or epochs, as a PNG or SVG that stands alone.

Colours and layout are those of the report page in its light form.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ownlet.shared.errors import require
from ownlet.shared.store import write_atomic

__all__ = ["COLOURS", "CURVES_FILE", "MEASURES", "Line", "Panel", "draw_panels", "panels_of_rows", "render_panels"]

CURVES_FILE = "curves.png"
"""The picture in a run folder."""

COLOURS = ("#0b6bb8", "#c8520a", "#00866a", "#8a4fb3", "#b8860b", "#a0303a")
_PAGE, _INK, _MUTED, _LINE, _BASE = "#ffffff", "#1d2126", "#5c646e", "#dcdfe3", "#6b7280"
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "svg.hashsalt": "ownlet-curves",
}
MEASURES = {
    "public_ndcg@10": "NDCG@10 on held-out public users",
    "validation_ndcg@10": "NDCG@10 on validation cases",
    "epsilon": "ε spent",
    "update_norm": "norm of the released average",
    "cross_covariance": "relative error of averaging A and B",
    "loss": "training loss",
}
"""Column of ``metrics.parquet`` -> title, of everything that is drawn and compared."""
_DASHES = (0, (5, 3))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line, or points that no line joins: a label, where they stand, what they say, a place in ``COLOURS``."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    joined: bool = True


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot: a title, the name of the horizontal axis, lines, and a level to compare with, drawn dashed."""

    title: str
    axis: str
    lines: tuple[Line, ...]
    level: float | None = None
    level_label: str = "base"


def panels_of_rows(
    rows_by_label: Mapping[str, Sequence[Mapping[str, Any]]], *, base: float | None = None
) -> tuple[Panel, ...]:
    """Return a panel for every known measure that some row has.

    Args:
        rows_by_label: label -> rows of ``metrics.parquet``, of one run each; with ``round`` or ``epoch``.
        base: public NDCG@10 before the first round, where known.
    """
    rows = [row for found in rows_by_label.values() for row in found]
    panels = []
    for column, title in MEASURES.items():
        lines = []
        for colour, (label, found) in enumerate(rows_by_label.items()):
            points = [(_place(row), row.get(column)) for row in found]
            measured = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
            if measured:
                x, y = zip(*measured, strict=True)
                lines.append(Line(label=label, x=x, y=y, colour=colour))
        if lines:
            axis = "epoch" if all("epoch" in row for row in rows) else "round"
            level = base if column == "public_ndcg@10" else None
            panels.append(Panel(title=title, axis=axis, lines=tuple(lines), level=level))
    return tuple(panels)


def draw_panels(path: Path, panels: Sequence[Panel]) -> Path:
    """Write panels as a picture, atomically.

    Args:
        path: the file, which ends in ``.png`` or ``.svg``.
        panels: at least one.

    Raises:
        ConfigError: another ending, or no panel.
    """
    require(path.suffix in (".png", ".svg"), "picture must end in .png or .svg", path=str(path))
    write_atomic(path, render_panels(panels, path.suffix[1:]))
    return path


def render_panels(panels: Sequence[Panel], form: str) -> bytes:
    """Return panels, two in a row, as the content of a ``png`` or ``svg`` file.

    Raises:
        ConfigError: no panel.
    """
    require(len(panels) > 0, "picture must have something to show", panels=len(panels))
    columns, rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.6 * columns, 3.9 * rows), layout="constrained", facecolor=_PAGE)
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, panel in itertools.zip_longest(grid, panels):
            if panel is None:
                axes.set_axis_off()
            else:
                _draw(axes, panel)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, dpi=130, metadata={"Date": None} if form == "svg" else {"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    axes.set_facecolor(_PAGE)
    for line in panel.lines:
        marker = "o" if len(line.x) <= 12 or not line.joined else ""
        colour = COLOURS[line.colour % len(COLOURS)]
        style = "solid" if line.joined else "none"
        axes.plot(line.x, line.y, color=colour, label=line.label, linestyle=style, marker=marker, markersize=5)
    if panel.level is not None:
        axes.axhline(panel.level, color=_BASE, linestyle=_DASHES, linewidth=1.5, label=panel.level_label)
    axes.set_xlabel(panel.axis)
    if panel.axis in ("round", "epoch", "rank"):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    entries = len(panel.lines) + (panel.level is not None)
    named = entries > 1 or panel.level is not None
    axes.set_title(panel.title, pad=8 + 18 * math.ceil(entries / 3) if named else 8)  # three entries in a row
    if named:  # above the axes, where it hides no data
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, columnspacing=1.2, fontsize=9.5)


def _place(row: Mapping[str, Any]) -> float:
    return float(row["epoch"] if "epoch" in row else row["round"])
