"""How long the fleet view takes over thousands of device ledgers, written by the real ``Ledger``.

Devices take part between 0 and 12 times, under one of three plans, some until their budget refuses. A few ledgers are
then spoiled as they would be: a changed byte, a torn end, a copy under another name.

    python -m ownlet.simulations.benchmarks.fleet_ledgers --devices 10000 --workers 2
"""

from __future__ import annotations

import argparse
import itertools
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger
from ownlet.shared.config import Plan
from ownlet.shared.errors import BudgetExceededError
from ownlet.shared.privacy import event_to_json, user_level_event, window_level_event
from ownlet.shared.seal import Keys
from ownlet.simulations.audit.fleet import audit_fleet

__all__ = ["FLEET_KEY", "write_fleet"]

FLEET_KEY = bytes(range(32))
_BUDGET = Budget(epsilon=2.0, dp_delta=1e-6)
_PLANS = tuple(
    Plan(steps=steps, sample_rate=rate, clip_norm=1.0, noise_multiplier=sigma)
    for steps, rate, sigma in ((3, 0.1, 2.0), (1, 1.0, 8.0), (5, 0.1, 2.5))
)


def write_fleet(folder: Path, num_devices: int, *, seed: int = 0, most_charges: int = 12, spoil: bool = True) -> None:
    """Write one ledger per device, ``<device>/ledger.jsonl``, under ``FLEET_KEY``.

    Args:
        folder: to write into.
        num_devices: at least 10 where some are to be spoiled.
        seed: of who takes part how often.
        most_charges: of a device.
        spoil: change a byte in ``device-00001``, tear the end of ``device-00002``, copy ``device-00003`` to ``copy``.
    """
    draw, seconds = np.random.default_rng(seed), itertools.count(1_700_000_000.0, 0.25)
    key, charges = Keys.of(FLEET_KEY).ledger, [_charge(plan) for plan in _PLANS]
    for number in range(num_devices):
        path = folder / f"device-{number:05d}" / LEDGER_FILE
        path.parent.mkdir(parents=True)
        ledger = Ledger(path, budget=_BUDGET, key=key, clock=lambda: next(seconds))
        charge = charges[int(draw.integers(len(charges)))]
        wanted = int(draw.integers(most_charges + 1))
        for _ in range(max(1, wanted) if number in (1, 2, 3) else wanted):
            try:
                seq = ledger.charge(charge)
            except BudgetExceededError:
                break
            if draw.random() > 0.02:  # the others were killed before their update was there
                ledger.commit(seq, "0" * 64)
    if spoil:
        _spoil(folder)


def _charge(plan: Plan) -> Charge:
    unit_user = plan.sample_rate == 1.0
    event = user_level_event(1.0, plan.noise_multiplier, 1) if unit_user else window_level_event(plan, 1)
    return Charge(
        unit="user" if unit_user else "window",
        event=event_to_json(event),
        base_hash="b" * 64,
        adapter_version=1,
        plan=plan,
    )


def _spoil(folder: Path) -> None:
    changed, torn = (folder / f"device-{number:05d}" / LEDGER_FILE for number in (1, 2))
    changed.write_bytes(changed.read_bytes().replace(b'"adapter":1', b'"adapter":2', 1))
    with torn.open("ab") as file:
        file.write(b'{"adapter":1,"at":17')
    shutil.copytree(folder / "device-00003", folder / "copy")


def _cpu_seconds() -> float:
    """Of this process and of workers that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Write a fleet, audit it, and print what it came to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", help="where ledgers lie for the time being; a memory disk spares many syncs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        started = time.monotonic()
        write_fleet(Path(temporary), options.devices)
        written, before = time.monotonic(), _cpu_seconds()
        fleet = audit_fleet(Path(temporary), keys=FLEET_KEY, workers=options.workers)
        audited, after = time.monotonic(), _cpu_seconds()
        lines = sum(path.read_bytes().count(b"\n") for path in Path(temporary).rglob("*.jsonl"))
    print(f"{fleet.ledgers} ledgers of {lines} lines, written in {written - started:.1f} s")
    print(f"verified and summed up in {audited - written:.1f} s by {options.workers} workers")
    print(f"with {after - before:.1f} s of CPU")
    print(f"{fleet.verified} verified, {len(fleet.broken)} broken, {len(fleet.past_budget)} past their budget")
    print(f"{fleet.distinct_totals} distinct totals; torn {dict(fleet.torn)}; {fleet.shared_pasts}")
    for name, unit in fleet.units.items():
        print(f"{name}: {unit.devices} devices, {unit.charges} charges, {unit.exhausted} exhausted")
        print(f"  epsilon quantiles {tuple(round(value, 3) for value in unit.epsilon_quantiles)}")


if __name__ == "__main__":
    main()
