"""Two timings that take turns, so that a busy moment of the machine hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

__all__ = ["take_turns"]


def take_turns(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    repeats: int,
    warmup: int,
    before: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Return the median seconds of each.

    Args:
        first: called first in every turn.
        second: called after it.
        repeats: timed turns.
        warmup: turns before them that are not timed.
        before: called before every turn, not timed.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(warmup + repeats):
        before()
        for call, kept in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            if turn >= warmup:
                kept.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
