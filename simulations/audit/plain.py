"""A report in its machine-readable form, which ``audit.schema.json`` describes and ``docs/audit.md`` explains.

The name of the form ends in a version. Keys are added under the same version; a key that went or changed its meaning
would be a new one.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ownlet.simulations.audit.promise import Promise
from ownlet.simulations.audit.report import AuditReport
from ownlet.simulations.audit.result import AuditResult
from ownlet.simulations.results import plain_json

__all__ = ["SCHEMA", "to_plain"]

SCHEMA = "ownlet-audit/1"


def to_plain(report: AuditReport) -> dict[str, Any]:
    """Return a report in the form of ``audit.schema.json``: JSON values only, infinity as the text ``inf``."""
    plain: dict[str, Any] = plain_json(
        {
            "schema": SCHEMA,
            "subject": {"kind": report.kind, "name": report.name},
            "made_at": report.made_at,
            "thorough": report.thorough,
            "seconds": report.seconds,
            "verdict": {"status": report.status, "exit_code": report.exit_code, "reasons": report.reasons},
            "promises": [_promise(promise) for promise in report.promises],
            "fields": [asdict(field) for field in report.fields],
            "checks": [asdict(check) for check in report.checks],
            "results": [_result(result) for result in report.results],
            "skipped": report.skipped,
            "not_protected": report.not_protected,
            "devices": None if report.devices is None else asdict(report.devices),
            "made_with": report.made_with,
            "audited_with": report.audited_with,
        }
    )
    return plain


def _promise(promise: Promise) -> dict[str, Any]:
    return {
        **asdict(promise),
        "event": json.loads(promise.event),
        "by_charge": [{"charge": at, "epsilon": epsilon} for at, epsilon in promise.by_charge],
        "by_delta": [{"dp_delta": at, "epsilon": epsilon} for at, epsilon in promise.by_delta],
    }


def _result(result: AuditResult) -> dict[str, Any]:
    return {
        "method": result.method,
        "subject": result.subject,
        "claim": {**asdict(result.claim), "epsilon": result.claim.epsilon},
        "epsilon_lower": result.epsilon_lower,
        "confidence": result.confidence,
        "exceeds": result.exceeds,
        "flagged": result.flagged,
        "checks": [asdict(check) for check in result.checks],
        "scores": {name: list(scores) for name, scores in result.scores.items()},
        "figures": dict(result.figures),
    }
