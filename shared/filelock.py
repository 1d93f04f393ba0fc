"""One writer at a time: a lock (flock) on a file, which the kernel lets go when a process dies.

The wait has an end, because a frozen process holds its lock, too.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ownlet.shared.errors import StoreError

__all__ = ["held_lock", "take_lock"]

_POLL_SECONDS = 0.005


def take_lock(path: Path, wait_seconds: float) -> IO[bytes]:
    """Take the lock; it is held until the returned file is closed, at the latest when this process ends.

    Args:
        path: the file, made if it is missing; its folder must exist.
        wait_seconds: how long to wait while another holds it.

    Raises:
        TimeoutError: another held it for all that time.
        OSError: the file cannot be opened.
    """
    file = path.open("ab")
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                raise TimeoutError(f"lock must be free within {wait_seconds} seconds, got {path} in use") from None
        time.sleep(_POLL_SECONDS)


@contextmanager
def held_lock(path: Path, *, wait_seconds: float = 30.0) -> Iterator[None]:
    """Hold the lock of a store for as long as the context lasts.

    Args:
        path: the file, made if it is missing; its folder must exist.
        wait_seconds: how long to wait while another holds it.

    Raises:
        StoreError: another held it for all that time.
        OSError: the file cannot be opened.
    """
    try:
        lock = take_lock(path, wait_seconds)
    except TimeoutError as error:
        raise StoreError(
            f"store must be written by one at a time, got {path.parent} in use for {wait_seconds} seconds"
        ) from error
    with lock:
        yield
