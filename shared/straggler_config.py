"""What the server does about slow devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ownlet.shared.errors import require

__all__ = ["Buffer", "Stragglers"]


@dataclass(frozen=True, kw_only=True)
class Stragglers:
    """When a synchronous round stops waiting.

    Args:
        deadline_seconds: a round takes what has come by then; never later than the run's ``reply_timeout_seconds``.
        over_selection: this many times ``cohort_rate`` is the chance of each user to be asked, and is what is charged;
            the average is still over the ``cohort_rate``.
        take_first: a round ends as soon as ``cohort_rate`` times all users have answered. Not under user-level noise.
    """

    deadline_seconds: float = math.inf
    over_selection: float = 1.0
    take_first: bool = False

    def __post_init__(self) -> None:
        require(self.deadline_seconds > 0, "deadline_seconds must be positive", deadline_seconds=self.deadline_seconds)
        require(
            1 <= self.over_selection < math.inf,
            "over_selection must be at least 1",
            over_selection=self.over_selection,
        )


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Buffered asynchronous aggregation (FedBuff, ``server/buffered.py``).

    Args:
        size: K: so many updates are one step of the server; 0 is synchronous rounds.
        concurrency: users that are training at any time.
        max_staleness: an update that is relative to an adapter more than so many versions old is refused.
        staleness_power: an update that is s versions old counts ``(1 + s) ** -staleness_power``.
    """

    size: int = 0
    concurrency: int = 20
    max_staleness: int = 20
    staleness_power: float = 0.5

    def __post_init__(self) -> None:
        require(self.size >= 0, "size must not be negative", size=self.size)
        require(self.concurrency >= 1, "concurrency must be at least 1", concurrency=self.concurrency)
        require(self.size <= self.concurrency, "size must be at most concurrency", size=self.size)
        require(self.max_staleness >= 0, "max_staleness must not be negative", max_staleness=self.max_staleness)
        require(
            0 <= self.staleness_power < math.inf,
            "staleness_power must not be negative",
            staleness_power=self.staleness_power,
        )
