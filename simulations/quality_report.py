"""What the quality benchmark shows: one table, comparisons, and two pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ownlet.shared.metrics import Metric
from ownlet.shared.store import write_atomic
from ownlet.simulations.progress import Progress, Silent
from ownlet.simulations.quality import (
    DataResult,
    activity_floor,
    base_metrics,
    epsilon_label,
    federated_gain,
    kept_share,
    method_differences,
    quality_table,
    stage_metrics,
)
from ownlet.simulations.quality_config import QualityConfig
from ownlet.simulations.results import plain_json

__all__ = ["markdown", "write_quality"]

_COLOURS = {
    "lora": "#b7791f",
    "lora-frozen-a": "#2b6cb0",
    "fedsvd": "#63b3ed",
    "rolora": "#dd6b20",
    "iak": "#c53030",
    "bottleneck": "#2f855a",
    "prefix": "#805ad5",
}


def write_quality(
    config: QualityConfig, results: tuple[DataResult, ...], out: Path, progress: Progress | None = None
) -> tuple[Path, ...]:
    """Write ``quality.json``, ``quality.md``, ``quality_comparisons.json`` and ``quality.png``; return their paths.

    Args:
        config: what was measured.
        results: of every data set.
        out: the folder, made if missing.
        progress: told of intervals.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = tuple(out / name for name in ("quality.json", "quality.md", "quality_comparisons.json", "quality.png"))
    with (progress or Silent()).stage("intervals", 2 * sum(len(result.federated) for result in results)) as step:
        table = quality_table(results, on_cell=lambda: step(""))
        comparisons = _comparisons(results, on_cell=lambda: step(""))
    write_atomic(paths[0], (json.dumps(table, indent=1) + "\n").encode())
    write_atomic(paths[1], markdown(config, results).encode())
    write_atomic(paths[2], (json.dumps(comparisons, indent=1, allow_nan=False) + "\n").encode())
    _draw(results).savefig(paths[3], dpi=120)
    return paths


