"""A user's known events as item numbers in order of time, kept in memory and brought up to date by what is new.

Reading 100,000 rows takes a fraction of a second, and ``recommend`` takes a millisecond. So the rows are read once, and
later only those behind the last one read; one small query per refresh tells whether there are any, whichever process
recorded them. An event out of time order moves those that are later than it, and everything is read again only after a
deletion, which the history's generation tells.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ownlet.device.event import Events
from ownlet.device.history import EventHistory
from ownlet.device.moments import Moments, said_codes
from ownlet.shared.context import ContextField
from ownlet.shared.errors import require

__all__ = ["KnownEvents", "Timeline"]

_LEAST_ROOM = 256

_Number = TypeVar("_Number", np.int64, np.float64)


class _Columns(NamedTuple):
    """Known events in order of (timestamp, sequence): seconds, row numbers in the history, item numbers, each (n,).

    And (n, columns) codes of what the app said of each moment.
    """

    timestamps: NDArray[np.float64]
    sequences: NDArray[np.int64]
    numbers: NDArray[np.int64]
    said: NDArray[np.int64]


class KnownEvents(NamedTuple):
    """Known events in order of time: their item numbers (n,), their row numbers in the history (n,), their moments."""

    numbers: NDArray[np.int64]
    sequences: NDArray[np.int64]
    moments: Moments

    @property
    def context(self) -> NDArray[np.int64] | None:
        """The rows of each event's moment, (n, fields); None where the base reads none."""
        return self.moments.rows() if self.moments.fields else None

    @property
    def last(self) -> int:
        """The largest row number, 0 without events."""
        return int(self.sequences.max(initial=0))

    def up_to(self, sequence: int | None) -> KnownEvents:
        """Return those that were recorded up to this row number; all of them for None."""
        if sequence is None:
            return self
        kept = self.sequences <= sequence
        return KnownEvents(self.numbers[kept], self.sequences[kept], self.moments[kept])


