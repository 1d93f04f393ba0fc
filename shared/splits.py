"""What is trained on and what is tested on.

Four splits, each a pure function of the interactions and, where chance is involved, a seed: leave-one-out (the
protocol of SASRec, https://arxiv.org/abs/1808.09781, section IV-A), one global point in time, the last session of every
user, and public against device users. Cold items and cold users stand in ``simulations/cold.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import ConfigError, require
from ownlet.shared.interactions import History, Interactions

__all__ = [
    "LeaveOneOut",
    "PublicDevices",
    "SessionSplit",
    "TimeSplit",
    "global_time_split",
    "leave_one_out",
    "public_device_split",
    "seconds_of",
    "session_split",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class LeaveOneOut:
    """Every user's last event for the test, the one before for validation, the rest for training.

    A user with fewer than 3 events would have nothing to train on: such a user keeps all events in ``train``, has 0 as
    validation and test item, and is not in ``evaluated``.

    Args:
        train: per user, the events to train on.
        validation: (num_users,) item numbers, 0 where the user is not evaluated.
        test: (num_users,) item numbers, 0 where the user is not evaluated.
        validation_times: (num_users,) unix seconds, 0 where the user is not evaluated.
        test_times: (num_users,) unix seconds, 0 where the user is not evaluated.
    """

    train: tuple[History, ...]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    validation_times: NDArray[np.int64]
    test_times: NDArray[np.int64]

    @property
    def evaluated(self) -> NDArray[np.int64]:
        """The numbers of the users that have a validation and a test item, in order."""
        return np.flatnonzero(self.test > 0)

    def test_history(self, user: int) -> History:
        """Return what is known of a user when the test item is predicted: train events and the validation item."""
        if self.test[user] == 0:
            return self.train[user]
        return np.append(self.train[user], self.validation[user])


def leave_one_out(interactions: Interactions) -> LeaveOneOut:
    """Split off each user's last two events.

    Args:
        interactions: any; users with fewer than 3 events are kept for training only.

    Returns:
        The split, users in their order.
    """
    lengths = np.diff(interactions.offsets)
    enough = lengths >= 3
    last = interactions.offsets[1:] - 1

    def pick(column: NDArray[np.int64], back: int) -> NDArray[np.int64]:
        picked = np.zeros(interactions.num_users, np.int64)
        picked[enough] = column[last[enough] - back]
        return picked

    return LeaveOneOut(
        train=tuple(h[:-2] if long else h for h, long in zip(interactions.histories, enough, strict=True)),
        validation=pick(interactions.events, 1),
        test=pick(interactions.events, 0),
        validation_times=pick(interactions.times, 1),
        test_times=pick(interactions.times, 0),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeSplit:
    """Every user's events before a moment and from it on; either part may be empty.

    Args:
        at_seconds: the moment, unix seconds.
        train: per user, the events before it.
        test: per user, the events at it or later.
    """

    at_seconds: int
    train: tuple[History, ...]
    test: tuple[History, ...]


def global_time_split(interactions: Interactions, date: str | int) -> TimeSplit:
    """Cut all histories at one moment, so that nothing from the future is trained on.

    Args:
        interactions: any.
        date: unix seconds, or an ISO date or time such as ``2013-06-01``; without a zone it is UTC.

    Returns:
        The two parts of every user's history.

    Raises:
        ConfigError: the date cannot be read, or the data has no times.
    """
    at = _moment(interactions, date)
    cuts = [int(np.searchsorted(times, at, side="left")) for times in interactions.timestamps]
    return TimeSplit(
        at_seconds=at,
        train=tuple(h[:cut] for h, cut in zip(interactions.histories, cuts, strict=True)),
        test=tuple(h[cut:] for h, cut in zip(interactions.histories, cuts, strict=True)),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class SessionSplit:
    """Every user's last session for the test, the sessions before it for training.

    A user with one session has no test.

    Args:
        train: per user, the events of all sessions but the last; all events of a user with one session.
        test: per user, the events of the last session; empty where there is one session only.
        sessions: (num_users,) how many sessions a user has.
    """

    train: tuple[History, ...]
    test: tuple[History, ...]
    sessions: NDArray[np.int64]


def session_split(interactions: Interactions, *, gap_seconds: int) -> SessionSplit:
    """Cut each user's history into sessions and split off the last one.

    Args:
        interactions: any with times.
        gap_seconds: a session ends where the next event comes more than this many seconds later.

    Returns:
        The split, users in their order.

    Raises:
        ConfigError: the gap is negative, or the data has no times.
    """
    require(gap_seconds >= 0, "gap_seconds must not be negative", gap_seconds=gap_seconds)
    require(interactions.has_times, "sessions need data with times", data=interactions.name)
    begins = [np.flatnonzero(np.diff(times) > gap_seconds) + 1 for times in interactions.timestamps]
    cuts = [int(at[-1]) if len(at) else len(h) for h, at in zip(interactions.histories, begins, strict=True)]
    lengths = np.diff(interactions.offsets)
    return SessionSplit(
        train=tuple(h[:cut] for h, cut in zip(interactions.histories, cuts, strict=True)),
        test=tuple(h[cut:] for h, cut in zip(interactions.histories, cuts, strict=True)),
        sessions=np.array([len(at) for at in begins], np.int64) + (lengths > 0),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class PublicDevices:
    """Users whose events the server may read, and users whose events stay on devices. No user is both.

    Args:
        public: numbers of the public users, in order.
        devices: numbers of the device users, in order.
        until_seconds: where not None, only the public users' events before this moment (unix seconds) are public to a
            base, which never sees the future.
    """

    public: NDArray[np.int64]
    devices: NDArray[np.int64]
    until_seconds: int | None = None

    def public_histories(self, interactions: Interactions) -> tuple[History, ...]:
        """Return the public part of each public user's history."""
        histories = (interactions.histories[u] for u in self.public)
        if self.until_seconds is None:
            return tuple(histories)
        cuts = (np.searchsorted(interactions.timestamps[u], self.until_seconds, side="left") for u in self.public)
        return tuple(h[: int(cut)] for h, cut in zip(histories, cuts, strict=True))


