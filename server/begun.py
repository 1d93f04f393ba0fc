"""Which cohort a round asks, written down before anybody is asked.

A server that dies in the middle of a round leaves this behind. The next one asks the same users for the same round: it
counts once, as it was charged once, and nobody who has answered already is charged again, because a device answers the
same request with the same update (``device/release.py``, ``device/account.py``). A fresh cohort would have asked two
cohorts and charged one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import FederationError
from ownlet.shared.store import write_atomic

__all__ = ["begin_round", "begun_cohort", "forget_begun"]

_SUFFIX = ".begun"


def begin_round(checkpoint: Path, number: int, cohort: NDArray[np.int64]) -> None:
    """Write down that a round begins; on disk when this returns.

    Args:
        checkpoint: the run's file; this stands beside it.
        number: of the round, from 1.
        cohort: its users.
    """
    content = np.concatenate([[number], cohort]).astype("<i8").tobytes()
    write_atomic(_path(checkpoint), content)


def begun_cohort(checkpoint: Path, number: int) -> NDArray[np.int64] | None:
    """Return the users of a round that began and did not end; None where it did not begin.

    Raises:
        FederationError: the file is damaged.
    """
    try:
        content = _path(checkpoint).read_bytes()
    except FileNotFoundError:
        return None
    if not content or len(content) % 8:
        raise FederationError(f"round that began must be readable, got {len(content)} bytes in {_path(checkpoint)}")
    values = np.frombuffer(content, dtype="<i8").astype(np.int64)
    return values[1:] if values[0] == number else None


def forget_begun(checkpoint: Path) -> None:
    """Forget a round that began in an earlier run in this place."""
    _path(checkpoint).unlink(missing_ok=True)


def _path(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + _SUFFIX)
