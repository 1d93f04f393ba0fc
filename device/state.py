"""Where a device keeps what is its user's own, and who may change it.

``history.sqlite`` holds events and small counters, ``ledger.jsonl`` the privacy ledger, ``personal/`` the versions of
the personal adapter, ``shared/`` the shared adapters that came without a bundle, ``personal.training`` and
``update.training`` a training that stopped between two steps, ``outbox`` the latest update, ``report`` the latest
report to a count of hits. ``lock`` is held by whoever trains.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ownlet.device.ledger import LEDGER_FILE
from ownlet.shared.errors import StateBusyError, StateError

__all__ = ["StateFolder"]


@dataclass(frozen=True)
class StateFolder:
    """The files of one user's state."""

    root: Path

    @classmethod
    def make(cls, root: Path) -> StateFolder:
        """Return the folder, made if it is missing, readable by its owner alone.

        Raises:
            StateError: the disk refuses.
        """
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(f"state folder must be writable, got {root}: {error}") from error
        return cls(root)

    @property
    def history(self) -> Path:
        """Events and counters."""
        return self.root / "history.sqlite"

    @property
    def ledger(self) -> Path:
        """The privacy ledger."""
        return self.root / LEDGER_FILE

    @property
    def personal(self) -> Path:
        """Versions of the personal adapter."""
        return self.root / "personal"

    @property
    def shared(self) -> Path:
        """Shared adapters that came without a bundle."""
        return self.root / "shared"

    def halted(self, kind: str) -> Path:
        """Return where a training of this kind keeps what it has reached when it is stopped."""
        return self.root / f"{kind}.training"

    @property
    def outbox(self) -> Path:
        """The latest update."""
        return self.root / "outbox"

    @property
    def report(self) -> Path:
        """The latest report to a count of hits."""
        return self.root / "report"

    @property
    def has_trained(self) -> bool:
        """Whether an adapter, an update or a report lies here, so that a ledger must have been."""
        paths = (self.outbox, self.personal, self.halted("update"), self.report)
        return any(path.exists() for path in paths)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the state for one training; the operating system lets go if the process dies.

        Raises:
            StateBusyError: another training holds it, in this process or another.
            StateError: the disk refuses.
        """
        path = self.root / "lock"
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StateError(f"state folder must be writable, got {path}: {error}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                raise StateBusyError(
                    f"one training at a time must hold a state folder, got process {holder} in {self.root}"
                ) from None
            with suppress(OSError):  # who holds it is for the message only; a full disk must not stop a rollback
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)
