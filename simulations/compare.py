"""Finished runs side by side: what differs in settings and versions, and what came of it.

The intervals are those that the runs stored, over users. Whether two of them overlap is a quick look and not a test:
the runs may share their users, and a paired difference would be sharper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ownlet.shared.errors import DataError, require
from ownlet.shared.store import write_atomic
from ownlet.shared.templates import page_template
from ownlet.simulations.curves import MEASURES, draw_panels, panels_of_rows, render_panels
from ownlet.simulations.findings import ROW_NAMES
from ownlet.simulations.results import METRIC_NAMES, RunFolder

__all__ = ["FinishedRun", "Section", "compare_runs", "load_run", "series_of", "write_comparison"]


_NAMES = {**ROW_NAMES, "federated": "federated"}  # of a simulation it may be private
_WORTH_TELLING = ("epoch", "round", "version", *MEASURES)


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run as its folder tells it.

    Args:
        name: of the folder.
        command: the subcommand.
        settings: dotted name -> value as text.
        versions: package -> version.
        rows: of ``metrics.parquet``.
        summary: ``summary.json``.
    """

    name: str
    command: str
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table: a title, column heads, rows of texts, and a note under it. Without rows the note says why."""

    title: str
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def load_run(path: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        DataError: not the folder of a run, or of one that is not finished.
        ConfigError: its summary breaks the schema.
    """
    if not (path / "config.json").is_file():
        raise DataError(f"run must be a folder with config.json, got {path}")
    if not (path / "summary.json").is_file():
        raise DataError(f"run must be finished, got {path} without summary.json")
    try:
        config, versions = (json.loads((path / name).read_bytes()) for name in ("config.json", "versions.json"))
        settings = {"seed": config["seed"], **_flat(config["config"])}
        packages = {"python": versions["python"], "platform": versions["platform"], **versions["packages"]}
        command = str(config["command"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"run must have the files that a command writes, got {path}: {error!r}") from error
    folder = RunFolder(path=path)
    return FinishedRun(
        name=path.resolve().name,
        command=command,
        settings={name: _text(value) for name, value in settings.items()},
        versions={name: str(version) for name, version in packages.items()},
        rows=folder.read_metrics(),
        summary=folder.read_summary(),
    )


def compare_runs(runs: Sequence[FinishedRun]) -> tuple[Section, ...]:
    """Return what a reader wants to know of two or more runs, the first being what the others are compared with.

    Raises:
        ConfigError: fewer than two.
    """
    require(len(runs) >= 2, "runs must be at least two", runs=[run.name for run in runs])
    names = _names(runs)
    return (
        _data(runs, names),
        _differing("Settings that differ", [run.settings for run in runs], names),
        _differing("Versions that differ", [run.versions for run in runs], names),
        _quality(runs, names),
        _privacy(runs, names),
        _last(runs, names),
    )


def write_comparison(path: Path, runs: Sequence[FinishedRun]) -> Path:
    """Write a page (``.html``) with the tables and curves over each other, or the curves alone (``.png``, ``.svg``).

    Raises:
        ConfigError: another ending, or runs without a curve where only curves are asked for.
    """
    require(path.suffix in (".html", ".png", ".svg"), "out must end in .html, .png or .svg", out=str(path))
    rows = {
        f"{name}{': ' if label else ''}{label}": series
        for name, run in zip(_names(runs), runs, strict=True)
        for label, series in series_of(run.rows).items()
    }
    panels = panels_of_rows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".html":
        return draw_panels(path, panels)
    svg = render_panels(panels, "svg").decode() if panels else ""
    picture = Markup(svg[svg.index("<svg") :]) if svg else ""  # our own drawing, whose text matplotlib has escaped
    template = page_template("ownlet.simulations", "compare.html.jinja")
    page = template.render(sections=compare_runs(runs), picture=picture)
    write_atomic(path, page.encode())
    return path


def series_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return label -> rows of one curve each; where a run has several seeds, their mean wherever all were measured."""
    labels = list(dict.fromkeys(str(row.get("run", "")) for row in rows))
    return {label: _mean_rows([row for row in rows if str(row.get("run", "")) == label]) for label in labels}


def _mean_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    place = "epoch" if rows and "epoch" in rows[0] else "round"
    seeds = {row.get("seed") for row in rows}
    found = []
    for at in sorted({row[place] for row in rows}):
        here = [row for row in rows if row[place] == at]
        columns = {}
        for name in here[0]:
            values = [row[name] for row in here if isinstance(row[name], int | float)]
            columns[name] = sum(values) / len(values) if len(values) == len(seeds) else None
        found.append({**columns, place: at})
    return found


def _names(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the runs' names, told apart by numbers where folders of one name lie in different places."""
    names = [run.name for run in runs]
    return [f"{name} ({at + 1})" if names.count(name) > 1 else name for at, name in enumerate(names)]


def _data(runs: Sequence[FinishedRun], names: list[str]) -> Section:
    facts = [run.summary["data"] for run in runs]
    kinds = ("command", "data", "users", "items", "interactions", "seconds")
    by_kind = {
        "command": [run.command for run in runs],
        "data": [fact["name"] for fact in facts],
        **{kind: [f"{fact[kind]:,}" for fact in facts] for kind in ("users", "items", "interactions")},
        "seconds": [f"{run.summary['seconds']:.1f}" for run in runs],
    }
    differ = any(fact != facts[0] for fact in facts)
    note = "The runs are on different data: their quality cannot be compared." if differ else ""
    return Section(title="Runs", head=("", *names), rows=tuple((kind, *by_kind[kind]) for kind in kinds), note=note)


def _differing(title: str, tables: Sequence[Mapping[str, str]], names: list[str]) -> Section:
    every = list(dict.fromkeys(name for table in tables for name in table))
    differ = [name for name in every if len({table.get(name, "–") for table in tables}) > 1]
    rows = tuple((name, *(table.get(name, "–") for table in tables)) for name in differ)
    return Section(title=title, head=("", *names), rows=rows, note="" if rows else "None.")


def _quality(runs: Sequence[FinishedRun], names: list[str]) -> Section:
    qualities = [run.summary.get("quality", {}) for run in runs]
    labels = list(dict.fromkeys(label for quality in qualities for label in quality))
    rows = []
    for label in labels:
        for metric in METRIC_NAMES:
            intervals = [quality.get(label, {}).get(metric) for quality in qualities]
            cells = [_interval(interval) for interval in intervals]
            against = [_against(intervals[0], other) for other in intervals[1:]]
            rows.append((_NAMES.get(label, label), metric.upper(), *cells, *against))
    heads = ("", "", *names, *(f"{name} − {names[0]}" for name in names[1:]))
    note = (
        "Value with the 95 % interval over users; then the difference from the first run. ≈ marks intervals that "
        "overlap, which is a quick look and not a test."
    )
    return Section(title="Quality", head=heads, rows=tuple(rows), note=note if rows else "None was measured.")


def _against(first: Mapping[str, float] | None, other: Mapping[str, float] | None) -> str:
    if first is None or other is None:
        return "–"
    overlap = first["low"] <= other["high"] and other["low"] <= first["high"]
    return f"{other['value'] - first['value']:+.4f}{' ≈' if overlap else ''}".replace("-", "−")


def _interval(metric: Mapping[str, float] | None) -> str:
    return "–" if metric is None else f"{metric['value']:.4f} ({metric['low']:.4f}…{metric['high']:.4f})"


def _privacy(runs: Sequence[FinishedRun], names: list[str]) -> Section:
    spent = [run.summary.get("privacy", {}) for run in runs]
    rows = tuple(
        (_NAMES.get(label, label), *(_spent(found.get(label)) for found in spent))
        for label in dict.fromkeys(label for found in spent for label in found)
    )
    return Section(title="Privacy", head=("", *names), rows=rows, note="" if rows else "No run promises any.")


def _spent(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "no promise"
    return f"ε = {found['epsilon']:.3f} at δ = {found['dp_delta']:g}, {found['unit']} level, {found['rounds']} rounds"


def _last(runs: Sequence[FinishedRun], names: list[str]) -> Section:
    """Return the last known value of every measure of every curve."""
    by_run = [
        {f"{label} {name}".strip(): value for label, rows in series_of(run.rows).items() for name, value in _ends(rows)}
        for run in runs
    ]
    every = dict.fromkeys(name for found in by_run for name in found)
    rows = tuple((name, *(found.get(name, "–") for found in by_run)) for name in every)
    return Section(title="Last metrics", head=("", *names), rows=rows, note="" if rows else "No run has any.")


def _ends(rows: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for name in _WORTH_TELLING:
        known = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if known:
            yield name, _number(known[-1])


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "∞"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, Mapping) else {prefix + name: inner}
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
