"""How the budget spreads over devices: how many of them have spent how much.

Under the unit ``window`` every device adds its own noise and is charged for its own participations, so devices differ.
Under the unit ``user`` the promise is the same for everybody, because who was in a cohort is secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ownlet.device.budget import epsilon_of, totals_of
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.simulations.audit.fleet_summary import FleetSummary
from ownlet.simulations.audit.subject import FleetSubject, RunSubject, Subject

__all__ = ["DeviceBudgets", "budgets_of"]


@dataclass(frozen=True, kw_only=True)
class DeviceBudgets:
    """Devices by what they have spent.

    Args:
        unit: whose privacy.
        dp_delta: at which epsilon is taken.
        limit: what no device may exceed; infinite where there is none.
        epsilons: distinct epsilons, rising.
        devices: how many devices have spent each of them.
    """

    unit: Literal["user", "window"]
    dp_delta: float
    limit: float
    epsilons: tuple[float, ...]
    devices: tuple[int, ...]


def budgets_of(subject: Subject) -> DeviceBudgets | None:
    """Return how many devices of a window-level run spent how much; None where devices do not differ or are not known.

    Args:
        subject: what is audited.
    """
    if isinstance(subject, FleetSubject):
        return _of_fleet(subject.summary)
    if not isinstance(subject, RunSubject) or subject.checkpoint is None or subject.terms.unit != "window":
        return None
    terms = subject.terms
    counts, devices = np.unique(subject.checkpoint.participations, return_counts=True)
    costs = [totals_of(event_to_json(window_level_event(terms.plan, int(count)))) for count in counts]
    return DeviceBudgets(
        unit="window",
        dp_delta=terms.dp_delta,
        limit=terms.target_epsilon,
        epsilons=tuple(epsilon_of(cost, terms.dp_delta) for cost in costs),
        devices=tuple(int(number) for number in devices),
    )


def _of_fleet(fleet: FleetSummary) -> DeviceBudgets | None:
    """Return how the budget spreads over the devices of the unit that most of them spent."""
    if not fleet.units:
        return None
    unit = max(fleet.units, key=lambda name: fleet.units[name].devices)
    spent, budgets = fleet.units[unit].spent, {budget for _, budget, _ in fleet.units[unit].spent}
    return DeviceBudgets(
        unit="user" if unit == "user" else "window",
        dp_delta=float(next(iter(fleet.budgets)).rpartition(" ")[2]),
        limit=max(budgets),
        epsilons=tuple(epsilon for epsilon, _, _ in spent),
        devices=tuple(devices for _, _, devices in spent),
    )
