"""The privacy ledger: what trainings on this device cost, written before they run, and the limit that it enforces.

A charge is an INTENT that is on disk before the first step, and a COMMIT once the update that it paid for exists. A
crash in between costs budget, never privacy: an intent without commit stays charged. The file is a chain of keyed
hashes (``device.chain``); epsilon is always computed from the recorded events (``device.budget``), per unit, never
added over units, and the budget never renews: the clock of an entry (``at``) counts only for the cap on participations.

Every 32 entries a CHECKPOINT carries the totals so far. Opening reads the file backwards to the last one and verifies
that and what follows, so it costs the same after ten entries and after ten thousand; ``verify_ledger`` reads it all.

What it cannot see: a file that was cut back to a valid beginning while no process had it open. Therefore an update
carries (seq, head), and a server refuses one that goes back. Without the app's key the chain shows damage, not forgery.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from ownlet.device.budget import Budget, Limit, Totals, accountant, epsilon_of, find_limit, quick_bound, totals_of
from ownlet.device.chain import Entry, append, canonical, locked, read_tail, signed_line
from ownlet.device.ledger_reading import (
    LedgerReport,
    Spent,
    read_ledger,
    replay,
    spent_of,
    verify_ledger,
    whole_lines,
)
from ownlet.device.ledger_state import LedgerState, Unit, budget_to_plain, finite
from ownlet.shared.config import Plan
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import BudgetExceededError, LedgerError, PrivacyError, require
from ownlet.shared.line_file import whole_end

__all__ = [
    "CHECKPOINT_EVERY",
    "LEDGER_FILE",
    "Budget",
    "Charge",
    "Ledger",
    "LedgerReport",
    "Spent",
    "read_ledger",
    "verify_ledger",
]

LEDGER_FILE = "ledger.jsonl"
CHECKPOINT_EVERY = 32
_CHECKPOINT_MARK = b'"state":"checkpoint"'  # quotes inside strings are escaped, so only a checkpoint has this


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One training that is about to run, or one report that is about to be drawn.

    Args:
        unit: whose privacy it spends: ``window`` or ``user``.
        event: its privacy event as ``privacy.event_to_json`` writes it.
        base_hash: the base that is trained on.
        adapter_version: the shared adapter that the update is relative to.
        plan: the public numbers of the training, or the terms of the count that is reported to.
        round: the federated round that asked for it, if one did.
    """

    unit: Unit
    event: str
    base_hash: str
    adapter_version: int
    plan: Plan | CountTerms
    round: int | None = None

    def __post_init__(self) -> None:
        require(self.unit in get_args(Unit), "unit must be window or user", unit=self.unit)


