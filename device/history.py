"""What a user did, on the user's own device: an append-only list of events in SQLite.

Write-ahead logging with full synchronisation: a recorded event survives a crash of the process and of the machine
(https://www.sqlite.org/wal.html). Item names are kept as they came, unknown ones too: a later bundle may know them.
"""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

from ownlet.shared.errors import DataError

__all__ = ["EventHistory"]

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, timestamp REAL NOT NULL);
CREATE INDEX events_in_order ON events (timestamp, sequence);
"""


class EventHistory:
    """The events of one user."""

    def __init__(self, path: Path) -> None:
        """Open a history, or start one.

        Args:
            path: the database file; its folder must exist.

        Raises:
            DataError: not a history, or one that a newer ownlet wrote.
        """
        self._path = path
        try:
            self._database = sqlite3.connect(path)
            self._prepare()
        except sqlite3.Error as error:
            raise DataError(f"history must be a readable database, got {path}: {error}") from error

    def record(self, item: str, timestamp: float) -> None:
        """Append an event.

        Args:
            item: the item's original id.
            timestamp: seconds since any fixed origin.

        Raises:
            DataError: an empty item, a timestamp that is not finite, or a disk that refuses.
        """
        if not isinstance(item, str) or not item:
            raise DataError(f"item must be a non-empty string, got item={item!r}")
        if not math.isfinite(timestamp):
            raise DataError(f"timestamp must be finite, got timestamp={timestamp!r}")
        try:
            with self._database:
                self._database.execute("INSERT INTO events (item, timestamp) VALUES (?, ?)", (item, float(timestamp)))
        except sqlite3.Error as error:
            raise DataError(f"history must accept an event, got {self._path}: {error}") from error

    def items(self) -> list[str]:
        """Return the items of all events, in order of (timestamp, insertion)."""
        return [row[0] for row in self._database.execute("SELECT item FROM events ORDER BY timestamp, sequence")]

    def __len__(self) -> int:
        return int(self._database.execute("SELECT COUNT(*) FROM events").fetchone()[0])

    def close(self) -> None:
        """Close the database; recorded events are on disk already."""
        self._database.close()

    def _prepare(self) -> None:
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise DataError(f"history must have schema {_SCHEMA_VERSION} or older, got {version} in {self._path}")
        if version == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
