"""What the messages of a node's users left out, a file per user; see ``device/sending.py``.

A file is made of the history, so it may enter nobody's message but that user's, and no message that the user's ledger
has not paid for. It holds what was left out before and after its last round, and is written before the round's reply:

* A round that is asked again, because the node died before its reply was on disk, starts from what was there *before*
  it, as if it had never been asked. Where the server goes on without that reply, what it would have carried is lost.
* A request of an earlier round of the same run, which somebody sends again, is answered without the file and leaves it
  as it is. A first round of another run starts anew.
* A file that is lost, unreadable, of another privacy unit or of other frozen numbers costs what was left out, and
  nothing else. The unit matters: what was left out under ``user`` has had no noise, and under ``window`` nobody adds
  any to what is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import DataError, StateError
from ownlet.shared.seal import Seal
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

if TYPE_CHECKING:  # importing it would load Flower
    from ownlet.shared.wire import TrainRequest

__all__ = ["ResidualFolder", "RoundResiduals"]

_PURPOSE = b"residual"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    run: str
    round: int
    before: Vector | None
    after: Vector


class ResidualFolder:
    """The residuals of the users of a node."""

    def __init__(self, folder: Path, seal: Seal | None = None) -> None:
        """Name the folder, which is made when something is kept.

        Args:
            folder: of the node alone.
            seal: of a key; by default files are as readable as the node's histories are.
        """
        self._folder, self._seal = folder, seal or Seal()

    def of_round(self, request: TrainRequest, spec: AdapterSpec, *, run: int, users: Collection[int]) -> RoundResiduals:
        """Return what one request may read and write.

        Args:
            request: what the server asks.
            spec: of the adapter.
            run: Flower's number of the run.
            users: whose ledgers have paid; all others contribute nothing, and so nothing that was left of them.
        """
        frozen = np.delete(request.vector, spec.trainable)
        kind = f"{request.unit} {hashlib.sha256(frozen.tobytes()).hexdigest()}"
        return RoundResiduals(self, kind, str(run), request.round, frozenset(users))

    def users(self) -> list[int]:
        """Return whose residuals are here, in order."""
        return sorted(int(path.name) for path in self._folder.glob("*") if path.name.isdecimal())

    def forget(self, user: int) -> None:
        """Delete a user's residual, if there is one."""
        self._path(user).unlink(missing_ok=True)

    def _path(self, user: int) -> Path:
        return self._folder / str(user)

    def _read(self, user: int, kind: str) -> _Kept | None:
        with suppress(OSError, ValueError, KeyError, DataError):
            tensors, words = unpack(self._seal.open(self._path(user).read_bytes(), _PURPOSE))
            if (words["user"], words["kind"]) == (str(user), kind):
                before, after = tensors.get("before"), tensors["after"]
                return _Kept(run=words["run"], round=int(words["round"]), before=before, after=after)
        return None

    def _write(self, user: int, kind: str, kept: _Kept) -> None:
        words = {"user": str(user), "kind": kind, "run": kept.run, "round": str(kept.round)}
        tensors = {"after": kept.after, **({} if kept.before is None else {"before": kept.before})}
        try:
            write_atomic(self._path(user), self._seal.seal(pack(tensors, words), _PURPOSE), mode=0o600)
        except OSError as error:
            raise StateError(f"state folder must accept a residual, got {self._folder}: {error}") from error


class RoundResiduals:
    """What one request may read and write of a ``ResidualFolder``; implements ``sending.Residuals``."""

    def __init__(self, folder: ResidualFolder, kind: str, run: str, number: int, users: frozenset[int]) -> None:
        """Take what ``ResidualFolder.of_round`` gives."""
        self._folder, self._kind, self._run, self._round, self._users = folder, kind, run, number, users

    def of(self, user: int, base_hash: str) -> Vector | None:
        """Return what the user's message may add, (num_trainable,)."""
        kept = self._kept(user, base_hash)
        if kept is None or kept.round > self._round:
            return None
        return kept.after if kept.round < self._round else kept.before

    def keep(self, user: int, base_hash: str, residual: Vector) -> None:
        """Replace it, atomically, unless the request is an old one or the user has not paid.

        Raises:
            StateError: the disk refuses.
        """
        kept = self._kept(user, base_hash)
        if user not in self._users or (kept is not None and kept.run == self._run and kept.round > self._round):
            return
        now = _Kept(run=self._run, round=self._round, before=self.of(user, base_hash), after=residual)
        self._folder._write(user, f"{self._kind} {base_hash}", now)

    def _kept(self, user: int, base_hash: str) -> _Kept | None:
        return self._folder._read(user, f"{self._kind} {base_hash}") if user in self._users else None
