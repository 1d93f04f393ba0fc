"""A file of JSON lines that is only ever appended, each line bound to the one before it by a keyed hash.

A line is canonical JSON (sorted keys, no spaces). ``seq`` is its number from 1, ``prev`` the ``mac`` of the line
before, ``mac`` the HMAC-SHA256 (RFC 2104) of the line without ``mac``, as in the forward-linked logs of Schneier and
Kelsey 1999 (https://doi.org/10.1145/317087.317089). So a line that was altered, removed from the middle or moved shows.
With an empty key anyone can recompute the hashes: then the chain finds damage, not forgery. Lines cut off at the end
leave a valid, shorter file; who needs to see that has to remember (seq, mac) elsewhere.

A line counts once its newline is on disk. What follows the last newline was never acknowledged (a killed process, a
full disk, zeros after a power loss) and is cut off before the next append.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ownlet.shared.errors import PrivacyError
from ownlet.shared.line_file import append_lines
from ownlet.shared.store import sync_folder

__all__ = ["Entry", "append", "canonical", "locked", "parse_line", "read_tail", "signed_line"]

Entry = dict[str, Any]

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
_BLOCK_BYTES = 32 * 1024  # about twice what lies between two checkpoints


def canonical(entry: Entry) -> bytes:
    """Return the one way in which an entry is written, without its newline."""
    return _ENCODER.encode(entry).encode()


def signed_line(entry: Entry, key: bytes) -> bytes:
    """Return the line of an entry that has everything but its mac, newline included."""
    return canonical({**entry, "mac": _mac(canonical(entry), key)}) + b"\n"


def parse_line(line: bytes, key: bytes | None) -> Entry:
    """Return the entry of a line (without its newline) after checking form and mac.

    Args:
        line: what stands between two newlines.
        key: of the HMAC; None reads without checking the mac.

    Raises:
        ValueError: the line does not verify; the message says why.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("mac"), str) or canonical(entry) != line:
        raise ValueError("it is not a canonical entry")
    body = line.replace(b'"mac":%s,' % json.dumps(entry["mac"]).encode(), b"", 1)  # "prev" and "seq" stand behind it
    if key is not None and not hmac.compare_digest(entry["mac"].encode(), _mac(body, key).encode()):
        raise ValueError("its mac does not fit: altered, or written with another key")
    return entry


@contextlib.contextmanager
def locked(path: Path, *, create: bool = False, write: bool = True) -> Iterator[int]:
    """Open the file and hold its lock (flock) for as long as the context lasts.

    Args:
        path: the file.
        create: make an empty one where there is none, its name on disk before the context starts.
        write: open for appending under an exclusive lock; else for reading under a shared one.

    Raises:
        OSError: the file cannot be opened; FileNotFoundError where there is none.
    """
    new = create and not path.exists()
    flags = (os.O_RDWR | os.O_APPEND if write else os.O_RDONLY) | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    file = os.open(path, flags, 0o600)
    try:
        if new:
            sync_folder(path.parent)
        fcntl.flock(file, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
        yield file
    finally:
        os.close(file)  # releases the lock


def read_tail(file: int, end: int, marker: bytes) -> tuple[int, bytes]:
    """Return offset and bytes of the file from the last whole line that holds ``marker``, else from its start.

    Args:
        file: an open file.
        end: behind the newline of the last line to look at.
        marker: bytes that only such a line has.
    """
    size = _BLOCK_BYTES
    while True:
        start = max(0, end - size)
        data = os.pread(file, end - start, start)
        whole = 0 if start == 0 else data.find(b"\n") + 1  # the first line of the block may have lost its beginning
        at = data.rfind(marker, whole) if whole or start == 0 else -1
        if at >= 0:
            line = data.rfind(b"\n", 0, at) + 1
            return start + line, data[line:]
        if start == 0:
            return 0, data
        size *= 4


def append(file: int, end: int, lines: bytes) -> None:
    """Append lines at ``end`` and wait until they are on disk; all of them or none.

    Args:
        file: open for appending, under its exclusive lock.
        end: where the whole lines end; a torn line behind it is cut off first.
        lines: newline included.

    Raises:
        PrivacyError: the disk refused; the file is as before, without the torn line.
    """
    try:
        append_lines(file, end, lines)
    except OSError as error:
        raise PrivacyError(f"ledger must be on disk before anything is spent, got {error}") from error


def _mac(body: bytes, key: bytes) -> str:
    return hmac.digest(key, body, "sha256").hex()
