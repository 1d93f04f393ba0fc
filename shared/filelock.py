"""One writer at a time: a lock (flock) on a file, which the kernel lets go when a process dies.

The wait has an end, because a frozen process holds its lock, too.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ownlet.shared.errors import StoreError

__all__ = ["held_lock"]


@contextmanager
def held_lock(path: Path, *, wait_seconds: float = 30.0) -> Iterator[None]:
    """Hold the lock for as long as the context lasts.

    Args:
        path: the file, made if it is missing; its folder must exist.
        wait_seconds: how long to wait while another holds it.

    Raises:
        StoreError: another held it for all that time.
        OSError: the file cannot be opened.
    """
    with path.open("ab") as lock:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise StoreError(
                        f"store must be written by one at a time, got {path.parent} in use for {wait_seconds} seconds"
                    ) from error
            time.sleep(0.005)
        yield
