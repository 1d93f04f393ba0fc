"""Whether what was stated follows from what was recorded, round by round, and whether a second accountant agrees.

A run states epsilon after every round and in its summary; both must follow from the events. The accountant itself is
held against Opacus' (``simulations/audit/prv.py``), since everything else here is computed with the one that made the
claim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from ownlet.shared.privacy import event_from_json
from ownlet.simulations.audit.promise import Promise
from ownlet.simulations.audit.prv import cross_check
from ownlet.simulations.audit.result import Check

__all__ = ["accountant_checks", "rounds_check"]

_TOLERANCE = 1e-6  # relative: the same accountant on the same events


def accountant_checks(promises: Sequence[Promise]) -> tuple[Check, ...]:
    """Ask a second accountant about each account; the check is named ``user-accountants-agree`` or ``window-...``."""
    checks = []
    for promise in promises:
        check = cross_check(event_from_json(promise.event), promise.dp_delta)
        checks.append(replace(check, name=f"{promise.unit}-{check.name}"))
    return tuple(checks)


def rounds_check(rows: Sequence[Mapping[str, Any]], promise: Promise) -> Check:
    """Check the epsilons that a run stated after its rounds.

    Where rounds are charged, those of ``promise.by_charge`` are held against what was stated after them. Where
    participations are, nobody recorded who had been asked by then, so they may only rise, up to the promise.

    Args:
        rows: of the run's metrics, one per round, in order.
        promise: the account of the run.
    """
    stated = [float(row["epsilon"]) for row in rows]
    falls = [number for number, (before, after) in enumerate(pairwise(stated), start=2) if after < before]
    computed = [] if promise.charge == "participation" else promise.by_charge
    wrong = [
        (at, epsilon, stated[at - 1])
        for at, epsilon in computed
        if 1 <= at <= len(stated) and not math.isclose(epsilon, stated[at - 1], rel_tol=_TOLERANCE)
    ]
    last = stated[-1] if stated else 0.0
    if wrong:
        at, epsilon, told = wrong[0]
        statement = f"After round {at} epsilon was stated as {told:.4f}; the recorded events give {epsilon:.4f}."
    elif falls:
        statement = f"The stated epsilon falls in round {falls[0]}; what was spent cannot come back."
    elif not math.isclose(last, promise.epsilon, rel_tol=_TOLERANCE):
        statement = f"After the last round epsilon was stated as {last:.4f}; in all it is {promise.epsilon:.4f}."
    else:
        statement = f"The epsilons stated after {len(stated)} rounds follow from the recorded events."
        return Check(name="rounds-stated", passed=True, statement=statement, measured=promise.epsilon, claimed=last)
    return Check(name="rounds-stated", passed=False, statement=statement, measured=promise.epsilon, claimed=last)
