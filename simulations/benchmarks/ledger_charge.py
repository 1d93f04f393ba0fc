"""What one charge of the privacy ledger costs, fsync included, in a short ledger and in a long one.

Warm is a charge on a ledger that is open; cold opens the file, verifies from the last checkpoint on and charges, as a
process does that starts to train. Both are taken in turns over the two ledgers; the medians are compared. Importing
Python modules is not part of it.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger
from ownlet.shared.config import Plan
from ownlet.shared.privacy import event_to_json, window_level_event

__all__ = ["charge_milliseconds"]

_KEY = bytes(range(32))
_BUDGET = Budget(epsilon=8.0, dp_delta=1e-6)
_PLAN = Plan(steps=3, sample_rate=0.01, clip_norm=1.0, noise_multiplier=2.0)
_SHORT = 100


def charge_milliseconds(
    entries: int = 10_000, *, repeats: int = 100, folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Time charges at 100 entries and at ``entries``.

    Args:
        entries: of the long ledger; half of them charges, half commits, and the checkpoints between them.
        repeats: charges timed of each kind.
        folder: where the ledgers lie for the time being; by default a temporary folder.

    Returns:
        ``cold`` and ``warm``, each number of entries -> median milliseconds.

    Raises:
        BudgetExceededError: so many charges do not fit into an epsilon of 8.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        paths = {number: Path(temporary) / f"{number}-{LEDGER_FILE}" for number in (_SHORT, entries)}
        for number, path in paths.items():
            _fill(path, number)
        ledgers = {number: Ledger(path, key=_KEY, may_start=False) for number, path in paths.items()}
        taken: dict[str, dict[int, list[float]]] = {kind: {number: [] for number in paths} for kind in ("cold", "warm")}
        for _ in range(repeats):
            for number, path in paths.items():
                taken["warm"][number].append(_charge_once(functools.partial(_same, ledgers[number])))
                taken["cold"][number].append(_charge_once(functools.partial(_open, path)))
    return {
        kind: {str(number): round(statistics.median(times), 3) for number, times in of.items()}
        for kind, of in taken.items()
    }


def _fill(path: Path, entries: int) -> None:
    ledger = Ledger(path, budget=_BUDGET, key=_KEY)
    while ledger.seq < entries:
        ledger.commit(ledger.charge(_charge()), "0" * 64)


def _same(ledger: Ledger) -> Ledger:
    return ledger


def _open(path: Path) -> Ledger:
    return Ledger(path, key=_KEY, may_start=False)


def _charge_once(opened: Callable[[], Ledger]) -> float:
    """Return the milliseconds of opening and charging; the commit that follows is not timed."""
    charge = _charge()
    started = time.perf_counter()
    ledger = opened()
    seq = ledger.charge(charge)
    taken = time.perf_counter() - started
    ledger.commit(seq, "0" * 64)
    return taken * 1e3


def _charge() -> Charge:
    event = event_to_json(window_level_event(_PLAN, 1))
    return Charge(unit="window", event=event, base_hash="0" * 64, adapter_version=1, plan=_PLAN)


def main() -> None:
    """Measure and print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Cost of a charge of the privacy ledger.")
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=100)
    wanted = parser.parse_args()
    print(json.dumps(charge_milliseconds(wanted.entries, repeats=wanted.repeats)))


if __name__ == "__main__":
    main()
