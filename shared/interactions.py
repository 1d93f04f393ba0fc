"""Interactions of users with items, as columns; the k-core filter and windows over them.

Items are numbered from 1 (0 is padding), users from 0. A history is one user's items in time order. How interactions
are split into what is trained on and what is tested on stands in ``shared/splits.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require

__all__ = ["History", "Interactions", "Item", "k_core", "pad_histories"]

History = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item of the catalogue.

    Args:
        number: the row of the item in every array, from 1.
        id: the id in the source file, as text.
        title: empty where the source has none.
        genres: empty where the source has none.
        description: empty where the source has none; read by text encoders alone.
    """

    number: int
    id: str
    title: str = ""
    genres: tuple[str, ...] = ()
    description: str = ""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Item:
        """Return the item that ``dataclasses.asdict`` wrote down, also where that went through JSON."""
        return cls(**{**fields, "genres": tuple(fields["genres"])})


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Events as columns, user by user, each user's events sorted by (timestamp, order in the file).

    A (user, item) pair may occur more than once: every occurrence is kept, in order.

    Args:
        name: the data set's name, for reports.
        items: the catalogue; ``items[i].number == i + 1``.
        user_ids: ids in the source, as text; index = user number.
        offsets: (num_users + 1,) user u's events are ``offsets[u]:offsets[u + 1]``.
        events: (num_events,) item numbers.
        times: (num_events,) int64 unix seconds; positions in the history where ``has_times`` is false.
        ratings: (num_events,) float32, or None where the source has none.
        context: column name -> (num_events,) values.
        has_times: whether the source knows when events were, not only in which order.

    Raises:
        ConfigError: the columns do not fit each other, or a user's times go backwards.
    """

    name: str
    items: tuple[Item, ...]
    user_ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    events: History
    times: NDArray[np.int64]
    ratings: NDArray[np.float32] | None = None
    context: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    has_times: bool = True

    def __post_init__(self) -> None:
        n = len(self.events)
        columns: dict[str, NDArray[Any]] = {"times": self.times, **self.context}
        if self.ratings is not None:
            columns["ratings"] = self.ratings
        for name, column in columns.items():
            require(len(column) == n, f"{name} must have one value per event", values=len(column), events=n)
        require(len(self.offsets) == len(self.user_ids) + 1, "offsets must have one entry more than users")
        whole = self.offsets[0] == 0 and self.offsets[-1] == n and bool((np.diff(self.offsets) >= 0).all())
        require(whole, "offsets must rise from 0 to the number of events", first=self.offsets[0], last=self.offsets[-1])
        if n:
            low, high = int(self.events.min()), int(self.events.max())
            require(low >= 1 and high <= len(self.items), "events must be item numbers", low=low, high=high)
            same_user = np.diff(self.users) == 0
            require(bool((np.diff(self.times)[same_user] >= 0).all()), "times must not go backwards within a user")

    @property
    def num_users(self) -> int:
        """How many users there are."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """How many items the catalogue has."""
        return len(self.items)

    def __len__(self) -> int:
        return len(self.events)

    @cached_property
    def users(self) -> NDArray[np.int64]:
        """The user number of every event, (num_events,)."""
        return np.repeat(np.arange(self.num_users), np.diff(self.offsets))

    @cached_property
    def histories(self) -> tuple[History, ...]:
        """Each user's item numbers in time order: views into ``events``."""
        return self.per_user(self.events)

    @cached_property
    def timestamps(self) -> tuple[NDArray[np.int64], ...]:
        """Each user's unix seconds: views into ``times``."""
        return self.per_user(self.times)

    def per_user(self, column: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        """Cut a column (num_events,) into one view per user."""
        return tuple(column[a:b] for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True))


def k_core(interactions: Interactions, k: int) -> Interactions:
    """Keep the largest part where every user and every item has at least k events.

    Dropping a user takes events from items and the other way round, so it repeats until nothing changes. Users and
    items keep their order and are numbered densely again; items without events are dropped too.

    Args:
        interactions: any.
        k: at least 1.

    Returns:
        The core; empty where there is none.

    Raises:
        ConfigError: k is below 1.
    """
    require(k >= 1, "k must be at least 1", k=k)
    users, events = interactions.users, interactions.events
    keep = np.ones(len(events), bool)
    while True:
        per_user = np.bincount(users[keep], minlength=interactions.num_users)
        per_item = np.bincount(events[keep], minlength=interactions.num_items + 1)
        kept = keep & (per_user[users] >= k) & (per_item[events] >= k)
        if kept.sum() == keep.sum():
            break
        keep = kept
    return _select(interactions, keep, per_user[: interactions.num_users] > 0, per_item > 0)


def _select(
    interactions: Interactions, keep: NDArray[np.bool_], with_users: NDArray[np.bool_], with_items: NDArray[np.bool_]
) -> Interactions:
    """Keep the marked events, users and items; number users and items densely again."""
    number = np.cumsum(with_items)  # (num_items + 1,) old number -> new number; column 0 is padding and never marked
    counts = np.bincount(interactions.users[keep], minlength=interactions.num_users)[with_users]
    items = tuple(
        replace(item, number=int(number[item.number])) for item in interactions.items if with_items[item.number]
    )
    return Interactions(
        name=interactions.name,
        items=items,
        user_ids=tuple(interactions.user_ids[u] for u in np.flatnonzero(with_users)),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        events=number[interactions.events[keep]].astype(np.int64),
        times=interactions.times[keep],
        ratings=None if interactions.ratings is None else interactions.ratings[keep],
        context={name: column[keep] for name, column in interactions.context.items()},
        has_times=interactions.has_times,
    )


def pad_histories(histories: Sequence[History], max_length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep the last ``max_length`` events of each history and pad on the right.

    Returns:
        items (n, max_length) and lengths (n,), at least 1 (an empty history is one padding event).
    """
    items = np.zeros((len(histories), max_length), np.int64)
    lengths = np.ones(len(histories), np.int64)
    for row, history in enumerate(histories):
        kept = history[-max_length:]
        items[row, : len(kept)] = kept
        lengths[row] = max(1, len(kept))
    return items, lengths
