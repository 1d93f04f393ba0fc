"""The page that a run ends with: one HTML file that needs no network, and the same table for the terminal.

The page is written from ``ReportData`` alone, by a template that escapes every value. Equal data gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ownlet.shared.metrics import Metric
from ownlet.shared.store import write_atomic
from ownlet.shared.templates import page_template
from ownlet.simulations import figures
from ownlet.simulations.findings import ROW_NAMES, QualityRow, ReportData

__all__ = ["quality_table", "write_report"]


def write_report(path: Path, data: ReportData) -> Path:
    """Write the report page, atomically.

    Args:
        path: the HTML file.
        data: what to show.

    Returns:
        the file.
    """
    template = page_template(
        "ownlet.simulations", "report.html.jinja", number=_number, signed=_signed, interval=_interval, bytes=_bytes
    )
    page = template.render(
        report=data, names=ROW_NAMES, figures=_figures(data), headlines=_headlines(data), best=_best_by_metric(data)
    )
    write_atomic(path, page.encode())
    return path


def quality_table(rows: tuple[QualityRow, ...], names: Mapping[str, str] = ROW_NAMES) -> Table:
    """Return the quality rows as a terminal table: value and interval of each metric, and the gain over base.

    Args:
        rows: in order.
        names: label -> what the first column says.
    """
    table = Table(title="Quality on device users", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model")
    for name in ("HR@10", "NDCG@10", "MRR@10", "NDCG@10 gain"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:  # the interval stands under its value, so that the table fits 80 columns
        cells = [f"{_number(metric)}\n[dim]{_interval(metric)}[/dim]" for metric in (row.hr, row.ndcg, row.mrr)]
        gain = f"{_signed(row.gain.value)}\n[dim]{_interval(row.gain, signed=True)}[/dim]" if row.gain else ""
        table.add_row(names[row.label], *cells, gain, style="bold" if row.label == "base" else None)
    return table


def _figures(data: ReportData) -> list[dict[str, str]]:
    """Return the figures that the data allows, each with its heading, caption and SVG."""
    drawn = [
        (
            "Quality by round",
            "NDCG@10 on public users. Thick lines are the mean over seeds, thin lines single seeds.",
            figures.quality_by_round(data.runs, data.base_by_round),
        ),
        (
            "Quality against ε",
            f"Gain in NDCG@10 over the base on the same device users, with {data.interval}.",
            figures.gain_against_epsilon(data.quality, data.privacy),
        ),
        (
            "Privacy by round",
            "ε spent so far. A run stops before the round that would exceed its target.",
            figures.epsilon_by_round(data.runs),
        ),
        (
            "Delta norms against the clip",
            "L2 norm of a user's delta before clipping. Above the dashed line, the clip shortens it.",
            figures.norms_against_clip(data.runs),
        ),
        (
            "Latency",
            "The exported program beside the same computation in eager PyTorch, on the machine that made this page.",
            figures.latency_bars(data.latencies),
        ),
    ]
    # Markup: the SVG is our own drawing, whose text matplotlib has escaped.
    return [{"heading": heading, "caption": caption, "svg": Markup(svg)} for heading, caption, svg in drawn if svg]


def _headlines(data: ReportData) -> list[dict[str, str]]:
    """Return the few numbers that a reader looks for first, each with what it means."""
    rows = {row.label: row for row in data.quality}
    found: list[dict[str, str]] = []
    if "base" in rows:
        for label in ("federated", "federated_eps2", "personal"):
            if label in rows:
                found.append(_gain_headline(rows[label], rows["base"].ndcg.value))
    for latency in data.latencies:
        if latency.method == "recommend":
            note = f"one recommendation from the {_bytes(data.program_bytes)} program"
            found.append({"value": f"{latency.pte_ms:.3g} ms", "label": "recommend", "note": note})
    return found


def _gain_headline(row: QualityRow, base: float) -> dict[str, str]:
    """Return a row's relative gain over base, and say whether its interval leaves room for none."""
    difference = row.gain.value if row.gain else row.ndcg.value - base
    value = f"{difference / base:+.1%}".replace("-", "−") if base > 0 else _signed(difference)
    if row.gain is None:
        note = "NDCG@10 over base, no paired interval"
    elif row.gain.low > 0:
        note = "NDCG@10 over base; the interval is above zero"
    elif row.gain.high < 0:
        note = "NDCG@10 over base; the interval is below zero"
    else:
        note = "NDCG@10 over base; the interval contains zero"
    return {"value": value, "label": ROW_NAMES[row.label], "note": note}


def _best_by_metric(data: ReportData) -> dict[str, float]:
    """Return the highest value of each metric, for the bars in the table."""
    return {name: max(getattr(row, name).value for row in data.quality) for name in ("hr", "ndcg", "mrr")}


def _number(metric: Metric) -> str:
    return f"{metric.value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _interval(metric: Metric, *, signed: bool = False) -> str:
    low, high = (_signed(v) if signed else f"{v:.4f}" for v in (metric.low, metric.high))
    return f"{low}…{high}"


def _bytes(count: int) -> str:
    if count >= 1_000_000:
        return f"{count / 1_000_000:.2f} MB"
    return f"{count / 1000:.1f} kB" if count >= 1000 else f"{count} B"