def public_device_split(
    interactions: Interactions, *, fraction: float = 0.3, seed: int = 0, date: str | int | None = None
) -> PublicDevices:
    """Choose the public users: a share of all, or everybody who was there before a date.

    Args:
        interactions: any.
        fraction: share of users drawn as public; the number is rounded to the nearest whole one. Unused with a date.
        seed: of the draw; equal seeds give equal users. Unused with a date.
        date: where given, public users are those with an event before it and device users those whose first event comes
            at it or later; same forms as in ``global_time_split``.

    Returns:
        The two groups; together they are all users (with a date: all users that have events).

    Raises:
        ConfigError: the fraction is not in [0, 1], the date cannot be read, or there is one and the data has no times.
    """
    require(0 <= fraction <= 1, "fraction must be in [0, 1]", fraction=fraction)
    if date is None:
        order = np.random.default_rng(seed).permutation(interactions.num_users)
        count = round(fraction * interactions.num_users)
        return PublicDevices(public=np.sort(order[:count]), devices=np.sort(order[count:]))
    at = _moment(interactions, date)
    active = np.flatnonzero(np.diff(interactions.offsets) > 0)
    early = interactions.times[interactions.offsets[active]] < at  # a user's first event is the earliest
    return PublicDevices(public=active[early], devices=active[~early], until_seconds=at)


def _moment(interactions: Interactions, date: str | int) -> int:
    require(interactions.has_times, "a date needs data with times", data=interactions.name)
    return seconds_of(date)


def seconds_of(date: str | int) -> int:
    """Return unix seconds of an ISO date or time (UTC unless it names a zone), or the number itself.

    Raises:
        ConfigError: the text is not an ISO date.
    """
    if isinstance(date, int):
        return date
    try:
        moment = datetime.fromisoformat(date)
    except ValueError as error:
        raise ConfigError(f"date must be ISO such as 2013-06-01, got date={date!r}") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
