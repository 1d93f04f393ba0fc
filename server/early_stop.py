"""Early stopping of a federated run: which round was the best, and whether it is time to stop.

Adapters are judged on held-out public users, whose data was never private: looking at them costs no privacy, and which
adapter is kept is post-processing of noised values. Every round that ran stays charged, the ones after the best too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ownlet.server.checkpoint import RoundResult
from ownlet.shared.adapter import Vector

__all__ = ["Best", "Judge", "best_of", "why_stop"]

Judge = Callable[[int, Vector], float | None]
"""Says how good an adapter (P,) is on held-out public users after a round, or None where it does not look.

Round 0 is the adapter that the run starts from. It must be looked at where the run has ``patience``.
"""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best of the rounds that were judged.

    Args:
        round: 0 is the start; of equals the first.
        quality: what the judge said of it.
        since: how many later rounds were judged.
    """

    round: int
    quality: float
    since: int


def best_of(start_quality: float, results: Sequence[RoundResult]) -> Best:
    """Return the best round so far."""
    best = Best(round=0, quality=start_quality, since=0)
    for result in results:
        if result.quality is None:
            continue
        if result.quality > best.quality:
            best = Best(round=result.round, quality=result.quality, since=0)
        else:
            best = Best(round=best.round, quality=best.quality, since=best.since + 1)
    return best


def why_stop(best: Best, patience: int) -> str | None:
    """Return why a run stops here, or None where it goes on; a patience of 0 never ends."""
    if patience == 0 or best.since < patience:
        return None
    which = f"round {best.round}" if best.round else "the adapter before the first round"
    return f"no better adapter on held-out public users in {best.since} evaluations; {which} is kept"
