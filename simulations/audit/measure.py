"""The run of measured audits, each at its own risk.

An audit that ends with an error is a failed check of the report, named ``ran``: what could not be measured must not
look as if it had been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ownlet.simulations.audit.result import AuditResult, Check
from ownlet.simulations.progress import Progress

__all__ = ["Audit", "Measured", "run_audits"]


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One audit to run: what it is called, and the call."""

    name: str
    run: Callable[[], AuditResult]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the audits found.

    Args:
        results: of those that ended.
        failures: a failed check for each that ended with an error.
        skipped: plain sentences: what was not run, and why.
    """

    results: tuple[AuditResult, ...] = ()
    failures: tuple[Check, ...] = ()
    skipped: tuple[str, ...] = ()


def run_audits(audits: Sequence[Audit], progress: Progress, skipped: Sequence[str] = ()) -> Measured:
    """Run audits one after the other; one that ends with an error fails, and the others go on."""
    results, failures = [], []
    if audits:
        with progress.stage("measuring", len(audits)) as step:
            for audit in audits:
                step(audit.name, 0.0)
                try:
                    results.append(audit.run())
                except Exception as error:  # of whatever kind: it is told, as a check that failed
                    statement = f"The {audit.name} could not be run: {type(error).__name__}: {error}"
                    failures.append(Check(name="ran", passed=False, statement=statement))
                step(audit.name)
    return Measured(results=tuple(results), failures=tuple(failures), skipped=tuple(skipped))
