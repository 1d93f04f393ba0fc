"""How long events are kept, by number and by age, and why a wrong clock cannot empty a history.

Number goes by the order of recording, which no clock can disturb: a just-recorded event is always among the newest.

Age is measured against the earlier of two clocks: the device's, and the 10th newest timestamp of the history itself. A
device clock that jumps forward cannot expire everything, since ten events would have to carry the wrong time first; one
that goes back expires less, not more. The price: on a device where nothing happens nothing expires either, nor in a
history of fewer than ten events. Where a law sets a hard limit, call ``EventHistory.forget(before=...)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require

__all__ = ["Retention", "expired"]

_WITNESSES = 10  # events that must agree that time has passed
_MOST_BETWEEN = 1000  # records between two prunings, at most


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What a history keeps.

    Args:
        max_events: the most events; the ones recorded last stay. None for no limit.
        max_age_seconds: the oldest event, measured as the module says. None for no limit.

    Raises:
        ConfigError: a limit that is not positive, or an age that is not finite.
    """

    max_events: int | None = 100_000
    max_age_seconds: float | None = None

    def __post_init__(self) -> None:
        number, age = self.max_events, self.max_age_seconds
        whole = isinstance(number, int) and not isinstance(number, bool)
        require(number is None or (whole and number > 0), "max_events must be a positive integer", max_events=number)
        real = isinstance(age, int | float) and not isinstance(age, bool)
        require(
            age is None or (real and math.isfinite(age) and age > 0),
            "max_age_seconds must be positive and finite",
            max_age_seconds=age,
        )

    @property
    def records_between(self) -> int:
        """How many events are recorded between two prunings: a tenth of ``max_events``, at most 1,000."""
        tenth = _MOST_BETWEEN if self.max_events is None else self.max_events // 10
        return min(max(tenth, 1), _MOST_BETWEEN)


def expired(timestamps: NDArray[np.float64], now: float, max_age_seconds: float) -> NDArray[np.bool_]:
    """Say which events are too old.

    Args:
        timestamps: (n,) seconds, in any order.
        now: what the device's clock says, in seconds.
        max_age_seconds: the age from which an event is too old.

    Returns:
        (n,) true where the event is older; never true for the ten newest, nor where there are fewer than ten.
    """
    if len(timestamps) < _WITNESSES:
        return np.zeros(len(timestamps), np.bool_)
    tenth_newest = float(np.partition(timestamps, -_WITNESSES)[-_WITNESSES])
    return timestamps < min(now, tenth_newest) - max_age_seconds
