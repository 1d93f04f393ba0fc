"""Reading a whole ledger: verify its chain, add up what it says, and hold every charge against the budget of its time.

One pass over the lines gives a ``LedgerChain``: the state at the end, and the few points at which a budget has to be
looked at. Epsilon is computed apart from that, since a fleet of ledgers shares few distinct totals
(``simulations/audit/fleet.py``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ownlet.device.budget import Budget, Totals, epsilon_of
from ownlet.device.chain import Entry, locked
from ownlet.device.ledger_state import LedgerState, Unit
from ownlet.shared.errors import LedgerError, PrivacyError
from ownlet.shared.line_file import whole_end

__all__ = [
    "BudgetPoint",
    "LedgerChain",
    "LedgerReport",
    "Spent",
    "past_budget",
    "read_chain",
    "read_ledger",
    "replay",
    "spent_of",
    "verify_ledger",
    "whole_lines",
]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one unit has spent.

    Args:
        epsilon: of all its charges, at the budget's delta.
        left: the budget's epsilon minus that; at least 0.
        charges: how many.
        uncommitted: how many of them have no commit; they are charged all the same.
    """

    epsilon: float
    left: float
    charges: int
    uncommitted: int


@dataclass(frozen=True, kw_only=True)
class LedgerReport:
    """What a ledger that verifies says.

    Args:
        entries: lines, budgets and checkpoints included.
        charges: intents.
        uncommitted: intents without commit.
        head: the mac of the last line; with ``entries`` it names this very state.
        torn_bytes: behind the last whole line; they never counted.
        budget: the one in force.
        spent: unit -> what it spent.
        events: unit -> canonical JSON of a mechanism -> how often it ran.
    """

    entries: int
    charges: int
    uncommitted: int
    head: str
    torn_bytes: int
    budget: Budget
    spent: dict[str, Spent]
    events: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """The last charge of a unit under one budget; epsilon only grows, so it covers those before it.

    Args:
        line: of the charge.
        unit: whose privacy it spent.
        totals: of the unit, with the charge.
        budget: in force at the time.
    """

    line: int
    unit: str
    totals: Totals
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class LedgerChain:
    """A ledger whose chain verifies; its budgets are not looked at yet.

    Args:
        state: what its entries add up to.
        entries: oldest first.
        points: where its budgets have to be looked at.
        torn_bytes: behind the last whole line; they never counted.
    """

    state: LedgerState
    entries: Sequence[Entry]
    points: tuple[BudgetPoint, ...]
    torn_bytes: int = 0


def verify_ledger(path: Path, key: bytes = b"") -> LedgerReport:
    """Verify every line of a ledger, the totals of every checkpoint, and that no charge went past its budget.

    Args:
        path: the file; it is only read.
        key: ``Keys.ledger``; empty without an app key.

    Raises:
        LedgerError: it does not verify; names the line.
        PrivacyError: it cannot be read.
    """
    chain = read_chain(path, key)
    for point in chain.points:
        if why := past_budget(point, epsilon_of(point.totals, point.budget.dp_delta)):
            raise LedgerError(path, point.line, why)
    return _report(chain)


def past_budget(point: BudgetPoint, epsilon: float) -> str:
    """Say that a charge went past its budget; "" where it did not.

    Args:
        point: the charge.
        epsilon: of its totals, at the delta of its budget.
    """
    if epsilon <= point.budget.epsilon * (1 + 1e-6):
        return ""
    return f"epsilon per {point.unit} is {epsilon:.4f} there, past the budget of {point.budget.epsilon:g}"


def read_ledger(path: Path, key: bytes | None = None) -> tuple[LedgerReport, list[Entry]]:
    """Read a ledger to show it: its report and its entries, oldest first.

    Args:
        path: the file; it is only read.
        key: None reads a chain without its key: order and totals are checked, macs are not.

    Raises:
        PrivacyError: a line cannot be read.
    """
    chain = read_chain(path, key)
    return _report(chain), list(chain.entries)


def read_chain(path: Path, key: bytes | None) -> LedgerChain:
    """Verify the chain of a ledger and the totals of its checkpoints, but not its budgets.

    Args:
        path: the file; it is only read.
        key: ``Keys.ledger``, empty without an app key; None does not check macs.

    Raises:
        LedgerError: it does not verify; names the line.
        PrivacyError: it cannot be read.
    """
    try:
        with locked(path, write=False) as file:
            end = whole_end(file)
            data, torn_bytes = os.pread(file, end, 0), os.fstat(file).st_size - end
    except OSError as error:
        raise PrivacyError(f"ledger must be readable, got {error}") from error
    return replay(path, data, key, torn_bytes)


def replay(path: Path, data: bytes, key: bytes | None, torn_bytes: int = 0) -> LedgerChain:
    """Verify whole lines from the first one on; see ``read_chain``."""
    state, entries, points = LedgerState(), [], []
    charged: dict[str, int] = {}  # unit -> line of its last charge under the budget in force
    for number, line in enumerate(whole_lines(data), start=1):
        budget = state.budget
        try:
            entry = state.take(line, key)
        except ValueError as error:
            raise LedgerError(path, number, str(error)) from error
        entries.append(entry)
        if entry["state"] == "budget" and budget is not None:
            points += _points(state, charged, budget)
            charged = {}
        elif entry["state"] == "intent":
            charged[entry["unit"]] = number
    if state.budget is not None:
        points += _points(state, charged, state.budget)
    return LedgerChain(state=state, entries=entries, points=tuple(points), torn_bytes=torn_bytes)


def whole_lines(data: bytes) -> list[bytes]:
    """Split at newlines only; behind the last one is nothing. ``splitlines`` would split at more."""
    return data.split(b"\n")[:-1]


def spent_of(state: LedgerState, unit: Unit, budget: Budget) -> Spent:
    """Return what a unit has spent, held against a budget."""
    of = state.units[unit]
    epsilon = epsilon_of(of.totals, budget.dp_delta)
    left = math.inf if budget.epsilon == math.inf else max(0.0, budget.epsilon - epsilon)
    return Spent(epsilon=epsilon, left=left, charges=of.charges, uncommitted=of.uncommitted)


def _points(state: LedgerState, charged: dict[str, int], budget: Budget) -> list[BudgetPoint]:
    return [
        BudgetPoint(line=line, unit=unit, totals=dict(state.units[unit].totals), budget=budget)
        for unit, line in charged.items()
    ]


def _report(chain: LedgerChain) -> LedgerReport:
    state = chain.state
    budget = state.budget or Budget()
    return LedgerReport(
        entries=state.seq,
        charges=sum(unit.charges for unit in state.units.values()),
        uncommitted=sum(unit.uncommitted for unit in state.units.values()),
        head=state.head,
        torn_bytes=chain.torn_bytes,
        budget=budget,
        spent={unit: spent_of(state, unit, budget) for unit in get_args(Unit)},
        events={name: dict(unit.totals) for name, unit in state.units.items()},
    )