class Ledger:
    """One device's ledger; safe for several threads and several processes."""

    def __init__(
        self,
        path: Path,
        *,
        budget: Budget | None = None,
        key: bytes = b"",
        may_start: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open a ledger, or start one.

        Args:
            path: the file; its folder must exist.
            budget: the limit for each unit. One that differs from the recorded one is recorded as a new entry, so an
                auditor sees it. None keeps the recorded one, or the defaults of ``Budget`` for a new ledger.
            key: ``Keys.ledger``; empty without an app key.
            may_start: whether a missing ledger may be started: only on a device that has trained nothing yet.
            clock: seconds since 1970, for the entries.

        Raises:
            PrivacyError: the ledger is missing where it must not be, does not verify, or cannot be written.
        """
        self._path = path
        self._key = key
        self._clock = clock
        self._thread = threading.RLock()
        self._state = LedgerState()
        self._file: tuple[int, int] | None = None  # device and inode
        self._last = (0, b"")  # offset of the last line that was taken, and the line
        with self._locked(create=may_start) as file:
            recorded = self._state.budget
            if recorded is None and not may_start:
                raise self._missing()
            self.budget = budget or recorded or Budget()
            if recorded != self.budget:
                self._append(file, {"budget": budget_to_plain(self.budget), "state": "budget"})

    @property
    def seq(self) -> int:
        """The number of the last entry that this object has read or written."""
        return self._state.seq

    @property
    def head(self) -> str:
        """The mac of that entry; (seq, head) names the state of the ledger."""
        return self._state.head

    def charge(self, charge: Charge) -> int:
        """Record an intent, on disk when this returns; only then may the training start.

        Returns:
            Its seq, for ``commit``.

        Raises:
            BudgetExceededError: it would exceed the budget; says what is spent and what is left. Nothing is written.
            PrivacyError: the ledger does not verify, or the disk refused.
        """
        cost = totals_of(charge.event)
        with self._locked() as file:
            limit = self._require_fits(charge.unit, cost)
            return self._append(
                file,
                {
                    "adapter": charge.adapter_version,
                    "base": charge.base_hash,
                    "event": json.loads(charge.event),
                    "plan": {n: v if isinstance(v, str) else finite(v) for n, v in asdict(charge.plan).items()},
                    "round": charge.round,
                    "state": "intent",
                    "unit": charge.unit,
                    **({"limit": asdict(limit)} if limit else {}),
                },
            )

    def commit(self, seq: int, update_sha256: str) -> None:
        """Record that the training of a charge ended with this update.

        Args:
            seq: what ``charge`` returned, in this process or an earlier one.
            update_sha256: hash of what was trained.

        Raises:
            PrivacyError: no open charge has this seq, or the disk refused; then the update must not be released.
        """
        with self._locked() as file:
            if seq not in self._state.open:
                raise PrivacyError(f"seq must be of an open charge, got seq={seq!r}")
            self._append(file, {"of": seq, "state": "commit", "update": update_sha256})

    def is_open(self, seq: int) -> bool:
        """Say whether the charge with this seq can still be committed.

        Raises:
            PrivacyError: the ledger does not verify.
        """
        with self._locked():
            return seq in self._state.open

    def would_exceed(self, charge: Charge) -> bool:
        """Say whether ``charge`` would be refused for the budget.

        Raises:
            PrivacyError: the ledger does not verify.
        """
        cost = totals_of(charge.event)
        with self._locked():
            return not self._fits(charge.unit, cost)[0]

    def spent(self, unit: Unit) -> Spent:
        """Return what a unit has spent; 0.1 to 0.3 s for the first time after a charge, and then at once.

        Raises:
            PrivacyError: the ledger does not verify.
        """
        with self._locked():
            return spent_of(self._state, unit, self.budget)

    def events(self, unit: Unit, *, base_hash: str | None = None, adapter_version: int | None = None) -> list[str]:
        """Return the events of a unit's charges, oldest first, uncommitted ones included; verifies the whole chain.

        Args:
            unit: whose.
            base_hash: only those on this base.
            adapter_version: only those relative to this shared adapter.

        Raises:
            PrivacyError: the ledger does not verify.
        """
        return [
            canonical(entry["event"]).decode()
            for entry in self.entries()
            if entry["state"] == "intent"
            and entry["unit"] == unit
            and base_hash in (None, entry["base"])
            and adapter_version in (None, entry["adapter"])
        ]

    def entries(self) -> list[Entry]:
        """Return all entries, oldest first; verifies the whole chain.

        Raises:
            PrivacyError: the ledger does not verify.
        """
        with self._locked() as file:
            return list(replay(self._path, os.pread(file, whole_end(file), 0), self._key).entries)

    def participations_since(self, at: float) -> int:
        """Return how many charges have a clock later than ``at``; it stops counting at 64.

        A charge from the future, made before the clock was set back, counts too: setting the clock back never gives
        more participations.

        Raises:
            PrivacyError: the ledger does not verify.
        """
        with self._locked():
            return sum(then > at for then in self._state.times)

    @contextlib.contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[int]:
        """Hold the lock of threads and of processes, with everything read that others have appended."""
        with self._thread:
            try:
                with locked(self._path, create=create) as file:
                    self._catch_up(file)
                    yield file
            except FileNotFoundError as error:
                raise self._missing() from error
            except OSError as error:
                raise PrivacyError(f"ledger must be readable and writable, got {error}") from error

    def _catch_up(self, file: int) -> None:
        status = os.fstat(file)
        if self._file not in (None, (status.st_dev, status.st_ino)):
            raise PrivacyError(f"ledger must stay the file it was, got another file at {self._path}")
        end = whole_end(file)
        start, line = self._last
        if self._file is not None:
            if os.pread(file, len(line), start) != line:
                raise PrivacyError(f"ledger must only grow, got a changed or shorter file at {self._path}")
            start += len(line)
            data = os.pread(file, end - start, start)
        else:
            start, data = read_tail(file, end, _CHECKPOINT_MARK)
        self._take(file, start, data)
        self._file = (status.st_dev, status.st_ino)

    def _take(self, file: int, start: int, data: bytes) -> None:
        """Verify and add whole lines that stand at ``start``."""
        for line in whole_lines(data):
            try:
                if start and not self._state.seq:
                    self._state = LedgerState.at_checkpoint(line, self._key)
                else:
                    self._state.take(line, self._key)
            except ValueError as error:
                number = os.pread(file, start, 0).count(b"\n") + 1
                raise LedgerError(self._path, number, str(error)) from error
            self._last = (start, line + b"\n")
            start += len(line) + 1

    def _append(self, file: int, entry: Entry) -> int:
        """Append one entry, behind a checkpoint where one is due, and return its seq."""
        end = self._last[0] + len(self._last[1])
        lines, seq, prev = [], self._state.seq + 1, self._state.head
        frame = {"at": round(self._clock(), 3), "versions": _versions()}
        if self._state.seq - self._state.checkpoint >= CHECKPOINT_EVERY:
            checkpoint = {**frame, "prev": prev, "seq": seq, "state": "checkpoint", "totals": self._state.to_plain()}
            lines.append(signed_line(checkpoint, self._key))
            seq, prev = seq + 1, json.loads(lines[0])["mac"]
        lines.append(signed_line({**frame, **entry, "prev": prev, "seq": seq}, self._key))
        append(file, end, b"".join(lines))
        self._take(file, end, b"".join(lines))
        return seq

    def _fits(self, unit: Unit, cost: Totals) -> tuple[bool, Limit | None]:
        """Decide whether a cost fits, and return the limit that had to be found for it, if one had."""
        if self._state.budget != self.budget:
            raise PrivacyError(
                f"budget must be {self.budget} as when the ledger was opened, got {self._state.budget} from another "
                "process: open the ledger again"
            )
        state = self._state.units[unit]
        known = state.limit
        if known and known.accountant == accountant() and set(cost) <= {known.mechanism}:
            return state.totals[known.mechanism] + cost.get(known.mechanism, 0) <= known.count, None
        after = state.totals + Counter(cost)
        bound = quick_bound(after, self.budget.dp_delta)
        if bound <= self.budget.epsilon:
            return True, None
        if bound > max(100.0, 16 * self.budget.epsilon):
            return False, None  # far beyond: PLD never was that much below, and would need much memory to say so
        if epsilon_of(after, self.budget.dp_delta) > self.budget.epsilon:
            return False, None
        if state.recent is None or set(cost) != {state.recent}:  # a limit would not outlive charges that take turns
            return True, None
        return True, find_limit(after, state.recent, self.budget)

    def _require_fits(self, unit: Unit, cost: Totals) -> Limit | None:
        fits, limit = self._fits(unit, cost)
        if not fits:
            spent = spent_of(self._state, unit, self.budget)
            after = epsilon_of(self._state.units[unit].totals + Counter(cost), self.budget.dp_delta)
            raise BudgetExceededError(
                f"epsilon per {unit} must not exceed {self.budget.epsilon:g} at dp_delta={self.budget.dp_delta:g}, got "
                f"{after:.4f}: {spent.epsilon:.4f} is spent in {spent.charges} charges, this one would add "
                f"{after - spent.epsilon:.4f}, {spent.left:.4f} is left"
            )
        return limit

    def _missing(self) -> PrivacyError:
        return PrivacyError(
            f"ledger must be present beside what was trained, got none at {self._path}: a missing ledger means that "
            "the budget is exhausted, not that it is fresh"
        )


@functools.cache
def _versions() -> dict[str, str]:
    return {"ownlet": importlib.metadata.version("ownlet")}
