"""Timings that take turns, so that a busy moment of the machine hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["take_turns"]


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return the median seconds of each.

    Args:
        calls: name -> what is timed, once in every turn, in this order.
        repeats: timed turns.
        warmup: turns before them that are not timed.
        before: called before every turn, not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        before()
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(kept) for name, kept in times.items()}
