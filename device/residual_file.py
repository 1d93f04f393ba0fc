"""What a real device's messages left out, in one file, sealed where the app gave a key; see ``device/sending.py``.

It is made of the history, like a personal adapter, so it must go where that goes: delete the file to forget it. A file
that is lost, unreadable or of another base costs what was left out, and nothing else.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ownlet.shared.adapter import Vector
from ownlet.shared.errors import DataError
from ownlet.shared.seal import Seal
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = ["ResidualFile"]

_PURPOSE = b"residual"


@dataclass(frozen=True, kw_only=True)
class ResidualFile:
    """Keeps the residual of the one user of a device; implements ``sending.Residuals``.

    Args:
        path: of the file.
        seal: of the app's key.
    """

    path: Path
    seal: Seal

    def of(self, user: int, base_hash: str) -> Vector | None:
        """Return what is kept, (num_trainable,), if it is this user's and of an adapter of this base."""
        with suppress(OSError, ValueError, KeyError, DataError):
            tensors, words = unpack(self.seal.open(self.path.read_bytes(), _PURPOSE))
            if (words["user"], words["base"]) == (str(user), base_hash):
                kept: Vector = tensors["residual"]
                return kept
        return None

    def keep(self, user: int, base_hash: str, residual: Vector) -> None:
        """Replace it, atomically.

        Raises:
            OSError: the disk refuses.
        """
        words = {"user": str(user), "base": base_hash}
        write_atomic(self.path, self.seal.seal(pack({"residual": residual}, words), _PURPOSE))
