"""Files of lines that only grow: a line is there with its newline and on disk, or it does not count."""

from __future__ import annotations

import contextlib
import os

__all__ = ["append_lines", "whole_end"]

_BLOCK_BYTES = 32 * 1024


def whole_end(file: int) -> int:
    """Return the offset behind the last newline of an open file; what lies beyond is a torn line."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def append_lines(file: int, end: int, lines: bytes) -> None:
    """Append lines at ``end`` and wait until they are on disk; all of them or none.

    Args:
        file: open for appending, under its exclusive lock.
        end: where the whole lines end; a torn line behind it is cut off first.
        lines: newline included.

    Raises:
        OSError: the disk refused; the file is as before, without the torn line.
    """
    try:
        if os.fstat(file).st_size != end:
            os.ftruncate(file, end)
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):  # what stays without a newline is cut off next time
            os.ftruncate(file, end)
        raise
