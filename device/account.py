"""The privacy account of a node that hosts users: each user's own ledger, charged before training, and the last reply.

A user's ledger is the last word on what the user has given: a user whose budget is spent contributes zero, whatever the
server asks and whatever its own accountant says. That is no secret, since what was spent follows from who was asked.
Charges hold for the round without amplification by the server's sampling, as in ``device/release.py``.

The same request is answered with the same reply, from disk, and not charged again: a server that died before it saved a
round asks anew. Two draws of a device's noise for one charge would be one too many. In a secure sum there is no such
reply, as its masks serve once: a sum that has begun is written down, and never begun again. Another sum for the same
round is another draw, and charged as one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ownlet.device.budget import Budget
from ownlet.device.ledger import Charge, Ledger
from ownlet.device.residual_folder import ResidualFolder
from ownlet.shared.errors import BudgetExceededError, PrivacyError, StateError
from ownlet.shared.store import write_atomic

__all__ = ["Account", "Paid"]

_DIGEST_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Paid:
    """Users who may train, and the ledger entries that paid for it.

    Args:
        users: in the order of the request.
        charges: user -> number of the entry.
    """

    users: tuple[int, ...]
    charges: dict[int, int]


class Account:
    """Ledgers, last reply and residuals of a node, in one folder."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        """Name the folder.

        Args:
            folder: of the node alone; made if it is missing. Whoever deletes it deletes the ledgers.
            budget: of each user.

        Raises:
            StateError: the disk refuses.
        """
        self._folder, self._budget = folder, budget
        try:
            (folder / "ledgers").mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(f"state folder must be writable, got {folder}: {error}") from error

    def charge(self, users: Sequence[int], charge: Charge) -> Paid:
        """Charge every user's ledger, on disk when this returns.

        Args:
            users: who is asked.
            charge: the same for each.

        Returns:
            Those who may train; a user whose budget does not allow it is not among them.

        Raises:
            PrivacyError: a ledger does not verify, or the disk refused; nobody may train then.
        """
        paid: dict[int, int] = {}
        for user in users:
            try:
                paid[user] = self._ledger(user).charge(charge)
            except BudgetExceededError:
                continue
        return Paid(users=tuple(user for user in users if user in paid), charges=paid)

    def begin(self, once: bytes) -> None:
        """Write down that a secure sum begins, before anybody is charged for it; on disk when this returns.

        Args:
            once: names the sum.

        Raises:
            PrivacyError: it has begun before.
            StateError: the disk refused.
        """
        try:
            if self._begun.exists() and self._begun.read_bytes() == _digest(once):
                raise PrivacyError("a secure sum must be answered once, got the same one again")
            write_atomic(self._begun, _digest(once), mode=0o600)
        except OSError as error:
            raise StateError(f"state folder must accept the begin of a sum, got {self._begun}: {error}") from error

    def kept(self, request: bytes) -> bytes | None:
        """Return the reply that this request was answered with, if it was the last one.

        Args:
            request: all of it, as bytes.
        """
        try:
            content = self._reply.read_bytes()
        except FileNotFoundError:
            return None
        return content[_DIGEST_BYTES:] if content[:_DIGEST_BYTES] == _digest(request) else None

    def keep(self, request: bytes, reply: bytes, paid: Paid) -> None:
        """Keep a reply on disk, then commit the charges that paid for it; only after that may it leave.

        Raises:
            StateError, PrivacyError: the disk refused; the charges stay.
        """
        try:
            write_atomic(self._reply, _digest(request) + reply, mode=0o600)
        except OSError as error:
            raise StateError(f"state folder must accept a reply, got {self._reply}: {error}") from error
        self.commit(paid, reply)

    def commit(self, paid: Paid, reply: bytes) -> None:
        """Commit charges with the hash of the reply that they paid for.

        Raises:
            PrivacyError: the disk refused; the reply must not leave.
        """
        released = hashlib.sha256(reply).hexdigest()
        for user, number in paid.charges.items():
            self._ledger(user).commit(number, released)

    @property
    def residuals(self) -> ResidualFolder:
        """What users' messages left out, with error feedback."""
        return ResidualFolder(self._folder / "residuals")

    @property
    def _reply(self) -> Path:
        return self._folder / "reply"

    @property
    def _begun(self) -> Path:
        return self._folder / "begun-sum"

    def _path(self, user: int) -> Path:
        return self._folder / "ledgers" / f"{user}.jsonl"

    def _ledger(self, user: int) -> Ledger:
        return Ledger(self._path(user), budget=self._budget)


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
