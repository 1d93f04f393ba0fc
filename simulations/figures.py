"""The figures of the report page, each drawn by matplotlib and returned as SVG for use inside HTML.

Two decisions. Text stays text (``svg.fonttype: none``): the page's own font is used, and it can be searched and read
aloud. Colours are drawn as stand-ins and replaced by CSS variables, so that one figure serves light and dark pages.
Output is a function of the input alone: no date, and element names come from a fixed salt.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ownlet.shared.metrics import Metric
from ownlet.simulations.findings import Latency, PrivacyRow, QualityRow, RoundRecord, RunRecord

__all__ = [
    "BASE",
    "DASHES",
    "INK",
    "SERIES",
    "drawing",
    "epsilon_by_round",
    "gain_against_epsilon",
    "latency_bars",
    "legend",
    "norms_against_clip",
    "quality_by_round",
]

INK, _MUTED, _LINE, BASE = "#010101", "#020202", "#030303", "#040404"
_COLOURS = {"federated": "#050505", "federated_eps8": "#060606", "federated_eps2": "#070707", "personal": "#080808"}
_VARIABLES = {
    INK: "--ink",
    _MUTED: "--muted",
    _LINE: "--line",
    BASE: "--base",
    "#050505": "--federated",
    "#060606": "--eps8",
    "#070707": "--eps2",
    "#080808": "--personal",
}
SERIES = tuple(_COLOURS.values())
"""Colours for series that are not runs: stand-ins, as all of them here."""
DASHES = (0, (5, 3))
_SHORT_NAMES = {"federated": "no privacy", "federated_eps8": "ε = 8", "federated_eps2": "ε = 2", "personal": "personal"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib; only its widths are used for the layout
    "font.size": 12.5,
    "text.color": INK,
    "axes.labelcolor": _MUTED,
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
    "lines.linewidth": 1.8,
}


def quality_by_round(runs: Sequence[RunRecord], base: Metric | None) -> str:
    """Draw NDCG@10 on public users by round: thin lines for the seeds, a thick one for their mean, the base as a line.

    Args:
        runs: federated runs; those without a measured round are left out.
        base: the base on the same users.

    Returns:
        an ``<svg>`` element, or "" where no run was measured.
    """
    if not any(record.ndcg for run in runs for record in run.rounds):
        return ""
    with drawing("quality-by-round", "NDCG@10 on public users by round") as (axes, result):
        if base is not None:
            axes.axhspan(base.low, base.high, color=BASE, alpha=0.12, linewidth=0)
            axes.axhline(base.value, color=BASE, linestyle=DASHES, linewidth=1.5, label="base")
        _lines_by_round(axes, runs, lambda record: record.ndcg.value if record.ndcg else None)
        for label in _labels(runs):
            seeds = [run for run in runs if run.label == label]
            if len(seeds) == 1:  # with several seeds their spread says more than one run's interval
                measured = [record for record in seeds[0].rounds if record.ndcg]
                lows = [record.ndcg.low for record in measured if record.ndcg]
                highs = [record.ndcg.high for record in measured if record.ndcg]
                rounds = [record.round for record in measured]
                axes.fill_between(rounds, lows, highs, color=_COLOURS[label], alpha=0.14, linewidth=0)
        axes.set_ylabel("NDCG@10")
        _finish_rounds(axes)
    return result[0]


def epsilon_by_round(runs: Sequence[RunRecord]) -> str:
    """Draw the ε spent by round; return an ``<svg>`` element, or "" where no run claims one."""
    if not any(record.epsilon is not None for run in runs for record in run.rounds):
        return ""
    with drawing("epsilon-by-round", "Privacy spent by round") as (axes, result):
        _lines_by_round(axes, runs, lambda record: record.epsilon)
        axes.set_ylabel("ε spent")
        axes.set_ylim(bottom=0)
        _finish_rounds(axes)
    return result[0]


def norms_against_clip(runs: Sequence[RunRecord]) -> str:
    """Draw the norm of users' deltas by round, with each run's clip; return ``<svg>``, or "" where no norm is known."""
    if not any(record.update_norm is not None for run in runs for record in run.rounds):
        return ""
    with drawing("norms", "Norm of a user's delta against the clip, by round") as (axes, result):
        _lines_by_round(axes, runs, lambda record: record.update_norm)
        clips = {record.clip_norm for run in runs for record in run.rounds if record.clip_norm is not None}
        for clip in sorted(clip for clip in clips if np.isfinite(clip)):
            axes.axhline(clip, color=BASE, linestyle=DASHES, linewidth=1.5, label=f"clip {clip:g}")
        axes.set_ylabel("L2 norm of delta")
        axes.set_ylim(bottom=0)
        _finish_rounds(axes)
    return result[0]


def gain_against_epsilon(quality: Sequence[QualityRow], privacy: Sequence[PrivacyRow]) -> str:
    """Draw the paired gain in NDCG@10 over base against ε; the run without noise stands at the right.

    Args:
        quality: rows; those named ``federated...`` that have a gain are drawn.
        privacy: gives each row its ε; a row without one counts as ε = infinity.

    Returns:
        an ``<svg>`` element, or "" where there is no such row.
    """
    spent = {row.label: row.epsilon for row in privacy}
    gains = [(row.label, row.gain) for row in quality if row.label.startswith("federated") and row.gain is not None]
    gains.sort(key=lambda pair: spent.get(pair[0], np.inf))
    if not gains:
        return ""
    with drawing("gain-against-epsilon", "Gain in NDCG@10 over base against epsilon") as (axes, result):
        axes.axhline(0, color=BASE, linestyle=DASHES, linewidth=1.5, label="base")
        for at, (label, gain) in enumerate(gains):
            errors = [[gain.value - gain.low], [gain.high - gain.value]]
            axes.errorbar(at, gain.value, errors, fmt="o", color=_COLOURS[label], capsize=5, markersize=8)
            text = f"{gain.value:+.4f}".replace("-", "−")
            axes.annotate(text, (at, gain.value), (11, 0), textcoords="offset points", va="center")
        ticks = [f"ε = {spent[label]:.3g}" if label in spent else "no privacy" for label, _ in gains]
        axes.set_xticks(range(len(gains)), ticks)
        axes.set_xlim(-0.5, len(gains) - 0.35)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("gain in NDCG@10")
        legend(axes)
    return result[0]


def latency_bars(latencies: Sequence[Latency]) -> str:
    """Draw the time of each method as ``.pte`` program and in eager PyTorch; return ``<svg>``, or "" for none."""
    if not latencies:
        return ""
    with drawing("latency", "Time of one call in milliseconds", size=(13.0, 3.6)) as (axes, result):
        at = np.arange(len(latencies))
        for offset, name, colour in ((-0.19, ".pte", _COLOURS["federated"]), (0.19, "eager PyTorch", BASE)):
            times = [row.pte_ms if name == ".pte" else row.eager_ms for row in latencies]
            bars = axes.barh(at + offset, times, height=0.34, color=colour, label=name)
            axes.bar_label(bars, fmt="%.3g ms", padding=5, color=INK)
        axes.set_yticks(at, [row.method for row in latencies])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("milliseconds per call")
        legend(axes)
    return result[0]


def _lines_by_round(axes: Axes, runs: Sequence[RunRecord], value: Callable[[RoundRecord], float | None]) -> None:
    """Draw a value of every run, with the mean over seeds wherever all of a label's seeds have the round."""
    for label in _labels(runs):
        series = [
            {record.round: got for record in run.rounds if (got := value(record)) is not None}
            for run in runs
            if run.label == label
        ]
        series = [points for points in series if points]
        if not series:
            continue
        if len(series) > 1:
            for points in series:
                axes.plot(list(points), list(points.values()), color=_COLOURS[label], linewidth=0.9, alpha=0.45)
        common = sorted(set.intersection(*(set(points) for points in series)))
        mean = [float(np.mean([points[at] for points in series])) for at in common]
        axes.plot(common, mean, color=_COLOURS[label], linewidth=2.2, label=_SHORT_NAMES[label])


def _labels(runs: Sequence[RunRecord]) -> list[str]:
    return [label for label in _COLOURS if any(run.label == label for run in runs)]


def _finish_rounds(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
    legend(axes)


def legend(axes: Axes) -> None:
    """Put the legend above the axes, where it can hide no data."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=5, columnspacing=1.4)


@contextmanager
def drawing(name: str, description: str, size: tuple[float, float] = (6.4, 4.1)) -> Iterator[tuple[Axes, list[str]]]:
    """Yield axes to draw on, and a list that holds the SVG once the block has ended.

    Args:
        name: of the figure; differs between figures of one page.
        description: for those who cannot see it.
        size: width and height; only their ratio counts.
    """
    result: list[str] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"ownlet-{name}"}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        yield axes, result
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    result.append(_for_html(buffer.getvalue(), description))


def _for_html(svg: str, description: str) -> str:
    """Make matplotlib's SVG file an element of a page: no prologue, no fixed size, themed colours, no repeated ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return f'{head} role="img" aria-label="{description}">{body}'
