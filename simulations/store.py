"""Histories of a whole population as two columns: every user's events in one array, and where each user begins.

In memory for small populations. For large ones a folder of ``.npy`` files that are memory-mapped, so that a round reads
the histories of its cohort and nothing else: 1,000,000 users with 30 events take 128 MB on disk and next to nothing in
memory. Windows are cut from it for whole cohorts at once, so one store serves every window length.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History, Item
from ownlet.shared.windows import WindowStack, cut_histories

__all__ = ["EventStore", "StoreWriter"]

_FORMAT = "ownlet-events-1"
_META, _EVENTS, _OFFSETS = "store.json", "events.npy", "offsets.npy"


@dataclass(frozen=True, kw_only=True, eq=False)
class EventStore:
    """Histories of users 0..N-1.

    Args:
        events: (num_events,) int32 item numbers from 1, user after user, in time order within a user.
        offsets: (N + 1,) int64: user u's events are ``events[offsets[u]:offsets[u + 1]]``.
        name: of the data.
        items: the catalogue; empty where the store was made from bare histories.
    """

    events: NDArray[np.int32]
    offsets: NDArray[np.int64]
    name: str = ""
    items: tuple[Item, ...] = ()

    @classmethod
    def of(cls, histories: Sequence[History]) -> EventStore:
        """Return a store in memory; one entry per user, possibly empty."""
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        events = np.concatenate([np.zeros(0, np.int32), *histories]).astype(np.int32)
        return cls(events=events, offsets=np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def open(cls, folder: Path) -> EventStore:
        """Map a folder that a ``StoreWriter`` wrote.

        Raises:
            DataError: it is not one, or is not whole.
        """
        try:
            meta = json.loads((folder / _META).read_text())
            events = np.load(folder / _EVENTS, mmap_mode="r")
            offsets = np.load(folder / _OFFSETS, mmap_mode="r")
            items = tuple(Item(**{**item, "genres": tuple(item["genres"])}) for item in meta["items"])
            sizes = (meta["format"], meta["num_events"], meta["num_users"] + 1)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"store must be a folder that ownlet wrote, got {folder}: {error}") from error
        if (_FORMAT, len(events), len(offsets)) != sizes or int(offsets[-1]) != len(events):
            raise DataError(f"store must hold {sizes[1]} events of {sizes[2] - 1} users, got another size in {folder}")
        return cls(events=events, offsets=offsets, name=meta["name"], items=items)

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def history(self, user: int) -> History:
        """Return a user's item numbers in time order."""
        return np.asarray(self.events[self.offsets[user] : self.offsets[user + 1]], dtype=np.int64)

    def windows(self, users: NDArray[np.int64], config: WindowConfig, *, held_out: int = 0) -> WindowStack:
        """Cut the histories of some users into windows.

        Args:
            users: user numbers.
            config: lengths of windows.
            held_out: this many of each user's last events are left out.

        Raises:
            KeyError: there is no such user.
        """
        if len(users) and not 0 <= int(users.min()) <= int(users.max()) < self.num_users:
            raise KeyError(int(users.max()))
        starts = np.asarray(self.offsets[users])
        lengths = np.maximum(0, self.offsets[users + 1] - starts - held_out)
        return cut_histories(self.events, starts, lengths, config)


class StoreWriter:
    """Writes a store block by block; used in a ``with``. The folder appears when the block is left without an error."""

    def __init__(self, folder: Path, *, name: str, items: Sequence[Item]) -> None:
        """Begin.

        Args:
            folder: must not exist yet.
            name: of the data.
            items: the catalogue, numbered from 1 without gaps.

        Raises:
            DataError: the folder exists.
        """
        if folder.exists():
            raise DataError(f"store folder must not exist yet, got {folder}")
        self._folder, self._name, self._items = folder, name, tuple(items)
        self._part = folder.with_name(folder.name + ".part")
        self._lengths: list[NDArray[np.int64]] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> StoreWriter:
        shutil.rmtree(self._part, ignore_errors=True)  # of an earlier, interrupted one
        self._part.mkdir(parents=True)
        self._file = (self._part / "events.raw").open("wb")
        return self

    def append(self, events: NDArray[Any], lengths: NDArray[np.int64]) -> None:
        """Add users.

        Args:
            events: (sum of lengths,) item numbers, user after user, in time order.
            lengths: (users,) events of each.

        Raises:
            DataError: an item number is not in the catalogue, or the lengths do not add up.
        """
        require(self._file is not None, "a store must be written inside its with block", folder=str(self._folder))
        if int(lengths.sum()) != len(events):
            raise DataError(f"lengths must add up to the number of events, got {int(lengths.sum())} and {len(events)}")
        if len(events) and not 1 <= int(events.min()) <= int(events.max()) <= len(self._items):
            raise DataError(f"events must be item numbers from 1 to {len(self._items)}, got others")
        self._file.write(events.astype("<i4").tobytes())  # type: ignore[union-attr]
        self._lengths.append(lengths.astype(np.int64))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        if kind is None:
            self._finish()
        else:
            shutil.rmtree(self._part, ignore_errors=True)

    def _finish(self) -> None:
        offsets = np.concatenate(
            [np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *self._lengths]))]
        )
        raw = self._part / "events.raw"
        with (self._part / _EVENTS).open("wb") as file, raw.open("rb") as source:
            header = {"descr": "<i4", "fortran_order": False, "shape": (int(offsets[-1]),)}
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(source, file, 1 << 24)
        raw.unlink()
        np.save(self._part / _OFFSETS, offsets)
        meta = {
            "format": _FORMAT,
            "name": self._name,
            "num_users": len(offsets) - 1,
            "num_events": int(offsets[-1]),
            "items": [asdict(item) for item in self._items],
        }
        (self._part / _META).write_text(json.dumps(meta))
        self._part.rename(self._folder)
