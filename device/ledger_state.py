"""What a ledger's entries add up to, as a fold over them; a checkpoint is this state written down.

So the state after opening at a checkpoint and the state after reading every line are the same by construction, and
``verify_ledger`` can compare them at each checkpoint.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ownlet.device.budget import Budget, Limit, totals_of
from ownlet.device.chain import Entry, canonical, parse_line
from ownlet.shared.errors import ConfigError, PrivacyError

__all__ = ["OPEN_KEPT", "TIMES_KEPT", "LedgerState", "Unit", "UnitState", "budget_to_plain", "finite"]

Unit = Literal["window", "user"]

OPEN_KEPT = 64  # intents that can still be committed; older ones stay charged and count as uncommitted
TIMES_KEPT = 64  # latest charges whose time a checkpoint keeps, for a participation cap


@dataclass(kw_only=True)
class UnitState:
    """What was spent on one unit."""

    charges: int = 0
    uncommitted: int = 0
    totals: Counter[str] = field(default_factory=Counter)
    limit: Limit | None = None
    recent: str | None = None  # the mechanism of the last charge, if it had just one


@dataclass(kw_only=True)
class LedgerState:
    """Everything that the next entry depends on."""

    seq: int = 0
    head: str = ""
    budget: Budget | None = None
    units: dict[str, UnitState] = field(default_factory=lambda: {unit: UnitState() for unit in get_args(Unit)})
    open: dict[int, str] = field(default_factory=dict)  # seq of an intent without commit -> its unit
    times: list[float] = field(default_factory=list)  # the latest times of charges, ascending
    checkpoint: int = 0  # seq of the last one

    def take(self, line: bytes, key: bytes | None) -> Entry:
        """Verify the next line and add what it says; a line that does not verify changes nothing.

        Args:
            line: without its newline.
            key: of the HMAC; None reads without checking macs.

        Raises:
            ValueError: it does not verify; the message says why.
        """
        entry = parse_line(line, key)
        if (entry.get("seq"), entry.get("prev")) != (self.seq + 1, self.head):
            raise ValueError("it does not follow the line before it: a line is missing, moved or added")
        try:
            self._add(entry)
        except (KeyError, TypeError, AttributeError, ConfigError, PrivacyError) as error:
            raise ValueError(f"its content cannot be: {error}") from error
        self.seq, self.head = entry["seq"], entry["mac"]
        return entry

    @classmethod
    def at_checkpoint(cls, line: bytes, key: bytes | None) -> LedgerState:
        """Start from a checkpoint's line, taking its word for all that stands before it.

        Raises:
            ValueError: it does not verify; the message says why.
        """
        entry = parse_line(line, key)
        try:
            state = _from_plain(entry["totals"])
            state.seq, state.head, state.checkpoint = entry["seq"], entry["mac"], entry["seq"]
        except (KeyError, TypeError, AttributeError, ConfigError) as error:
            raise ValueError(f"its content cannot be: {error}") from error
        return state

    def to_plain(self) -> dict[str, Any]:
        """Return what a checkpoint writes down; seq, head and the place of the checkpoint are in the chain already."""
        return {
            "budget": None if self.budget is None else budget_to_plain(self.budget),
            "open": [[seq, unit] for seq, unit in self.open.items()],
            "times": self.times,
            "units": {
                name: {
                    "charges": unit.charges,
                    "limit": None if unit.limit is None else asdict(unit.limit),
                    "recent": unit.recent,
                    "totals": dict(unit.totals),
                    "uncommitted": unit.uncommitted,
                }
                for name, unit in self.units.items()
            },
        }

    def _add(self, entry: Entry) -> None:
        match entry["state"]:
            case "budget":
                self.budget = budget_from_plain(entry["budget"])
                for unit in self.units.values():
                    unit.limit = None
            case "intent":
                self._add_intent(entry)
            case "commit":
                if entry["of"] not in self.open:
                    raise PrivacyError(f"commit must be of an open charge, got of={entry['of']!r}")
                self.units[self.open.pop(entry["of"])].uncommitted -= 1
            case "checkpoint":
                if canonical(entry["totals"]) != canonical(self.to_plain()):
                    raise PrivacyError("totals of a checkpoint must agree with the entries before it, got others")
                self.checkpoint = entry["seq"]
            case other:
                raise PrivacyError(f"state must be budget, intent, commit or checkpoint, got {other!r}")

    def _add_intent(self, entry: Entry) -> None:
        cost, at = totals_of(canonical(entry["event"]).decode()), float(entry["at"])
        limit = Limit(**entry["limit"]) if "limit" in entry else None
        unit = self.units[entry["unit"]]
        unit.charges += 1
        unit.uncommitted += 1
        unit.totals.update(cost)
        if limit is not None or (unit.limit is not None and set(cost) - {unit.limit.mechanism}):
            unit.limit = limit  # a limit holds only as long as the other totals stay
        unit.recent = next(iter(cost)) if len(cost) == 1 else None
        self.open[entry["seq"]] = entry["unit"]
        if len(self.open) > OPEN_KEPT:
            del self.open[next(iter(self.open))]
        self.times = sorted([*self.times, at])[-TIMES_KEPT:]


def finite(number: float) -> float | str:
    """Return a number as JSON can hold it everywhere: infinity as the string ``inf``."""
    return number if math.isfinite(number) else str(number)


def budget_to_plain(budget: Budget) -> dict[str, float | str]:
    """Return a budget for JSON."""
    return {"dp_delta": budget.dp_delta, "epsilon": finite(budget.epsilon)}


def budget_from_plain(plain: dict[str, Any]) -> Budget:
    """Read what ``budget_to_plain`` wrote."""
    return Budget(epsilon=float(plain["epsilon"]), dp_delta=float(plain["dp_delta"]))


def _from_plain(plain: dict[str, Any]) -> LedgerState:
    return LedgerState(
        budget=None if plain["budget"] is None else budget_from_plain(plain["budget"]),
        open={int(seq): str(unit) for seq, unit in plain["open"]},
        times=[float(at) for at in plain["times"]],
        units={
            name: UnitState(
                charges=unit["charges"],
                uncommitted=unit["uncommitted"],
                totals=Counter(unit["totals"]),
                limit=None if unit["limit"] is None else Limit(**unit["limit"]),
                recent=unit["recent"],
            )
            for name, unit in plain["units"].items()
        },
    )
