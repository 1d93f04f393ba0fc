"""The audit of one subject, as immutable plain values.

``assemble`` reads, accounts, checks the record, runs the measured audits and puts everything into an ``AuditReport``.
The page and the JSON file are both made from that value alone.

The verdict has three values, because a run without noise keeps every promise that it makes: ``pass``, ``fail``, and
``nothing-promised``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ownlet.simulations.audit.accounts import accountant_checks
from ownlet.simulations.audit.conditions import Field, not_protected, units_of
from ownlet.simulations.audit.devices import DeviceBudgets, budgets_of
from ownlet.simulations.audit.fields import fields_of, number
from ownlet.simulations.audit.fleet import audit_fleet
from ownlet.simulations.audit.measure import Measured, run_audits
from ownlet.simulations.audit.methods import Effort, audits_for
from ownlet.simulations.audit.promise import Promise, promises_of
from ownlet.simulations.audit.record import INTEGRITY, record_checks
from ownlet.simulations.audit.result import AuditResult, Check
from ownlet.simulations.audit.subject import (
    BundleSubject,
    FleetSubject,
    LedgerSubject,
    RunSubject,
    Subject,
    open_subject,
)
from ownlet.simulations.progress import Progress
from ownlet.simulations.results import package_versions

__all__ = ["AuditReport", "Kind", "Status", "assemble", "assemble_fleet", "assemble_record"]

Kind = Literal["run", "ledger", "bundle", "fleet"]
Status = Literal["pass", "fail", "nothing-promised"]


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Everything that the page and the JSON file hold.

    Args:
        kind: what was audited.
        name: of its file or folder.
        made_at: when, UTC, as ISO 8601.
        thorough: whether the longer audits ran.
        seconds: how long it took.
        promises: the accounts, one per unit.
        fields: the NIST fields, in order.
        checks: of the record.
        results: of the measured audits.
        skipped: plain sentences: which measured audits did not run, and why.
        not_protected: plain sentences.
        devices: how the budget spreads over devices, where that is known.
        made_with: package -> version, of what made the subject.
        audited_with: the same of this machine.
    """

    kind: Kind
    name: str
    made_at: str
    thorough: bool
    seconds: float
    promises: tuple[Promise, ...]
    fields: tuple[Field, ...]
    checks: tuple[Check, ...]
    results: tuple[AuditResult, ...]
    skipped: tuple[str, ...]
    not_protected: tuple[str, ...]
    devices: DeviceBudgets | None
    made_with: Mapping[str, str]
    audited_with: Mapping[str, str]

    @property
    def status(self) -> Status:
        """The verdict."""
        if self.reasons:
            return "fail"
        return "pass" if any(promise.promises for promise in self.promises) or self._unspent else "nothing-promised"

    @property
    def _unspent(self) -> bool:
        """A ledger without a charge keeps its budget."""
        return self.kind in ("ledger", "fleet") and not self.promises

    @property
    def exit_code(self) -> int:
        """0: nothing is wrong. 1: a bound exceeds its claim or a check failed. 2: the record does not verify."""
        if any(not check.passed and check.name in INTEGRITY for check in self.checks):
            return 2
        return 1 if self.reasons else 0

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it fails, one plain sentence each; empty where it does not."""
        found = [check.statement for check in self.checks if not check.passed]
        for result in self.results:
            where = f"{result.method} audit of {result.subject}"
            if result.exceeds:
                found.append(
                    f"{where}: at least epsilon {number(result.epsilon_lower)} was measured, "
                    f"{number(result.claim.epsilon)} is claimed."
                )
            found += [f"{where}: {check.statement}" for check in result.checks if not check.passed]
        return tuple(found)


def assemble(
    path: Path,
    progress: Progress,
    *,
    key: bytes | None = None,
    base: Path | None = None,
    measuring: bool = True,
    thorough: bool = False,
    seed: int = 0,
    max_epsilon: float | None = None,
) -> AuditReport:
    """Audit what lies at a path: read it, account for it, check its record, and measure.

    Args:
        path: a run folder, a bundle, a device's state folder or a ledger file.
        progress: told of stages.
        key: of the app, for a ledger.
        base: of a run, where it is not where the settings say.
        measuring: run the measured audits; without, the record alone is checked.
        thorough: run the longer ones.
        seed: of canaries and of the noise in the measured audits.
        max_epsilon: the most that may be promised; None does not ask.

    Returns:
        The report. That something is wrong is in it, not an error.

    Raises:
        OwnletError: the subject cannot be read at all; see ``open_subject``.
    """
    started = time.monotonic()
    with progress.stage("reading and accounting", 1) as step:
        subject = open_subject(path, key)
        report = assemble_record(subject, path.resolve().name, max_epsilon=max_epsilon)
        step("; ".join(f"{p.unit}: epsilon {number(p.epsilon)}" for p in report.promises) or "nothing charged")
    if measuring:
        fitting = audits_for(subject, Effort(thorough=thorough, seed=seed, progress=progress), base)
        measured = run_audits(fitting.audits, progress, fitting.skipped)
    else:
        measured = Measured(skipped=("Nothing was measured: the audit was asked for the record alone.",))
    checks = (*report.checks, *measured.failures)
    return replace(
        report,
        thorough=thorough,
        seconds=round(time.monotonic() - started, 1),
        fields=fields_of(subject, report.promises, checks, measured.results, report.made_with),
        checks=checks,
        results=measured.results,
        skipped=measured.skipped,
    )


def assemble_fleet(
    folder: Path,
    progress: Progress,
    *,
    keys: bytes | Mapping[str, bytes] | None = None,
    max_epsilon: float | None = None,
) -> AuditReport:
    """Audit the ledgers of a fleet: verify each, and sum them up.

    Args:
        folder: with a folder per device that holds ``ledger.jsonl``, or a file ``<device>.jsonl`` per device.
        progress: told of ledgers.
        keys: of the app: one for all devices, or one per device.
        max_epsilon: the most that any device may have spent; None does not ask.

    Raises:
        DataError: no ledger in the folder.
    """
    started = time.monotonic()
    subject = FleetSubject(path=folder, summary=audit_fleet(folder, keys=keys, progress=progress))
    report = assemble_record(subject, folder.resolve().name, max_epsilon=max_epsilon)
    skipped = ("Nothing was measured: ledgers record what was charged, and what trained is not in them.",)
    return replace(report, seconds=round(time.monotonic() - started, 1), skipped=skipped)


def assemble_record(
    subject: Subject,
    name: str,
    *,
    max_epsilon: float | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> AuditReport:
    """Return the report of what a subject wrote down, before anything is measured.

    Args:
        subject: what is audited.
        name: of its file or folder.
        max_epsilon: the most that may be promised; None does not ask.
        clock: the time of the report.
    """
    promises = promises_of(subject)
    checks = (*record_checks(subject, promises), *accountant_checks(promises), *_asked(promises, subject, max_epsilon))
    made_with = _made_with(subject)
    units = tuple(promise.unit for promise in promises) or units_of(subject)
    return AuditReport(
        kind=_kind(subject),
        name=name,
        made_at=clock().strftime("%Y-%m-%dT%H:%M:%SZ"),
        thorough=False,
        seconds=0.0,
        promises=promises,
        fields=fields_of(subject, promises, checks, (), made_with),
        checks=checks,
        results=(),
        skipped=(),
        not_protected=not_protected(subject, units),
        devices=budgets_of(subject),
        made_with=made_with,
        audited_with=_flat(package_versions()),
    )


def _asked(promises: Sequence[Promise], subject: Subject, max_epsilon: float | None) -> tuple[Check, ...]:
    """Check what somebody demands of the promise, if somebody does."""
    if max_epsilon is None:
        return ()
    charged = isinstance(subject, LedgerSubject | FleetSubject) or bool(promises)
    spent = [promise.epsilon for promise in promises]
    if isinstance(subject, FleetSubject):
        spent = [unit.epsilon_quantiles[-1] for unit in subject.summary.units.values()]
    most = max(spent, default=0.0 if charged else float("inf"))
    return (
        Check(
            name="demanded-epsilon",
            passed=most <= max_epsilon,
            statement=f"Epsilon is {number(most)}, and at most {max_epsilon:g} is demanded."
            if charged
            else f"Nothing is promised, and an epsilon of at most {max_epsilon:g} is demanded.",
            measured=most,
            claimed=max_epsilon,
        ),
    )


def _kind(subject: Subject) -> Kind:
    match subject:
        case RunSubject():
            return "run"
        case BundleSubject():
            return "bundle"
        case LedgerSubject():
            return "ledger"
        case FleetSubject():
            return "fleet"


def _made_with(subject: Subject) -> dict[str, str]:
    match subject:
        case RunSubject():
            return dict(subject.run.versions)
        case BundleSubject():
            return dict(subject.manifest.versions)
        case LedgerSubject():
            return dict(subject.entries[-1]["versions"]) if subject.entries else {}
        case FleetSubject():
            return {"ownlet": ", ".join(subject.summary.versions)}


def _flat(versions: Mapping[str, Any]) -> dict[str, str]:
    return {"python": versions["python"], "platform": versions["platform"], **versions["packages"]}