class Timeline:
    """The events of a history whose items a catalogue knows; several threads may use it at once.

    The arrays that its methods return are the caller's own.
    """

    def __init__(
        self,
        history: EventHistory,
        numbers: Mapping[str, int],
        num_items: int,
        fields: tuple[ContextField, ...] = (),
    ) -> None:
        """Read the history.

        Args:
            history: it must stay open as long as ``refresh`` is called.
            numbers: item number, from 1 to ``num_items``, of each original item id that the catalogue knows.
            num_items: the size of the catalogue.
            fields: what the base reads of each event's moment.

        Raises:
            ConfigError: an item number out of range.
            DataError: the history is damaged, locked or closed.
        """
        self._history, self._numbers, self._num_items, self._fields = history, numbers, num_items, fields
        self._lock = threading.Lock()
        events = history.events_after(0)
        self._take_in(events, self._known(events), afresh=True)

    def refresh(self) -> bool:
        """Take in what was recorded or deleted since, by this process or another.

        Returns:
            Whether there was anything.

        Raises:
            ConfigError: an item number out of range.
            DataError: the history is damaged, locked or closed; the timeline is as it was.
        """
        with self._lock:
            if self._history.position() == (self._generation, self._last):
                return False
            events = self._history.events_after(self._last)
            if events.generation != self._generation:  # something was deleted
                events = self._history.events_after(0)
                self._take_in(events, self._known(events), afresh=True)
            else:
                self._take_in(events, self._known(events), afresh=False)
            return True

    def numbers(self) -> NDArray[np.int64]:
        """Return (n,) item numbers in order of (timestamp, recording)."""
        with self._lock:
            return self._buffers.numbers[: self._size].copy()

    def recent(self, count: int) -> NDArray[np.int64]:
        """Return (min(count, n),) item numbers of the newest events, the newest last.

        Raises:
            ConfigError: a negative count.
        """
        require(count >= 0, "count must not be negative", count=count)
        with self._lock:
            return self._buffers.numbers[max(self._size - count, 0) : self._size].copy()

    def seen(self) -> NDArray[np.bool_]:
        """Return (num_items + 1,) true at the number of each item with an event; false at 0, the padding."""
        with self._lock:
            return self._seen.copy()

    def timestamps(self) -> NDArray[np.float64]:
        """Return (n,) seconds, ascending."""
        with self._lock:
            return self._buffers.timestamps[: self._size].copy()

    def sequences(self) -> NDArray[np.int64]:
        """Return (n,) row numbers in the history, in the order of ``numbers``; the larger, the later recorded."""
        with self._lock:
            return self._buffers.sequences[: self._size].copy()

    def snapshot(self) -> KnownEvents:
        """Return all known events, as they are at one and the same instant."""
        return self.latest(sys.maxsize)

    def latest(self, count: int) -> KnownEvents:
        """Return the newest known events, as they are at one and the same instant.

        Raises:
            ConfigError: a negative count.
        """
        require(count >= 0, "count must not be negative", count=count)
        with self._lock:
            kept = slice(max(self._size - count, 0), self._size)
            at, sequences, numbers, said = self._buffers
            moments = Moments(fields=self._fields, timestamps=at[kept].copy(), said=said[kept].copy())
            return KnownEvents(numbers[kept].copy(), sequences[kept].copy(), moments)

    @property
    def generation(self) -> int:
        """The history's generation that this timeline shows."""
        return self._generation

    def __len__(self) -> int:
        return self._size

    def _take_in(self, events: Events, fresh: _Columns, *, afresh: bool) -> None:
        if afresh:
            self._last, self._size = 0, 0
            nothing = np.zeros(0, np.int64)
            self._buffers = _Columns(np.zeros(0), nothing, nothing, said_codes(self._fields, []))
            self._seen = np.zeros(self._num_items + 1, np.bool_)
        size = self._size + len(fresh.numbers)
        if size > len(self._buffers.numbers):
            timestamps, sequences, numbers, said = self._buffers
            self._buffers = _Columns(
                _with_room(timestamps, size),
                _with_room(sequences, size),
                _with_room(numbers, size),
                _with_room(said, size),
            )
        _merge(self._buffers, self._size, fresh)
        self._seen[fresh.numbers] = True
        self._size, self._generation = size, events.generation
        self._last = int(events.sequences[-1]) if len(events) else self._last

    def _known(self, events: Events) -> _Columns:
        """Return the events that the catalogue knows, in order."""
        numbers = np.array([self._numbers.get(item, 0) for item in events.items], np.int64)  # 0: not known
        for wrong in numbers[(numbers < 0) | (numbers > self._num_items)][:1].tolist():
            require(False, f"item number must be from 1 to {self._num_items}", number=wrong)
        known = np.flatnonzero(numbers)
        order = known[np.argsort(events.timestamps[known], kind="stable")]  # stable: they come in order of recording
        said = said_codes(self._fields, events.contexts)[order]
        return _Columns(events.timestamps[order], events.sequences[order], numbers[order], said)


def _merge(buffers: _Columns, size: int, fresh: _Columns) -> None:
    """Put events into buffers of which ``size`` rows are taken; rows before the first new one's place stay put."""
    if len(fresh.numbers) == 0:
        return
    # of equal times the one recorded later comes later, hence the right side
    places = np.searchsorted(buffers.timestamps[:size], fresh.timestamps, side="right")
    start, end = places[0], size + len(fresh.numbers)
    for buffer, column in zip(buffers, fresh, strict=True):
        # nearly always nothing is later than the new events
        buffer[start:end] = column if start == size else np.insert(buffer[start:size], places - start, column, axis=0)


def _with_room(column: NDArray[_Number], size: int) -> NDArray[_Number]:
    """Copy into a buffer half as large again as ``size``, so that many appends cost one copy."""
    buffer = np.zeros((max(size + size // 2, _LEAST_ROOM), *column.shape[1:]), column.dtype)
    buffer[: len(column)] = column
    return buffer
