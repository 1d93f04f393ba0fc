"""Checks on what a subject wrote down: whether its parts agree with each other and with the accountant.

They find records that were altered, cut off or made by other code than they say. They cannot find what was never
written, which is what the measured audits are for.

Two of them ask whether cohorts look as the accounting assumes. Under Poisson sampling the size of a cohort is binomial
with mean ``N q`` and variance ``N q (1 - q)``: cohorts of a fixed size vary too little, a wrong rate moves their mean.
Both are two-sided tests at a level so small that a correct run fails one in a million.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2  # type: ignore[import-untyped]

from ownlet.device.chain import canonical
from ownlet.server.checkpoint import spent_event
from ownlet.shared.config import Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.simulations.audit.accounts import rounds_check
from ownlet.simulations.audit.fleet_record import fleet_checks
from ownlet.simulations.audit.promise import Promise
from ownlet.simulations.audit.result import Check
from ownlet.simulations.audit.subject import BundleSubject, FleetSubject, LedgerSubject, RunSubject, Subject

__all__ = ["INTEGRITY", "record_checks"]

INTEGRITY = ("chain",)
"""Checks whose failure means that the record itself cannot be believed: exit code 2."""

_LEVEL = 1e-6
_TOLERANCE = 1e-6  # relative: the same accountant on the same events


def record_checks(subject: Subject, promises: tuple[Promise, ...]) -> tuple[Check, ...]:
    """Check what a subject wrote down.

    Args:
        subject: what is audited.
        promises: its accounts, computed from its events.
    """
    match subject:
        case RunSubject():
            return (*_run_checks(subject, promises), *_checkpoint_checks(subject))
        case LedgerSubject():
            return _ledger_checks(subject, promises)
        case BundleSubject():
            return _bundle_checks(subject)
        case FleetSubject():
            return fleet_checks(subject.summary)


def _run_checks(subject: RunSubject, promises: tuple[Promise, ...]) -> tuple[Check, ...]:
    stated, checks = subject.stated, []
    told = int(stated.get("rounds", len(subject.rows)))
    checks.append(
        Check(
            name="rounds-recorded",
            passed=told == len(subject.rows),
            statement=f"The summary speaks of {told} rounds, the metrics hold {len(subject.rows)}.",
            measured=len(subject.rows),
            claimed=told,
        )
    )
    if promises:
        promise = promises[0]
        checks.append(_agreement("epsilon-recomputed", promise.epsilon, stated.get("epsilon"), stated.get("dp_delta")))
        checks.append(rounds_check(subject.rows, promise))
        checks.append(_within(promise))
    elif stated:
        checks.append(
            Check(
                name="epsilon-recomputed",
                passed=False,
                statement="The summary states an epsilon, and the settings promise nothing.",
                claimed=float(stated["epsilon"]),
            )
        )
    return tuple(checks)


def _agreement(name: str, computed: float, stated: float | None, dp_delta: float | None) -> Check:
    if stated is None:
        passed = math.isinf(computed)
        return Check(
            name=name,
            passed=passed,
            statement="The summary states no epsilon, and none can be stated: the rounds were not private."
            if passed
            else f"The summary states no epsilon, although the settings give {computed:.4f}.",
            measured=computed,
        )
    return Check(
        name=name,
        passed=math.isclose(computed, stated, rel_tol=_TOLERANCE),
        statement=f"From the recorded settings and rounds, epsilon is {computed:.4f} at delta {dp_delta:g}; "
        f"the summary states {stated:.4f}.",
        measured=computed,
        claimed=float(stated),
    )


def _within(promise: Promise) -> Check:
    limit = "no limit was set" if math.isinf(promise.limit) else f"the limit is {promise.limit:g}"
    return Check(
        name=f"{promise.unit}-within-limit",
        passed=promise.epsilon <= promise.limit * (1 + _TOLERANCE),
        statement=f"Epsilon per {promise.unit} is {promise.epsilon:.4f}, and {limit}.",
        measured=promise.epsilon,
        claimed=promise.limit,
    )


def _checkpoint_checks(subject: RunSubject) -> tuple[Check, ...]:
    kept = subject.checkpoint
    if kept is None:
        return ()
    names = (
        "unit",
        "cohort_rate",
        "turns",
        "clip_norm",
        "noise_multiplier",
        "dp_delta",
        "plan",
        "windows",
        "noise_plan",
        "adaptive_clip",
        "secure",
    )
    event = spent_event(subject.terms, kept.rounds, kept.participations, realised=subject.realised)
    charged = event_to_json(event) == kept.event
    differ = [name for name in names if getattr(kept.terms, name) != getattr(subject.terms, name)]
    checks = [
        Check(
            name="server-ran-the-terms",
            passed=not differ,
            statement=f"The server's state names other values than the settings for {', '.join(differ)}."
            if differ
            else "The server's state names the same terms as the settings.",
        ),
        Check(
            name="server-charged",
            passed=charged,
            statement=f"The event that the server charged is {'' if charged else 'not '}what the terms, its rounds and "
            "the most asked user make.",
        ),
        Check(
            name="server-rounds",
            passed=kept.rounds == len(subject.rows),
            statement=f"The server's state counts {kept.rounds} rounds, the metrics {len(subject.rows)}.",
            measured=kept.rounds,
            claimed=len(subject.rows),
        ),
    ]
    if subject.adapter is not None and subject.terms.unit != "window":
        vector = subject.adapter[1]  # under the unit window public users may have chosen another length of the step
        same = any(np.array_equal(vector, other) for other in kept.adapters)
        checks.append(
            Check(
                name="adapter-is-the-charged-one",
                passed=same,
                statement="The published adapter is the one that the charged rounds ended with."
                if same
                else "The published adapter is not the one that the charged rounds ended with.",
            )
        )
    if subject.terms.turns:
        checks.append(_equal_turns(subject, int(kept.participations.max(initial=0))))
    elif not subject.terms.correlated:
        checks += _sampling_checks(subject, len(kept.participations))
    return tuple(checks)


def _equal_turns(subject: RunSubject, most: int) -> Check:
    turns = subject.terms.turns
    return Check(
        name="turns",
        passed=most <= turns,
        statement=f"The terms give every user at most {turns} of the rounds; the most asked user was in {most}.",
        measured=most,
        claimed=turns,
    )


def _sampling_checks(subject: RunSubject, num_users: int) -> list[Check]:
    """Test whether the sizes of the cohorts are those of Poisson sampling."""
    rate, sizes = subject.terms.asked_rate, np.array([row["num_asked"] for row in subject.rows], np.int64)
    if len(sizes) == 0 or num_users == 0:
        return []
    asked, slots = int(sizes.sum()), num_users * len(sizes)
    measured = asked / slots
    checks = [
        Check(
            name="cohort-rate",
            passed=float(binomtest(min(asked, slots), slots, rate).pvalue) > _LEVEL and asked <= slots,
            statement=f"{measured:.4f} of {num_users:,} users were asked per round, where the accounting assumes "
            f"{rate:g}.",
            measured=measured,
            claimed=rate,
        )
    ]
    if 0 < rate < 1 and len(sizes) >= 5:
        expected, variance = num_users * rate, num_users * rate * (1 - rate)
        spread = float(((sizes - expected) ** 2).sum() / variance)  # chi-squared with as many degrees as rounds
        tail = min(chi2.cdf(spread, len(sizes)), chi2.sf(spread, len(sizes)))
        checks.append(
            Check(
                name="cohort-spread",
                passed=float(2 * tail) > _LEVEL,
                statement=f"Cohort sizes vary {spread / len(sizes):.2f} times as much as under Poisson sampling "
                f"(expected 1; cohorts of a fixed size give 0).",
                measured=spread / len(sizes),
                claimed=1.0,
            )
        )
    return checks


def _ledger_checks(subject: LedgerSubject, promises: tuple[Promise, ...]) -> tuple[Check, ...]:
    hint = "" if subject.keyed else " No key was given: this finds damage, not forgery."
    chain = Check(
        name="chain",
        passed=subject.broken is None,
        statement=f"Every line, the totals of every checkpoint and the budget of every charge verify.{hint}"
        if subject.broken is None
        else f"{subject.broken}.{hint}",
    )
    if subject.report is None:
        return (chain,)
    torn = subject.report.torn_bytes
    whole = Check(
        name="whole-lines",
        passed=torn == 0,
        statement=f"{torn} bytes of a torn line stand at the end. A device that lost power leaves that and cuts it off "
        "at its next charge; so does whoever copied only part of the file."
        if torn
        else "The file ends with a whole line.",
        measured=torn,
        claimed=0,
    )
    return (chain, whole, _plans_check(subject), *map(_within, promises))


def _plans_check(subject: LedgerSubject) -> Check:
    """Compare what window-level charges cost with what their plans say."""
    wrong = []
    for entry in subject.entries:
        charged = entry["state"] == "intent" and entry["unit"] == "window"
        if charged and canonical(entry["event"]).decode() != _cost_of(entry["plan"]):
            wrong.append(int(entry["seq"]))
    shown = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    return Check(
        name="charges-match-plans",
        passed=not wrong,
        statement=f"Charges {shown} cost other than the plan beside them."
        if wrong
        else "Every window-level charge costs what the plan beside it costs.",
        measured=len(wrong),
        claimed=0,
    )


def _cost_of(plan: Mapping[str, Any]) -> str | None:
    """Return the event of one training by a recorded plan; None where it is no plan."""
    try:
        raw: dict[str, Any] = {name: math.inf if value == "inf" else value for name, value in plan.items()}
        return event_to_json(window_level_event(replace(Plan(), **raw), 1))
    except (TypeError, ConfigError):
        return None


def _bundle_checks(subject: BundleSubject) -> tuple[Check, ...]:
    files = Check(
        name="files",
        passed=True,  # a bundle that fails this is refused before there is a report
        statement=f"All {len(subject.manifest.files)} files have the sizes and hashes of the manifest, and the "
        "manifest its own. That finds damage, not forgery: the manifest is not signed.",
    )
    held, named = subject.adapter[2], subject.manifest.adapter_version
    version = Check(
        name="adapter-version",
        passed=held == named,
        statement=f"The adapter is version {held}, the manifest names {named}.",
        measured=held,
        claimed=named,
    )
    return (files, version)
