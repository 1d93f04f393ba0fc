"""Histories of a whole population as two columns: every user's events in one array, and where each user begins.

In memory for small populations. For large ones a folder of ``.npy`` files that are memory-mapped, so that a round reads
the histories of its cohort and nothing else: 1,000,000 users with 30 events take 128 MB on disk and next to nothing in
memory. Windows are cut from it for whole cohorts at once, so one store serves every window length.

A ``StoreWriter`` works in ``NAME.part`` and renames that to ``NAME`` when all is on disk: a store is whole or absent.
What fills it stands in ``simulations/store_build.py``.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.lib.format import open_memmap, write_array_header_1_0
from numpy.typing import NDArray

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History, Item
from ownlet.shared.store import write_atomic
from ownlet.shared.windows import WindowStack, cut_histories

__all__ = ["EventStore", "StoreWriter"]

_FORMAT = "ownlet-events-1"
_META, _EVENTS, _OFFSETS, _LOCK, _SCRATCH = "store.json", "events.npy", "offsets.npy", "lock", "scratch"


@dataclass(frozen=True, kw_only=True, eq=False)
class EventStore:
    """Histories of users 0..N-1.

    Args:
        events: (num_events,) int32 item numbers from 1, user after user, in time order within a user.
        offsets: (N + 1,) int64: user u's events are ``events[offsets[u]:offsets[u + 1]]``.
        name: of the data.
        items: the catalogue; empty where the store was made from bare histories.
        context: (num_events, fields) rows from ``shared.context`` of the moment of each event; None where nothing is
            known. A folder has none.
    """

    events: NDArray[np.int32]
    offsets: NDArray[np.int64]
    name: str = ""
    items: tuple[Item, ...] = ()
    context: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, histories: Sequence[History], context: Sequence[NDArray[np.int64]] | None = None) -> EventStore:
        """Return a store in memory; one entry per user, possibly empty.

        Args:
            histories: item numbers of each user.
            context: per user (events, fields), the moment of each event, where anything is known.
        """
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        events = np.concatenate([np.zeros(0, np.int32), *histories]).astype(np.int32)
        moments = np.concatenate(context) if context else None
        return cls(events=events, offsets=np.concatenate([[0], np.cumsum(lengths)]), context=moments)

    @classmethod
    def open(cls, folder: Path) -> EventStore:
        """Map a folder that a ``StoreWriter`` wrote.

        Raises:
            DataError: it is not one, or is not whole.
        """
        try:
            meta = json.loads((folder / _META).read_text())
            events = np.asarray(open_memmap(folder / _EVENTS, mode="r"))
            offsets = np.asarray(open_memmap(folder / _OFFSETS, mode="r"))
            items = tuple(Item.of(item) for item in meta["items"])
            name, written = meta["name"], (meta["format"], meta["num_events"], meta["num_users"])
            found = (_FORMAT, len(events), len(offsets) - 1)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"store must be a folder that ownlet wrote, got {folder}: {error}") from error
        if found != written:
            raise DataError(f"store must have the format, events and users {found}, got {written} in {folder / _META}")
        if not _fit(events, offsets):
            raise DataError(f"store must have offsets that rise from 0 to its number of events, got others in {folder}")
        return cls(events=events, offsets=offsets, name=name, items=items)

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def history(self, user: int) -> History:
        """Return a user's item numbers in time order.

        Raises:
            KeyError: there is no such user.
        """
        if not 0 <= user < self.num_users:
            raise KeyError(user)
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
        unknown = users[(users < 0) | (users >= self.num_users)]
        if len(unknown):
            raise KeyError(int(unknown[0]))
        starts = self.offsets[users]
        lengths = np.maximum(0, self.offsets[users + 1] - starts - held_out)
        return cut_histories(self.events, starts, lengths, config, self.context)

    def all_windows(self, config: WindowConfig) -> WindowStack:
        """Cut the whole histories of all users into windows: for a population that fits into memory."""
        return self.windows(np.arange(self.num_users), config)


def _fit(events: NDArray[Any], offsets: NDArray[Any]) -> bool:
    """Whether two columns are what ``EventStore`` documents."""
    if (events.dtype, offsets.dtype) != (np.dtype(np.int32), np.dtype(np.int64)):
        return False
    if (events.ndim, offsets.ndim) != (1, 1):
        return False
    return int(offsets[0]) == 0 and int(offsets[-1]) == len(events) and bool((np.diff(offsets) >= 0).all())


class StoreWriter:
    """Writes a store block by block; used in a ``with``. The folder appears when the block is left without an error."""

    def __init__(self, folder: Path, *, name: str, items: Sequence[Item], overwrite: bool = False) -> None:
        """Begin.

        Args:
            folder: where the store is to be.
            name: of the data.
            items: the catalogue, numbered from 1 without gaps.
            overwrite: a store of that name makes way once the new one is whole.

        Raises:
            ConfigError: the catalogue is numbered otherwise.
            DataError: the folder exists, or is to be overwritten and is not a store.
        """
        in_order = all(item.number == number for number, item in enumerate(items, start=1))
        require(in_order, "items must be numbered from 1 in order", numbers=[item.number for item in items[:3]])
        self._folder, self._name, self._items, self._overwrite = folder, name, tuple(items), overwrite
        self._part = folder.with_name(folder.name + ".part")
        self._lengths: list[NDArray[np.int64]] = []
        self._file: IO[bytes] | None = None
        self._check_target()

    @property
    def scratch(self) -> Path:
        """A folder for files that are needed while the store is written; it goes with ``NAME.part``."""
        folder = self._part / _SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def __enter__(self) -> StoreWriter:
        """Open ``NAME.part``, empty.

        Raises:
            DataError: somebody else is writing this store.
        """
        self._part.mkdir(parents=True, exist_ok=True)
        self._lock = (self._part / _LOCK).open("wb")
        try:
            self._lock_part()
            for left in self._part.iterdir():  # of an earlier, interrupted writer
                if left.name != _LOCK:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            self._file = (self._part / _EVENTS).open("wb")
            self._write_header(0)
        except BaseException:
            self._lock.close()
            raise
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
        assert self._file is not None
        if int(lengths.sum()) != len(events) or bool((lengths < 0).any()):
            raise DataError(f"lengths must add up to the number of events, got {int(lengths.sum())} and {len(events)}")
        if len(events) and not 1 <= int(events.min()) <= int(events.max()) <= len(self._items):
            raise DataError(f"events must be item numbers from 1 to {len(self._items)}, got others")
        self._file.write(np.ascontiguousarray(events, dtype="<i4").data)
        self._lengths.append(lengths.astype(np.int64))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        whole = False
        try:
            with self._file:
                if kind is None:
                    self._finish()
            if kind is None:
                self._take_place()
                whole = True
        finally:
            self._file = None
            if not whole:
                shutil.rmtree(self._part, ignore_errors=True)
            self._lock.close()

    def _check_target(self) -> None:
        if not self._folder.exists():
            return
        if not self._overwrite:
            raise DataError(f"store folder must not exist yet, got {self._folder} (choose another, or overwrite)")
        if not ((self._folder / _META).is_file() and (self._folder / _OFFSETS).is_file()):
            raise DataError(f"only a store may be overwritten, got {self._folder}")

    def _lock_part(self) -> None:
        """Keep other writers out until this process ends, however that comes about."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"store must be written by one writer at a time, got another at {self._part}") from error
        self._check_target()  # another writer may have finished since

    def _write_header(self, num_events: int) -> None:
        """Write the header; NumPy pads it so that one with another number of events takes the same room."""
        assert self._file is not None
        write_array_header_1_0(self._file, {"descr": "<i4", "fortran_order": False, "shape": (num_events,)})

    def _finish(self) -> None:
        """Complete the three files and wait until they are on disk."""
        assert self._file is not None
        offsets = np.zeros(1 + sum(len(lengths) for lengths in self._lengths), "<i8")
        if self._lengths:
            np.cumsum(np.concatenate(self._lengths), out=offsets[1:])
        self._file.seek(0)
        self._write_header(int(offsets[-1]))
        _sync(self._file)
        with (self._part / _OFFSETS).open("wb") as file:
            np.save(file, offsets)
            _sync(file)
        meta = {
            "format": _FORMAT,
            "name": self._name,
            "num_users": len(offsets) - 1,
            "num_events": int(offsets[-1]),
            "items": [asdict(item) for item in self._items],
        }
        write_atomic(self._part / _META, json.dumps(meta).encode())
        shutil.rmtree(self._part / _SCRATCH, ignore_errors=True)
        (self._part / _LOCK).unlink()

    def _take_place(self) -> None:
        """Rename to the target; an older store makes way only for the instant between two renames."""
        self._check_target()
        with TemporaryDirectory(dir=self._folder.parent, prefix=f".{self._folder.name}.old.") as old:
            moved = Path(old) / self._folder.name
            if self._folder.exists():
                self._folder.rename(moved)
            try:
                self._part.rename(self._folder)
            except OSError:
                if moved.exists():
                    moved.rename(self._folder)
                raise


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
