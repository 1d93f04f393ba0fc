"""What the report of a fleet checks: every ledger's chain and budget, and that no two devices share a past."""

from __future__ import annotations

from collections.abc import Sequence

from ownlet.simulations.audit.fleet_summary import FleetSummary
from ownlet.simulations.audit.result import Check

__all__ = ["fleet_checks", "fleet_spent"]

_SHOWN = 5


def fleet_checks(fleet: FleetSummary) -> tuple[Check, ...]:
    """Return the checks of a fleet; a failed one names the first devices, the summary has all."""
    hint = "" if fleet.keyed else " No key was given: this finds damage, not forgery."
    broken = [f"{ledger.device} line {ledger.line}, {ledger.reason}" for ledger in fleet.broken]
    past = [f"{found.device} line {found.line}, {found.epsilon:.4f} of {found.budget:g}" for found in fleet.past_budget]
    shared = [f"{found.kind} of {', '.join(found.devices[:3])}" for found in fleet.shared_pasts]
    fine = f"All {fleet.ledgers:,} ledgers verify.{hint}"
    return (
        _check("chain", fine, f"Ledgers that do not verify{hint and ' (no key was given)'}", broken),
        _check("budgets", "No charge went past the budget of its time.", "Charges past their budget", past),
        _check("shared-pasts", "No two devices share a past.", "Ledgers with a past in common", shared),
        _check("whole-lines", "Every file ends with a whole line.", "Files that end within a line", list(fleet.torn)),
    )


def fleet_spent(fleet: FleetSummary) -> str:
    """Say what the devices have spent: the median and the most of each unit."""
    told = [
        f"{unit}: median {found.epsilon_quantiles[3]:.3f}, most {found.epsilon_quantiles[-1]:.3f} on {found.devices:,} "
        f"devices, {found.exhausted:,} exhausted"
        for unit, found in fleet.units.items()
    ]
    return "; ".join(told) or "0: nothing was charged"


def _check(name: str, fine: str, wrong: str, found: Sequence[str]) -> Check:
    more = f"; and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    statement = f"{wrong}: {len(found):,}. {'; '.join(found[:_SHOWN])}{more}." if found else fine
    return Check(name=name, passed=not found, statement=statement, measured=len(found), claimed=0)
