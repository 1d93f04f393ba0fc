"""Which nodes SuperLink did not let in, and why, from its log: it tells neither the node nor anybody else."""

from __future__ import annotations

import ast
import base64
import hashlib
import re
from collections.abc import Callable, Mapping

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = ["RefusedNodes", "fingerprint"]

_REFUSED = re.compile(r"activate-node.* with public key: (b'[^']*'), exception: (.*)")
_UNKNOWN, _BUSY = "No SuperNode found", "could not be activated"
_MOST_TOLD = 50
"""Lines in all: whoever reaches the port may try any number of keys."""


class RefusedNodes:
    """Reads the lines of SuperLink's log, and tells each refused key once."""

    def __init__(self, name_of_key: Mapping[bytes, str], tell: Callable[[str], None]) -> None:
        """Begin with nothing told.

        Args:
            name_of_key: of the nodes that may connect.
            tell: told a sentence for each key and reason.
        """
        self._names, self._tell, self._told = name_of_key, tell, set[tuple[bytes, bool]]()

    def read(self, line: str) -> None:
        """Take in a line without colours."""
        if (match := _REFUSED.search(line)) is None or len(self._told) >= _MOST_TOLD:
            return
        key, busy = bytes(ast.literal_eval(match[1])), _BUSY in match[2]
        if (key, busy) in self._told or (key in self._names and not busy):  # the latter is about to be registered
            return
        if not busy and _UNKNOWN not in match[2]:
            return
        self._told.add((key, busy))
        if busy:
            name = self._names.get(key, f"the key {fingerprint(key)}")
            self._tell(f"{name} was not let in: another process is connected with its key, or was until a minute ago")
        else:
            self._tell(f"a node was not let in: its key is not registered, {fingerprint(key)}")


def fingerprint(key: bytes) -> str:
    """Return what ``ssh-keygen -lf`` shows of a public key (PEM); of what is none, the hash of its bytes."""
    try:
        found = serialization.load_pem_public_key(key)
        if not isinstance(found, EllipticCurvePublicKey):
            raise ValueError
        form = serialization.PublicFormat.OpenSSH
        blob = base64.b64decode(found.public_bytes(serialization.Encoding.OpenSSH, form).split()[1])
    except (ValueError, UnsupportedAlgorithm):
        blob = key
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
