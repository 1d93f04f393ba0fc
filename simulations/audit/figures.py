"""The figures of the audit's page, in the style of the other pages (``simulations/figures.py``)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from ownlet.simulations.audit.devices import DeviceBudgets
from ownlet.simulations.audit.promise import Promise
from ownlet.simulations.audit.result import AuditResult
from ownlet.simulations.figures import BASE, DASHES, SERIES, drawing, legend

__all__ = ["bounds_against_claims", "budgets_over_devices", "epsilon_by_charge", "epsilon_by_delta", "score_histogram"]

_BARS = 30


def epsilon_by_charge(promise: Promise) -> str:
    """Draw the epsilon spent over rounds or participations; ``<svg>``, or "" where there is none to draw."""
    points = [(at, epsilon) for at, epsilon in promise.by_charge if math.isfinite(epsilon)]
    if len(points) < 3:  # one charge is no curve
        return ""
    title = f"Epsilon per {promise.unit} over {promise.charge}s"
    with drawing(f"by-charge-{promise.unit}", title) as (axes, result):
        axes.plot(*zip(*points, strict=True), color=SERIES[0], marker="o", markersize=4, label="spent")
        if math.isfinite(promise.limit):
            axes.axhline(promise.limit, color=BASE, linestyle=DASHES, linewidth=1.5, label=f"limit {promise.limit:g}")
        axes.set_ylabel(f"ε at δ = {promise.dp_delta:g}")
        axes.set_xlabel(f"{promise.charge}s")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        legend(axes)
    return result[0]


def epsilon_by_delta(promise: Promise) -> str:
    """Draw the curve of (epsilon, delta) that hold together; ``<svg>``, or "" where there is none."""
    points = [(at, epsilon) for at, epsilon in promise.by_delta if math.isfinite(epsilon)]
    if len(points) < 2:
        return ""
    with drawing(f"by-delta-{promise.unit}", f"Epsilon per {promise.unit} at each delta") as (axes, result):
        axes.plot(*zip(*points, strict=True), color=SERIES[0])
        stated = [point for point in points if point[0] == promise.dp_delta]
        axes.plot(*zip(*stated, strict=True), "o", color=SERIES[2], markersize=8, label="stated", linestyle="none")
        axes.set_xscale("log")
        axes.set_xlabel("δ")
        axes.set_ylabel("ε")
        axes.set_ylim(bottom=0)
        legend(axes)
    return result[0]


def score_histogram(result: AuditResult, at: int = 0) -> str:
    """Draw how canaries that took part score beside those that did not; ``<svg>``, or "" without scores."""
    groups = {name: np.array(scores) for name, scores in result.scores.items() if len(scores)}
    groups = {name: scores[np.isfinite(scores)] for name, scores in groups.items()}
    if not any(len(scores) for scores in groups.values()):
        return ""
    everything = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(everything, bins=_BARS).tolist()
    with drawing(f"scores-{at}", f"Scores of canaries, {result.method} audit of {result.subject}") as (axes, drawn):
        for number, (name, scores) in enumerate(groups.items()):
            colour = SERIES[(0, 2, 1, 3)[number % 4]]
            label = f"{name} ({len(scores):,})"
            axes.hist(scores, edges, color=colour, alpha=0.35, label=label)
            axes.hist(scores, edges, color=colour, histtype="step", linewidth=1.5)
        axes.set_xlabel("score")
        axes.set_ylabel("canaries")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    return drawn[0]


def bounds_against_claims(results: Sequence[AuditResult]) -> str:
    """Draw each measured lower bound beside what is claimed; ``<svg>``, or "" without results."""
    if not results:
        return ""
    size = (7.6, 1.4 + 0.75 * len(results))
    with drawing("bounds", "Measured lower bounds against claims", size=size) as (axes, drawn):
        claims = [result.claim.epsilon for result in results]
        bounds = [result.epsilon_lower for result in results]
        most = max([value for value in (*claims, *bounds) if math.isfinite(value)], default=1.0) or 1.0
        for at, (result, claim, bound) in enumerate(zip(results, claims, bounds, strict=True)):
            shown = bound if math.isfinite(bound) else 1.25 * most
            axes.barh(at + 0.12, shown, height=0.42, color=SERIES[2] if bound > claim else SERIES[0])
            mark = [at - 0.14, at + 0.38]
            axes.plot([claim, claim], mark, color=BASE, linewidth=3, label="claim" if at == 0 else None)
            text = f"{result.method}, {result.subject}: {'∞' if math.isinf(bound) else f'{bound:.2f}'} of {claim:.2f}"
            axes.annotate(text, (0, at - 0.2), (2, 0), textcoords="offset points", va="center", fontsize=11)
        axes.set_yticks([])
        axes.set_ylim(len(results) - 0.4, -0.5)
        axes.set_xlim(0, 1.3 * most)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("ε, lower bound")
        legend(axes)
    return drawn[0]


def budgets_over_devices(budgets: DeviceBudgets | None) -> str:
    """Draw how many devices have spent how much; ``<svg>``, or "" where that is not known."""
    if budgets is None or not budgets.devices:
        return ""
    finite = [(e, n) for e, n in zip(budgets.epsilons, budgets.devices, strict=True) if math.isfinite(e)]
    if not finite:
        return ""
    epsilons, devices = np.array(finite).T
    top = budgets.limit if math.isfinite(budgets.limit) else epsilons.max()
    with drawing("devices", "Devices by the epsilon that they have spent") as (axes, drawn):
        edges = np.linspace(0, max(top, epsilons.max(), 1e-9) * 1.02, _BARS + 1).tolist()
        axes.hist(epsilons, edges, weights=devices, color=SERIES[0], alpha=0.75)
        if math.isfinite(budgets.limit):
            axes.axvline(budgets.limit, color=BASE, linestyle=DASHES, linewidth=1.5, label=f"limit {budgets.limit:g}")
        axes.set_xlabel(f"ε per {budgets.unit} at δ = {budgets.dp_delta:g}")
        axes.set_ylabel("devices")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes)
    return drawn[0]
