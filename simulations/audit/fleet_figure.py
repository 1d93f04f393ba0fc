"""The budget of a fleet as a picture: how many devices have spent which share of what they may."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ownlet.simulations.audit.fleet_summary import FleetSummary

__all__ = ["budget_figure"]

_BINS = np.linspace(0.0, 1.0, 21)  # shares of the budget
_COLOURS = {"window": "#2a6f97", "user": "#c8553d"}


def budget_figure(fleet: FleetSummary) -> Figure:
    """Draw devices by the share of their budget that is spent, one panel per unit, since units are never added.

    Whoever is past the budget stands in a bar of its own behind 1. Devices without a limit are left out.

    Args:
        fleet: from ``audit_fleet``.

    Returns:
        a figure; without any charge it says so.
    """
    figure = Figure(figsize=(7.0, 2.9 * max(1, len(fleet.units))), layout="constrained")
    if not fleet.units:
        axes = figure.subplots()
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no ledger has a charge", ha="center", va="center")
        return figure
    panels = figure.subplots(len(fleet.units), squeeze=False)[:, 0]
    for axes, (name, unit) in zip(panels, fleet.units.items(), strict=True):
        limited = [(epsilon / budget, devices) for epsilon, budget, devices in unit.spent if np.isfinite(budget)]
        shares = np.array([share for share, _ in limited])
        weights = np.array([devices for _, devices in limited], np.float64)
        within = shares <= 1 + 1e-6
        counts, _ = np.histogram(np.minimum(shares[within], 1.0), _BINS, weights=weights[within])
        axes.bar(_BINS[:-1], counts, width=np.diff(_BINS), align="edge", color=_COLOURS[name], edgecolor="white")
        if (~within).any():
            axes.bar(1.0, weights[~within].sum(), width=0.05, align="edge", color="black", label="past the budget")
            axes.legend(frameon=False)
        axes.axvline(1.0, color="black", linewidth=1.2)
        axes.set_title(f"Unit {name}: {unit.devices:,} devices, {unit.exhausted:,} exhausted", loc="left")
        axes.set_xlabel("share of the budget that is spent (epsilon / budget)")
        axes.set_ylabel("devices")
        axes.set_xlim(0.0, 1.06)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
