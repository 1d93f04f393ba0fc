"""What a user did, on the user's own device: events in SQLite that survive crashes, and that can really be deleted.

``record`` returns when the event is on disk. Item names are kept as they came, unknown ones too: a later bundle may
know them. Under a key each row is one AES-GCM blob of item and timestamp, padded. Visible stay the number of rows and
their order, the rate of recording (from the file's own times), and the keys of the key-value table.

``forget`` deletes in one transaction that also notes that bytes remain, then rewrites the file (VACUUM) and empties
the log (https://www.sqlite.org/lang_vacuum.html, https://www.sqlite.org/pragma.html#pragma_wal_checkpoint). A process
killed in between leaves the note, and the next open finishes. What flash storage keeps of overwritten blocks is beyond
a file's reach; a key that is thrown away is the answer to that.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.event import (
    Events,
    checked_context,
    checked_item,
    checked_timestamp,
    decode_events,
    encode_event,
)
from ownlet.device.history_file import can_wait, database_errors, open_database, transaction
from ownlet.device.retention import Retention, expired
from ownlet.shared.errors import DataError, require
from ownlet.shared.seal import Seal

__all__ = ["EventHistory", "Retention"]

_EVENT_PURPOSE = b"history event"
_SEALED_BLOCK_BYTES = 64  # most names then have the same length
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,63}")


class EventHistory:
    """The events of one user; any thread and any number of processes may use the file at once."""

    def __init__(
        self,
        path: Path,
        *,
        seal: Seal | None = None,
        retention: Retention = Retention(),  # noqa: B008 - frozen
        busy_timeout_seconds: float = 5.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open a history, or start one; finish an interrupted ``forget``, and delete what retention does not keep.

        Args:
            path: the database file; its folder must exist.
            seal: hides the rows; the same at every opening. By default nothing is hidden.
            retention: what is kept.
            busy_timeout_seconds: how long a call waits for another process.
            clock: the device's clock, in the unit and with the origin of the timestamps.

        Raises:
            DataError: damaged, not a history, of a newer ownlet, sealed under another key, or locked.
        """
        self._path, self._seal, self._retention, self._clock = path, seal or Seal(), retention, clock
        self._lock = threading.RLock()
        self._unpruned = 0
        self._database = open_database(path, self._seal, busy_timeout_seconds=busy_timeout_seconds)
        try:
            self._keep_house()
        except BaseException:
            self._database.close()
            raise

    def record(self, item: str, timestamp: float, context: Mapping[str, str] | None = None) -> None:
        """Append an event; it is on disk when this returns.

        An event that is already older than the retention allows is kept until the next pruning.

        Args:
            item: the item's original id, at most 1,024 bytes in UTF-8.
            timestamp: seconds since any fixed origin; the Unix epoch where retention goes by age.
            context: what the app says of the moment, by name; at most 1,024 bytes as JSON.

        Raises:
            DataError: something breaks its rule, a full disk, or a locked file; nothing is recorded.
        """
        self.record_many([(item, timestamp, context)])

    def record_many(self, events: Iterable[tuple[str, float] | tuple[str, float, Mapping[str, str] | None]]) -> None:
        """Append events in one transaction, all or none; much faster than one at a time.

        Args:
            events: item, timestamp and, where there is any, context of each, as in ``record``.

        Raises:
            DataError: as ``record``, for the first event that breaks a rule.
        """
        rows = [
            (self._sealed(checked_item(item), checked_timestamp(timestamp), checked_context(*context or [None])),)
            for item, timestamp, *context in events
        ]
        with self._lock:
            with self._writing() as database:
                database.executemany("INSERT INTO events (event) VALUES (?)", rows)
            self._unpruned += len(rows)
            if self._unpruned >= self._retention.records_between:
                self._unpruned = 0  # first, so that a pruning that fails is not tried again at every record
                # the events are recorded: an error here would make the app record them twice
                with contextlib.suppress(DataError):
                    self.prune()

    def count(self, *, item: str | None = None, before: float | None = None) -> int:
        """Return how many events ``forget`` would delete by one of these criteria.

        Raises:
            DataError: a criterion that no event could meet, or a damaged row.
        """
        return len(_choice(item, before)(self.events_after(0)))

    def forget(self, *, item: str | None = None, before: float | None = None, everything: bool = False) -> int:
        """Delete events for good: from the table, from the file's free space and from the log.

        Args:
            item: all events of this item.
            before: all events with a timestamp below this.
            everything: all events. Keys and values of ``put`` stay.

        Returns:
            The number of deleted events.

        Raises:
            ConfigError: not exactly one criterion.
            DataError: the events could not be deleted, and are all there; or they are deleted but their bytes could
                not be removed yet, because the disk is full or another process reads: the next open or ``forget`` does.
        """
        given = (item is not None) + (before is not None) + bool(everything)
        require(given == 1, "forget must get exactly one of item, before, everything", given=given)
        chosen = _choice(item, before)
        with self._lock:
            with self._writing() as database:
                # everything can be deleted without being readable
                doomed = None if everything else chosen(self._read(database, 0))
                deleted = _delete(database, doomed)
                if deleted:
                    _note_deletion(database)
                    database.execute(
                        "UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'generation') WHERE name = 'wipe'"
                    )
            self._wipe_now()
        return deleted

    def prune(self) -> int:
        """Delete what retention does not keep; happens by itself on opening and between records.

        Returns:
            The number of deleted events.

        Raises:
            DataError: the file cannot be written; nothing is deleted.
        """
        with self._lock:
            with self._writing() as database:
                deleted = self._delete_surplus(database) + self._delete_expired(database)
                if deleted:
                    _note_deletion(database)
            if deleted:
                self._empty_log()
        return deleted

    def items(self) -> list[str]:
        """Return the items of all events, in order of (timestamp, insertion)."""
        events = self.events_after(0)
        return [events.items[row] for row in np.argsort(events.timestamps, kind="stable").tolist()]

    def events_after(self, sequence: int) -> Events:
        """Return the events recorded after the one with this sequence number; all of them after 0.

        Raises:
            DataError: a row that is damaged, or was sealed under another key.
        """
        with self._reading():
            return self._read(self._database, sequence)

    def position(self) -> tuple[int, int]:
        """Return the generation and the largest sequence number, 0 without events: what a cache compares."""
        row = self._one("SELECT (SELECT value FROM meta WHERE name = 'generation'), (SELECT max(sequence) FROM events)")
        return int(row[0]), int(row[1] or 0)

    @property
    def generation(self) -> int:
        """A number that grows with every deletion, by ``forget`` or by retention, in any process."""
        return self.position()[0]

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM events")[0])

    def get(self, key: str) -> str | None:
        """Return the value that was put under a key, or None.

        Raises:
            ConfigError: not a key.
            DataError: the value is damaged.
        """
        _require_key(key)
        with self._reading():
            row = self._database.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        with _damage(self._path):
            return self._seal.open(row[0], _value_purpose(key)).decode()

    def put(self, key: str, value: str | None) -> None:
        """Keep a value; it is on disk when this returns. See ``put_many``."""
        self.put_many({key: value})

    def put_many(self, values: Mapping[str, str | None]) -> None:
        """Keep values in one transaction, all or none.

        Args:
            values: by key: a name in the code, as keys are never sealed. None removes a value.

        Raises:
            ConfigError: not a key: up to 64 letters, digits and ``._/:-``.
            DataError: a value that is not text, a full disk, or a locked file; nothing is kept.
        """
        rows = [(key, self._sealed_value(key, value)) for key, value in values.items()]
        with self._writing() as database:
            for key, sealed in rows:
                if sealed is None:
                    database.execute("DELETE FROM entries WHERE key = ?", (key,))
                else:
                    database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, sealed))

    def close(self) -> None:
        """Close the database; recorded events are on disk already. Closing twice does nothing."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, database_errors(self._path), transaction(self._database):
            yield self._database

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, database_errors(self._path), transaction(self._database, write=False):
            yield

    def _one(self, query: str) -> tuple[int, ...]:
        with self._lock, database_errors(self._path):
            return tuple(self._database.execute(query).fetchone())

    def _sealed(self, item: str, timestamp: float, context: Mapping[str, str]) -> bytes:
        plain = encode_event(item, timestamp, context, block_bytes=_SEALED_BLOCK_BYTES if self._seal.seals else 1)
        return self._seal.seal(plain, _EVENT_PURPOSE)

    def _sealed_value(self, key: str, value: str | None) -> bytes | None:
        _require_key(key)
        if value is None:
            return None
        try:
            return self._seal.seal(value.encode(), _value_purpose(key))
        except (AttributeError, UnicodeEncodeError) as error:
            raise DataError(f"value of {key!r} must be text that UTF-8 can hold, got {type(value).__name__}") from error

    def _read(self, database: sqlite3.Connection, sequence: int) -> Events:
        """Read within a transaction, so that the events are those of this generation."""
        generation = int(database.execute("SELECT value FROM meta WHERE name = 'generation'").fetchone()[0])
        query = "SELECT sequence, event FROM events WHERE sequence > ? ORDER BY sequence"
        rows = database.execute(query, (sequence,)).fetchall()
        with _damage(self._path):
            timestamps, items, contexts = decode_events([self._seal.open(row[1], _EVENT_PURPOSE) for row in rows])
        sequences = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        return Events(generation=generation, sequences=sequences, timestamps=timestamps, items=items, contexts=contexts)

    def _keep_house(self) -> None:
        for step in (self._wipe, self.prune):
            try:
                step()
            except DataError as error:
                if not can_wait(error):
                    raise  # a full disk or a reader must not keep the user from the history

    def _delete_surplus(self, database: sqlite3.Connection) -> int:
        if self._retention.max_events is None:
            return 0
        query = "SELECT sequence FROM events ORDER BY sequence DESC LIMIT 1 OFFSET ?"
        row = database.execute(query, (self._retention.max_events,)).fetchone()
        return database.execute("DELETE FROM events WHERE sequence <= ?", row).rowcount if row else 0

    def _delete_expired(self, database: sqlite3.Connection) -> int:
        if self._retention.max_age_seconds is None:
            return 0
        events = self._read(database, 0)
        old = expired(events.timestamps, self._clock(), self._retention.max_age_seconds)
        return _delete(database, events.sequences[old])

    def _wipe_now(self) -> None:
        try:
            wiped, reason = self._wipe(), "another process is reading"
        except DataError as error:
            wiped, reason = False, str(error)
        if not wiped:
            rule = "history must be free to be rewritten after a deletion"
            left = "the events are deleted, their bytes stay until the next forget or open"
            raise DataError(f"{rule}, got {self._path}: {left}: {reason}")

    def _wipe(self) -> bool:
        """Remove the bytes of deleted events, if there are any to remove; false while another process reads them."""
        with database_errors(self._path):
            (pending,) = self._one("SELECT value FROM meta WHERE name = 'wipe'")
            if not pending:
                return True
            self._database.execute("VACUUM")
            if not self._empty_log():
                return False
            # not where another process has deleted more since: its bytes are not removed yet
            self._database.execute("UPDATE meta SET value = 0 WHERE name = 'wipe' AND value = ?", (pending,))
            return True

    def _empty_log(self) -> bool:
        """Move the log into the database and cut it to nothing; false while another process reads."""
        with database_errors(self._path):
            return not self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Name the file where a row cannot be opened, or is not even bytes."""
    try:
        yield
    except (DataError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(f"history must be a readable database, got {path}: {error}") from error


def _choice(item: str | None, before: float | None) -> Callable[[Events], NDArray[np.int64]]:
    """Return what picks the rows to forget, once its criterion is checked."""
    if item is not None:
        name = checked_item(item)
        return lambda events: events.sequences[[other == name for other in events.items]]
    limit = -np.inf if before is None else checked_timestamp(before)
    return lambda events: events.sequences[events.timestamps < limit]


def _delete(database: sqlite3.Connection, sequences: NDArray[np.int64] | None) -> int:
    """Delete these rows, or all of them."""
    if sequences is None:
        return database.execute("DELETE FROM events").rowcount
    database.executemany("DELETE FROM events WHERE sequence = ?", ((sequence,) for sequence in sequences.tolist()))
    return len(sequences)


def _note_deletion(database: sqlite3.Connection) -> None:
    database.execute("UPDATE meta SET value = value + 1 WHERE name = 'generation'")


def _require_key(key: str) -> None:
    require(bool(_KEY.fullmatch(key)), "key must be up to 64 letters, digits and ._/:-", key=key)


def _value_purpose(key: str) -> bytes:
    return b"history value " + key.encode()  # so that one key's sealed value cannot be put under another
