"""What a worker process does for the fleet view: read ledgers, and compute epsilons. It imports no torch and no plots.

A ledger is reduced to what the summary needs. Epsilon is left out here: a fleet of thousands shares few distinct
totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ownlet.device.budget import Budget, Totals, epsilon_of, totals_of
from ownlet.device.chain import Entry, canonical
from ownlet.device.ledger_reading import BudgetPoint, read_chain
from ownlet.shared.errors import LedgerError, PrivacyError
from ownlet.shared.seal import Keys

__all__ = ["Account", "DeviceLedger", "LedgerFile", "Spending", "epsilons_of", "frozen", "read_ledgers"]

Spending = tuple[tuple[str, int], ...]
"""Totals in a form that can be a key of a dict: sorted pairs of mechanism and count."""


@dataclass(frozen=True, kw_only=True)
class LedgerFile:
    """A ledger to read.

    Args:
        device: the name that it goes by.
        path: the file.
        key: the app's key; None for a ledger without one.
        missing_key: whether keys are given for devices, but none for this one.
    """

    device: str
    path: Path
    key: bytes | None = None
    missing_key: bool = False


@dataclass(frozen=True, kw_only=True)
class Account:
    """What one unit of one device has spent.

    Args:
        unit: ``window`` or ``user``.
        totals: of all charges.
        once_more: totals after one more charge like the last.
        charges: how many.
        uncommitted: of these, without a commit.
    """

    unit: str
    totals: Spending
    once_more: Spending
    charges: int
    uncommitted: int


@dataclass(frozen=True, kw_only=True)
class DeviceLedger:
    """One ledger, reduced.

    Args:
        device: the name that it goes by.
        path: the file.
        line: that does not verify; 0 where the file cannot be read at all, or nothing is wrong.
        reason: why it does not verify; "" where it does, and then the rest is filled in.
        entries: lines.
        head: mac of the last line.
        first_charge: mac of the first charge; "" where there is none.
        torn_bytes: behind the last whole line.
        budget: the one in force.
        accounts: per unit with a charge.
        points: (line, unit, totals, budget) where budgets have to be looked at.
        version: of ownlet that wrote the last entry.
    """

    device: str
    path: Path
    line: int = 0
    reason: str = ""
    entries: int = 0
    head: str = ""
    first_charge: str = ""
    torn_bytes: int = 0
    budget: Budget | None = None
    accounts: tuple[Account, ...] = ()
    points: tuple[tuple[int, str, Spending, Budget], ...] = ()
    version: str = ""


def frozen(totals: Mapping[str, int]) -> Spending:
    """Return totals as a key."""
    return tuple(sorted((name, count) for name, count in totals.items() if count))


def read_ledgers(files: Sequence[LedgerFile]) -> list[DeviceLedger]:
    """Verify the chains of some ledgers; one that does not verify says why, and stops none of the others."""
    return [_read(file) for file in files]


def epsilons_of(asked: Sequence[tuple[Spending, float]]) -> list[float]:
    """Return epsilon of each (totals, delta)."""
    return [epsilon_of(dict(totals), dp_delta) for totals, dp_delta in asked]


def _read(file: LedgerFile) -> DeviceLedger:
    if file.missing_key:
        return DeviceLedger(device=file.device, path=file.path, reason="no key is given for this device")
    try:
        chain = read_chain(file.path, Keys.of(file.key).ledger)
    except LedgerError as error:
        return DeviceLedger(device=file.device, path=file.path, line=error.line, reason=error.reason)
    except PrivacyError as error:
        return DeviceLedger(device=file.device, path=file.path, reason=str(error))
    if chain.state.budget is None:
        return DeviceLedger(device=file.device, path=file.path, reason="it has no entry that names a budget")
    intents = [entry for entry in chain.entries if entry["state"] == "intent"]
    return DeviceLedger(
        device=file.device,
        path=file.path,
        entries=chain.state.seq,
        head=chain.state.head,
        first_charge=intents[0]["mac"] if intents else "",
        torn_bytes=chain.torn_bytes,
        budget=chain.state.budget,
        accounts=tuple(
            Account(
                unit=unit,
                totals=frozen(of.totals),
                once_more=frozen(Counter(of.totals) + Counter(_last_cost(intents, unit))),
                charges=of.charges,
                uncommitted=of.uncommitted,
            )
            for unit, of in chain.state.units.items()
            if of.charges
        ),
        points=tuple(map(_plain_point, chain.points)),
        version=str(chain.entries[-1].get("versions", {}).get("ownlet", "unknown")),
    )


def _last_cost(intents: Sequence[Entry], unit: str) -> Totals:
    event = next(entry["event"] for entry in reversed(intents) if entry["unit"] == unit)
    return totals_of(canonical(event).decode())


def _plain_point(point: BudgetPoint) -> tuple[int, str, Spending, Budget]:
    return point.line, point.unit, frozen(point.totals), point.budget
