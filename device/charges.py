"""What trainings on this device cost in privacy: JSON lines that are only ever appended, each on disk before it counts.

A charge is written before its training runs, so a crash in between costs budget, never privacy. The chained ledger with
limits takes this file's place later; until then it is the record that an update's event is made of.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ownlet.shared.errors import PrivacyError

__all__ = ["Charge", "append_charge", "read_charges"]


@dataclass(frozen=True, kw_only=True)
class Charge:
    """One training.

    Args:
        base_hash: the base that was trained on.
        adapter_version: the global adapter that it was relative to.
        event: its privacy event as ``privacy.event_to_json`` writes it; empty where the device added no noise.
    """

    base_hash: str
    adapter_version: int
    event: str


def append_charge(path: Path, charge: Charge) -> None:
    """Append a charge and wait until it is on disk.

    Raises:
        OSError: the disk refused; then the training must not run.
    """
    line = json.dumps(asdict(charge), sort_keys=True, separators=(",", ":")) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the file's name, where it is new
    finally:
        os.close(folder)


def read_charges(path: Path) -> list[Charge]:
    """Return all charges, oldest first.

    Raises:
        PrivacyError: a line is damaged; nothing can be released on a record that cannot be read.
    """
    if not path.exists():
        return []
    charges = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            charges.append(Charge(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise PrivacyError(f"charges must be readable JSON lines, got line {number} of {path}") from error
    return charges
