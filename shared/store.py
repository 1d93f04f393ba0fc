"""Files that are either whole or absent.

``write_atomic`` writes a temporary file in the same folder, fsyncs it, renames it over the target and fsyncs the
folder: after a crash at any instant the target is the old content or the new one, never a mixture (POSIX
rename(2), fsync(2)).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` with ``content`` in one step that survives a crash.

    Raises:
        OSError: the disk refused; the old file is untouched and no temporary file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask applies, as to any new file
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