def markdown(config: QualityConfig, results: tuple[DataResult, ...], *, intervals: bool = True) -> str:
    """Return the table of NDCG@10 as Markdown, one part per data set; without intervals it is for a narrow terminal."""
    told = "in brackets the gain over the base with its 95 % interval" if intervals else "with the gain over the base"
    columns = [epsilon_label(epsilon) for epsilon in config.epsilons]
    heads = ["no privacy" if label == "none" else f"ε = {label}" for label in columns]
    parts = []
    for result in results:
        base = base_metrics(result)["ndcg@10"]
        lines = [
            f"**{result.data.name}**: NDCG@10 on {result.base.shape[1]:,} devices, {_seeds(len(result.base))}; "
            f"base {_interval(base)}. Cells: federated, {told}.",
            "",
            f"| method | {' | '.join(heads)} | kept at ε = 2 | personal | federated+personal | local-only | oracle |",
            f"|{'---|' * (len(heads) + 6)}",
        ]
        for method in dict.fromkeys(name for name, _ in result.federated):
            cells = []
            for epsilon in config.epsilons:
                gain = federated_gain(result, method, epsilon)
                value = _number(stage_metrics(result, method, epsilon)["federated"]["ndcg@10"].value)
                cells.append(f"{value} ({_signed(gain)})" if intervals else f"{value} {_plus(gain)}")
            kept = (
                kept_share(result, method, 2.0) if 2.0 in config.epsilons and math.inf in config.epsilons else math.nan
            )
            cells.append("" if math.isnan(kept) else f"{kept:.0%}")
            if math.inf in config.epsilons:
                stages = stage_metrics(result, method, math.inf)
                for stage in ("personal", "federated+personal", "local-only", "centralised"):
                    cells.append(_number(stages[stage]["ndcg@10"].value))
            lines.append(f"| {method} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _comparisons(results: tuple[DataResult, ...], on_cell: Callable[[], None]) -> dict[str, object]:
    """Return what the table does not show: paired differences, segments, publication, tuning, bytes."""
    found: dict[str, object] = {}
    for result in results:
        methods = tuple(dict.fromkeys(name for name, _ in result.federated))
        labels = {key: f"{key[0]}, {epsilon_label(key[1])}" for key in result.federated}
        by_activity = {}
        for key, label in labels.items():
            by_activity[label] = {
                row.segment: {**asdict(row.gain), "verdict": row.verdict} for row in activity_floor(result, *key)
            }
            on_cell()
        found[result.data.name] = {
            "tuned": {method: plain_json(asdict(tuned)) for method, tuned in result.tuned.items()},
            "minus lora-frozen-a": {
                method: {label: asdict(metric) for label, metric in differences.items()}
                for method in methods
                if method != "lora-frozen-a" and "lora-frozen-a" in methods
                for differences in [method_differences(result, method, "lora-frozen-a")]
            },
            "personal on federated, by activity": by_activity,
            "kept at epsilon": {
                labels[key]: share
                for key in result.federated
                if math.isfinite(key[1]) and (key[0], math.inf) in result.federated
                for share in [kept_share(result, *key)]
                if math.isfinite(share)
            },
            "published": {
                labels[key]: [run.public_ndcg >= run.base_public_ndcg for run in runs]
                for key, runs in result.federated.items()
            },
            "epsilon_spent": {
                labels[key]: max(run.epsilon for run in runs)
                for key, runs in result.federated.items()
                if math.isfinite(key[1])
            },
            "delta_bytes": {
                method: result.federated[method, epsilon][0].delta_bytes for method, epsilon in result.federated
            },
        }
    return found


def _draw(results: tuple[DataResult, ...]) -> Figure:
    """Draw gain against epsilon and against bytes, one row per data set."""
    figure = Figure(figsize=(11, 3.8 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 2, squeeze=False)
    for row, result in enumerate(results):
        _against_epsilon(panels[row][0], result)
        _against_bytes(panels[row][1], result)
        panels[row][0].legend(fontsize=8, frameon=False, loc="best")
    return figure


def _against_epsilon(axes: Axes, result: DataResult) -> None:
    epsilons = sorted({epsilon for _, epsilon in result.federated})
    methods = tuple(dict.fromkeys(name for name, _ in result.federated))
    for number, method in enumerate(methods):
        gains = [federated_gain(result, method, epsilon) for epsilon in epsilons]
        at = np.arange(len(epsilons)) + 0.06 * (number - (len(methods) - 1) / 2)
        errors = [[g.value - g.low for g in gains], [g.high - g.value for g in gains]]
        values = [g.value for g in gains]
        axes.errorbar(at, values, errors, fmt="o-", markersize=4, linewidth=1.2, color=_COLOURS[method], label=method)
    axes.axhline(0, color="#718096", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(epsilons)), [epsilon_label(epsilon) for epsilon in epsilons])
    axes.set_xlabel("ε, user level")
    axes.set_ylabel("gain in NDCG@10 over the base")
    axes.set_title(f"{result.data.name}: quality against ε", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _against_bytes(axes: Axes, result: DataResult) -> None:
    shown = [epsilon for epsilon in (math.inf, 2.0) if any(key[1] == epsilon for key in result.federated)]
    cells = [key for key in result.federated if key[1] in shown]
    kilobytes = {key: result.federated[key][0].delta_bytes / 1000 for key in cells}
    most = max(kilobytes.values(), default=1.0)
    for method, epsilon in cells:
        gain, at = federated_gain(result, method, epsilon), kilobytes[method, epsilon]
        same = [key for key in cells if kilobytes[key] == at]
        axes.errorbar(
            at + 0.02 * most * (same.index((method, epsilon)) - (len(same) - 1) / 2),
            gain.value,
            [[gain.value - gain.low], [gain.high - gain.value]],
            fmt="o" if math.isinf(epsilon) else "s",
            markerfacecolor=_COLOURS[method] if math.isinf(epsilon) else "white",
            color=_COLOURS[method],
            label=f"{method}, ε {epsilon_label(epsilon)}",
        )
    axes.axhline(0, color="#718096", linewidth=1, linestyle="--")
    axes.set_xlim(0, 1.1 * most)
    axes.set_xlabel("kB that a device sends in a round (float32), equal ones side by side")
    axes.set_title("quality against bytes; filled: no privacy, hollow: ε = 2", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"mean of {count} seeds"


def _number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def _interval(metric: Metric) -> str:
    return f"{_number(metric.value)} ({_number(metric.low)} to {_number(metric.high)})"


def _plus(metric: Metric) -> str:
    return f"{metric.value:+.4f}".replace("0.", ".", 1)


def _signed(metric: Metric) -> str:
    value, low, high = (f"{number:+.4f}".replace("0.", ".", 1) for number in (metric.value, metric.low, metric.high))
    return f"{value}, {low} to {high}"
