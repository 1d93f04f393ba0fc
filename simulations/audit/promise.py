"""What a record promises and has spent, per privacy unit, as numbers: computed from its events, never read off.

A run states one unit. A device's ledger has an account for each unit, which are never added. A bundle carries the terms
of the run that it belongs to: what its devices will be asked for.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from ownlet.device.budget import Totals, epsilon_of, totals_of
from ownlet.device.chain import canonical
from ownlet.server.checkpoint import spent_event
from ownlet.shared.config import FederationConfig
from ownlet.shared.privacy import event_to_json
from ownlet.simulations.audit.subject import BundleSubject, FleetSubject, LedgerSubject, RunSubject, Subject

__all__ = ["Promise", "promises_of"]

_DELTAS = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
_POINTS = 12  # of a curve over charges; each takes the accountant a tenth of a second or more


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The account of one privacy unit.

    Args:
        unit: what one record is.
        dp_delta: the delta at which epsilons are stated.
        epsilon: of everything that is charged; infinite where something was released without noise.
        epsilon_once: of one charge: a round, or one participation of a device; None where charges differ.
        limit: what it may never exceed, a target or a budget; infinite where there is none.
        charges: how many rounds or participations that is.
        charge: what one charge is, in a word.
        by_charge: (number of the charge, epsilon so far), rising.
        by_delta: (delta, epsilon) of everything that is charged.
        event: canonical JSON of everything that is charged.
    """

    unit: Literal["user", "window"]
    dp_delta: float
    epsilon: float
    epsilon_once: float | None
    limit: float
    charges: int
    charge: Literal["round", "participation"]
    by_charge: tuple[tuple[int, float], ...]
    by_delta: tuple[tuple[float, float], ...]
    event: str

    @property
    def promises(self) -> bool:
        """Whether anything finite is said."""
        return math.isfinite(self.epsilon)


def promises_of(subject: Subject) -> tuple[Promise, ...]:
    """Return the accounts of what is audited, each unit at most once; none where nothing is promised or charged."""
    match subject:
        case RunSubject():
            return _of_terms(subject.terms, len(subject.rows), _most_participations(subject), subject.realised)
        case BundleSubject():
            terms = subject.manifest.federation
            return () if terms is None else _of_terms(terms, terms.rounds, terms.turns or 1)
        case LedgerSubject():
            return _of_ledger(subject)
        case FleetSubject():
            return ()  # each device has its own


def _most_participations(subject: RunSubject) -> int:
    """How often the most asked user was asked: of the server's record, else as often as it can have been."""
    if subject.checkpoint is not None:
        return int(subject.checkpoint.participations.max(initial=0))
    return subject.terms.turns or len(subject.rows)


def _of_terms(
    terms: FederationConfig, rounds: int, participations: int, realised: Sequence[float] = ()
) -> tuple[Promise, ...]:
    """Return the account of a federated run; rounds began, and the most asked user took part so often.

    Under secure aggregation rounds have the noise that was ``realised``, and others that of the terms.
    """
    if terms.unit == "none":
        return ()
    by_turn = terms.unit == "window" or terms.turns > 0

    def upto(charges: int) -> Totals:
        began = rounds if by_turn else charges
        return totals_of(event_to_json(spent_event(terms, began, np.array([charges]), realised=realised[:began])))

    return (
        _promise(
            "user" if terms.unit == "user" else "window",
            upto,
            participations if by_turn else rounds,
            # rounds with correlated noise, or each with a noise of its own, have no price in common
            None if terms.correlated or len(set(realised)) > 1 else upto(1),
            terms.dp_delta,
            terms.target_epsilon,
            "participation" if by_turn else "round",
        ),
    )


def _of_ledger(subject: LedgerSubject) -> tuple[Promise, ...]:
    if subject.report is None:
        return ()
    budget, found = subject.report.budget, []
    for unit in subject.report.spent:
        charged = [entry for entry in subject.entries if entry["state"] == "intent" and entry["unit"] == unit]
        costs = [totals_of(canonical(entry["event"]).decode()) for entry in charged]
        if costs:
            name: Literal["user", "window"] = "user" if unit == "user" else "window"
            once = costs[0] if all(cost == costs[0] for cost in costs) else None
            upto = partial(_first, costs)
            found.append(_promise(name, upto, len(costs), once, budget.dp_delta, budget.epsilon, "participation"))
    return tuple(found)


def _promise(
    unit: Literal["user", "window"],
    upto: Callable[[int], Totals],
    charges: int,
    once: Totals | None,
    dp_delta: float,
    limit: float,
    charge: Literal["round", "participation"],
) -> Promise:
    """Return the account of so many charges, of which the first n cost ``upto(n)`` together."""
    everything = upto(charges)
    numbers = sorted({int(at) for at in np.linspace(0, charges, _POINTS).round()} | {min(1, charges)})
    return Promise(
        unit=unit,
        dp_delta=dp_delta,
        epsilon=epsilon_of(everything, dp_delta),
        epsilon_once=None if once is None else epsilon_of(once, dp_delta),
        limit=limit,
        charges=charges,
        charge=charge,
        by_charge=tuple((at, epsilon_of(upto(at), dp_delta)) for at in numbers),
        by_delta=tuple((at, epsilon_of(everything, at)) for at in sorted({*_DELTAS, dp_delta})),
        event=_event(everything),
    )


def _first(costs: Sequence[Totals], count: int) -> Totals:
    return sum((Counter(dict(cost)) for cost in costs[:count]), Counter[str]())


def _event(totals: Totals) -> str:
    parts = [{"count": n, "event": json.loads(name), "kind": "repeated"} for name, n in sorted(totals.items()) if n]
    return json.dumps({"events": parts, "kind": "composed"}, sort_keys=True, separators=(",", ":"))
