"""The fields of a privacy report, in the order of NIST SP 800-226 (https://doi.org/10.6028/NIST.SP.800-226).

Each has a value, which is a number or a name, and a statement in plain language of what that means and of what it does
not mean. Names of fields are fixed, because programs read them (``docs/audit.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ownlet.shared.config import FederationConfig
from ownlet.shared.privacy import ACCOUNTANT
from ownlet.simulations.audit.conditions import (
    Field,
    a_field,
    randomness,
    sampling_assumed,
    sampling_implemented,
    sentence,
    terms_of,
    trust,
    units_of,
)
from ownlet.simulations.audit.fleet_record import fleet_spent
from ownlet.simulations.audit.promise import Promise
from ownlet.simulations.audit.result import AuditResult, Check
from ownlet.simulations.audit.subject import BundleSubject, FleetSubject, LedgerSubject, Subject

__all__ = ["FIELD_NAMES", "counted", "fields_of", "number"]

FIELD_NAMES = (
    "privacy_unit",
    "adjacency",
    "contribution_bound",
    "mechanism",
    "parameters",
    "epsilon_per_charge",
    "epsilon_total",
    "trust_model",
    "sampling_assumed",
    "sampling_implemented",
    "randomness",
    "audit_results",
    "versions",
    "ledger_head",
)
"""Names of the fields, which programs read."""


def fields_of(
    subject: Subject,
    promises: Sequence[Promise],
    checks: Sequence[Check],
    results: Sequence[AuditResult],
    versions: Mapping[str, str],
) -> tuple[Field, ...]:
    """Return every field, in the order of ``FIELD_NAMES``.

    Args:
        subject: what is audited.
        promises: its accounts.
        checks: of its record.
        results: of the measured audits.
        versions: package -> version.
    """
    units = tuple(promise.unit for promise in promises) or units_of(subject)
    terms = terms_of(subject)
    return (
        _privacy_unit(units, terms),
        _adjacency(units),
        _contribution_bound(subject, terms),
        _mechanism(units, terms),
        _parameters(subject, terms, promises),
        _once(promises),
        _total(subject, promises),
        trust(units, terms),
        sampling_assumed(units, terms, subject),
        sampling_implemented(subject, checks),
        randomness(subject),
        _audit_results(results),
        _versions(versions),
        _ledger_head(subject),
    )


def _privacy_unit(units: Sequence[str], terms: FederationConfig | None) -> Field:
    texts = {
        "user": "All events of one user count as one: the guarantee is about a whole person's history.",
        "window": "A window is a slice of one user's history"
        + (f" of at most {terms.windows.window_length} events" if terms is not None else "")
        + ". This does not protect a whole user: each of a user's windows has the guarantee by itself.",
    }
    if not units:
        return a_field("privacy_unit", "Privacy unit", "none", "No unit is protected: nothing is promised.")
    both = " Accounts of different units are never added." if len(units) > 1 else ""
    return a_field("privacy_unit", "Privacy unit", " and ".join(units), " ".join(texts[u] for u in units) + both)


def _adjacency(units: Sequence[str]) -> Field:
    if not units:
        return a_field("adjacency", "Neighbouring data sets", "none", "Without a unit there is nothing to compare.")
    return a_field(
        "adjacency",
        "Neighbouring data sets",
        f"add or remove one {' or one '.join(units)}",
        "Two data sets are neighbours if one has exactly one unit more. Replacing a unit by another counts as two "
        "changes and has a guarantee about twice as weak.",
    )


def _contribution_bound(subject: Subject, terms: FederationConfig | None) -> Field:
    title = "Contribution bound"
    if isinstance(subject, FleetSubject):
        return a_field("contribution_bound", title, "as each charge's plan says", "The plans are in the ledgers.")
    if terms is not None and terms.unit == "user":
        return a_field(
            "contribution_bound",
            title,
            f"L2 norm of a user's whole delta at most {_bound(terms)}, once per round",
            "However much a user did, no more than this reaches the sum of a round. Longer deltas are scaled down.",
        )
    if terms is not None and terms.unit == "window":
        turns = f"; {counted(terms.turns, 'round')} per device" if terms.turns else ""
        return a_field(
            "contribution_bound",
            title,
            f"L2 norm of a window's gradient at most {terms.plan.clip_norm:g}, in each step{turns}",
            "However unusual a window is, no more than this reaches the sum of a step. Windows of one user share no "
            "events, so that one event is in one window only.",
        )
    if isinstance(subject, LedgerSubject) and (bounds := _clip_norms(subject)):
        return a_field(
            "contribution_bound",
            title,
            f"L2 norm of a window's gradient at most {', '.join(f'{bound:g}' for bound in bounds)}",
            "As each charge's plan states it. A ledger records it and cannot show that the training obeyed.",
        )
    return a_field(
        "contribution_bound", title, "none", "Nothing bounds what one unit adds, so nothing can be promised."
    )


def _bound(terms: FederationConfig) -> str:
    if terms.adaptive_clip.quantile == 0:
        return f"{terms.clip_norm:g}"
    return f"C, which starts at {terms.clip_norm:g} and follows a noised quantile"


def _clip_norms(subject: LedgerSubject) -> list[float]:
    plans = [entry["plan"] for entry in subject.entries if entry["state"] == "intent" and entry["unit"] == "window"]
    return sorted({float(plan["clip_norm"]) for plan in plans})


def _mechanism(units: Sequence[str], terms: FederationConfig | None) -> Field:
    title = "Mechanism"
    if not units:
        return a_field("mechanism", title, "none", "Deltas are released as they are, without noise.")
    where = {
        "user": "the server adds one Gaussian to the sum of a round's clipped deltas",
        "window": "the device adds a Gaussian to the sum of clipped gradients in every training step (DP-SGD)",
    }
    if terms is not None and terms.secure.enabled:
        where["user"] = "every node adds a share of the noise to its sum, in whole numbers, and masks it; what counts "
        where["user"] += "is the noise of the shares that arrived"
    return a_field(
        "mechanism",
        title,
        "Gaussian, subsampled where the charged events say so" if terms is None else _mechanism_of(terms),
        sentence("; ".join(where[unit] for unit in units))
        + ". Whatever is computed from what was released afterwards costs nothing more.",
    )


def _mechanism_of(terms: FederationConfig) -> str:
    if terms.correlated:
        return "Gaussian, correlated over rounds"
    if terms.secure.enabled and terms.unit == "user":
        return "Discrete Gaussian, in shares, Poisson-subsampled" if not terms.turns else "Discrete Gaussian, in shares"
    sampled = terms.plan.sample_rate < 1 if terms.unit == "window" else not terms.turns and terms.asked_rate < 1
    return "Poisson-subsampled Gaussian" if sampled else "Gaussian"


def _parameters(subject: Subject, terms: FederationConfig | None, promises: Sequence[Promise]) -> Field:
    title = "Parameters"
    meaning = (
        "q is the chance of a unit to be in a sum, C the contribution bound, sigma the noise's standard deviation "
        "divided by C. None of them depends on data."
    )
    if isinstance(subject, FleetSubject):
        told = f"{subject.summary.ledgers:,} ledgers; budgets: {'; '.join(subject.summary.budgets) or 'none'}"
        return a_field("parameters", title, told, "The charges and their events are in the ledgers, line by line.")
    if terms is None:
        if not promises:
            return a_field("parameters", title, "none", "Nothing was charged.")
        events = "; ".join(f"{promise.unit}: {counted(promise.charges, 'charge')}" for promise in promises)
        return a_field("parameters", title, events, "The charges and their events are in the ledger, line by line.")
    if terms.unit == "user":
        rate = f"{counted(terms.turns, 'turn')} per user" if terms.turns else f"q = {terms.asked_rate:g}"
        rate = f"{terms.noise_plan.min_separation} groups in turn" if terms.correlated else rate
        value = f"{rate}, sigma = {terms.noise_multiplier:.4g}, C = {terms.clip_norm:g}"
        return a_field("parameters", title, f"{value}, at most {terms.rounds} rounds", meaning)
    plan = terms.plan
    if terms.unit == "window":
        value = f"q = {plan.sample_rate:g}, sigma = {plan.noise_multiplier:.4g}, C = {plan.clip_norm:g}"
        return a_field("parameters", title, f"{value}, {counted(plan.steps, 'step')} in a participation", meaning)
    return a_field(
        "parameters", title, f"no noise, {terms.rounds} rounds", "Without noise there is nothing to account."
    )


def _once(promises: Sequence[Promise]) -> Field:
    known = [(p, p.epsilon_once) for p in promises if p.epsilon_once is not None]
    value = "; ".join(f"{number(once)} per {p.charge} ({p.unit}, delta {p.dp_delta:g})" for p, once in known)
    return a_field(
        "epsilon_per_charge",
        "Epsilon of one charge",
        value or "not one value",
        "What one round, or one participation of a device, costs by itself. Costs of several do not simply add up: "
        "together they cost less than the sum.",
    )


def _total(subject: Subject, promises: Sequence[Promise]) -> Field:
    if isinstance(subject, FleetSubject):
        return a_field(
            "epsilon_total",
            "Epsilon in total",
            fleet_spent(subject.summary),
            "Each device has an account of its own, at the delta of its budget. Units and devices are never added.",
        )
    if not promises:
        spent = isinstance(subject, LedgerSubject)
        return a_field(
            "epsilon_total",
            "Epsilon in total",
            "0: nothing was charged" if spent else "none: nothing is promised",
            "Nothing was trained for release on this device." if spent else "There is no finite epsilon to state.",
        )
    value = "; ".join(
        f"{number(p.epsilon)} at delta {p.dp_delta:g} per {p.unit}, after {counted(p.charges, p.charge)}"
        + (f" (limit {p.limit:g})" if math.isfinite(p.limit) else "")
        for p in promises
    )
    finite = [p for p in promises if p.promises]
    odds = f"about {_times(finite[0].epsilon)} times" if len(finite) == 1 else "e to the power epsilon times"
    planned = " A bundle states what its terms allow; what a device spent is in its ledger." * (
        isinstance(subject, BundleSubject)
    )
    return a_field(
        "epsilon_total",
        "Epsilon in total",
        value,
        f"Whoever sees everything that was released can become at most {odds} as sure about one unit as before, except "
        f"with a probability of about delta. Computed by {ACCOUNTANT}: an upper bound.{planned}",
    )


def _times(epsilon: float) -> str:
    """Return e to the power epsilon for people: two digits matter, and none of a number beyond a million."""
    times = math.exp(min(epsilon, 700.0))
    if times < 10:
        return f"{times:.1f}"
    return f"{float(f'{times:.2g}'):,.0f}" if times < 1e6 else f"10^{epsilon / math.log(10):.0f}"


def _audit_results(results: Sequence[AuditResult]) -> Field:
    title = "Measured"
    if not results:
        return a_field("audit_results", title, "not measured", "Only the record was checked, nothing was run.")
    value = "; ".join(
        f"{r.method} of {r.subject}: at least {number(r.epsilon_lower)}, claimed {number(r.claim.epsilon)}"
        for r in results
    )
    return a_field(
        "audit_results",
        title,
        value,
        "A measured lower bound above the claim proves that the code breaks it. One below it proves nothing by itself: "
        "it says how much was found.",
    )


def _versions(versions: Mapping[str, str]) -> Field:
    first = ("ownlet", "torch", "opacus", "executorch", "dp-accounting", "cryptography")
    value = ", ".join(f"{name} {versions[name]}" for name in first if name in versions)
    return a_field(
        "versions", "Versions", value or "not recorded", "What the record was made with. The page lists all at its end."
    )


def _ledger_head(subject: Subject) -> Field:
    title = "Ledger head"
    if isinstance(subject, LedgerSubject) and subject.report is not None:
        return a_field(
            "ledger_head",
            title,
            f"{subject.report.entries} {subject.report.head}",
            "Number and mac of the last entry. Keep both: a later ledger of this device must contain them.",
        )
    if isinstance(subject, LedgerSubject):
        return a_field("ledger_head", title, "unknown", "The lines cannot be followed to a last one.")
    return a_field("ledger_head", title, "none", "Each device has a ledger of its own, which is audited by itself.")


def counted(count: int, name: str) -> str:
    """Return a number of things for people."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


def number(value: float) -> str:
    """Return an epsilon for people."""
    return "infinite" if math.isinf(value) else f"{value:.3f}"
