"""Is the personal adapter worth having? Asked of the device's own events, before it serves and while it does.

Before: a training keeps the latest events out, and its outcome is published only if the loss on them is no higher than
that of what serves now and that of the shared adapter alone. While it serves: for every event that came later, did the
personal adapter have the item in its first k, and did the shared one? Where the shared one is ahead by more than chance
allows (an exact sign test on the events where the two disagree), the device goes back to it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.device.train import LocalEngine
from ownlet.shared.adapter import Vector
from ownlet.shared.errors import require
from ownlet.shared.windows import Windows

__all__ = ["Drift", "Guard", "held_out_row", "watch"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """The guard's settings.

    Args:
        holdout: share of the events that a training keeps out to judge its outcome; at least one event.
        min_events: with fewer known events a personal adapter is not trained.
        k: an item among the first k is a hit.
        window: how many of the latest events the drift counters look at.
        significance: the chance with which an adapter that is as good as the shared one is taken back.
    """

    holdout: float = 0.2
    min_events: int = 5
    k: int = 10
    window: int = 100
    significance: float = 0.05

    def __post_init__(self) -> None:
        require(0 < self.holdout < 1, "holdout must be in (0, 1)", holdout=self.holdout)
        require(self.min_events >= 3, "min_events must be at least 3", min_events=self.min_events)
        require(self.k >= 1, "k must be at least 1", k=self.k)
        require(self.window >= 1, "window must be at least 1", window=self.window)
        require(0 < self.significance < 1, "significance must be in (0, 1)", significance=self.significance)

    def num_held_out(self, num_events: int, row_length: int) -> int:
        """Return how many of the latest events judge a training: at most half a row, so that each has a past."""
        return min(max(1, round(self.holdout * num_events)), max(1, row_length // 2))


def held_out_row(
    events: NDArray[np.int64], held_out: int, row_length: int, context: NDArray[np.int64] | None = None
) -> Windows:
    """Return one row whose valid targets are the last ``held_out`` of ``events`` (num_events,), at least 2 events.

    Args:
        events: item numbers in time order.
        held_out: how many of the last ones judge.
        row_length: positions of the row.
        context: (num_events, fields), the moment of each event, where the base reads any.
    """
    row = events[-(row_length + 1) :]
    count = len(row) - 1
    history, target = np.zeros((1, row_length), np.int64), np.zeros((1, row_length), np.int64)
    valid = np.zeros((1, row_length), np.float32)
    history[0, :count], target[0, :count] = row[:-1], row[1:]
    valid[0, max(0, count - held_out) : count] = 1
    moments = None
    if context is not None:
        moments = np.zeros((1, row_length, context.shape[1]), np.int64)
        moments[0, :count] = context[len(events) - count :]
    return Windows(history=history, target=target, valid=valid, context=moments)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Hits on the latest events, oldest first: per event one digit, 1 for a personal hit plus 2 for a shared one.

    Args:
        outcomes: the digits.
        until: sequence number of the last event that was looked at.
    """

    outcomes: str = ""
    until: int = 0

    @property
    def personal_hit_rate(self) -> float:
        """Share of the events that the personal adapter had among its first k; NaN without events."""
        return self._share("13")

    @property
    def shared_hit_rate(self) -> float:
        """Share of the events that the shared adapter alone had among its first k; NaN without events."""
        return self._share("23")

    def is_behind(self, significance: float) -> bool:
        """Whether the personal adapter loses to the shared one by more than chance allows (one-sided sign test)."""
        lost, won = self.outcomes.count("2"), self.outcomes.count("1")
        n = lost + won
        at_least_as_many = sum(math.comb(n, losses) for losses in range(lost, n + 1)) / 2**n
        return lost > won and at_least_as_many <= significance

    def add(self, outcomes: str, until: int, window: int) -> Drift:
        """Return the counters with later outcomes, the oldest beyond ``window`` forgotten."""
        return Drift(outcomes=(self.outcomes + outcomes)[-window:], until=until)

    def to_json(self) -> str:
        """Write the counters."""
        return json.dumps({"outcomes": self.outcomes, "until": self.until})

    @classmethod
    def from_json(cls, text: str | None) -> Drift:
        """Read what ``to_json`` wrote; without any, start over."""
        return cls(**json.loads(text)) if text else cls()

    def _share(self, digits: str) -> float:
        hits = sum(self.outcomes.count(digit) for digit in digits)
        return hits / len(self.outcomes) if self.outcomes else math.nan


def watch(
    engine: LocalEngine,
    personal: Vector,
    shared: Vector,
    events: NDArray[np.int64],
    positions: NDArray[np.int64],
    k: int,
    context: NDArray[np.int64] | None = None,
) -> str:
    """Return the outcome of each event that a recommendation could have hit, as a digit of ``Drift.outcomes``.

    Args:
        engine: scores.
        personal: (P,) the adapter that serves.
        shared: (P,) the shared adapter alone.
        events: (num_events,) item numbers in time order.
        positions: (m,) which of them to look at; an item that the user had before is never recommended, so it is left
            out.
        k: an item among the first k is a hit.
        context: (num_events, fields), the moment of each event, where the base reads any.
    """
    outcomes = []
    for position in positions:
        before, item = events[:position], events[position]
        if item in before:
            continue
        moments = None if context is None else context[min(1, position) : position + 1]  # the last is its own
        hits = [_rank(engine.score(vector, before, moments), before, int(item)) < k for vector in (personal, shared)]
        outcomes.append(str(hits[0] + 2 * hits[1]))
    return "".join(outcomes)


def _rank(scores: NDArray[np.float32], seen: NDArray[np.int64], item: int) -> int:
    """Return how many unseen items score above ``item``; scores (num_items + 1,)."""
    unseen = np.ones(len(scores), np.bool_)
    unseen[0] = False
    unseen[seen] = False
    return int((scores[unseen] > scores[item]).sum())
