"""The history's SQLite file: made whole or not at all, opened only if it is sound, migrated in one transaction.

* A new file is built beside its place and renamed, under a lock on the folder that dies with its process. So an empty
  or half-made file is always damage, never a beginning, and is refused; nothing is recreated over what was there.
* Write-ahead log, full synchronisation (https://www.sqlite.org/wal.html): a commit survives a crash of the machine.
* ``secure_delete`` overwrites what is deleted with zeros (https://www.sqlite.org/pragma.html#pragma_secure_delete);
  temporary tables stay in memory, so no copy of an event lies in another folder.
* Schema 1 kept item and timestamp as two columns; schema 2 keeps one blob, which may be sealed, and has ``meta``
  (generation, pending wipe, a check value that shows which key is right) and ``entries`` (key and value).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ownlet.device.event import encode_event
from ownlet.shared.errors import DataError
from ownlet.shared.seal import Seal

__all__ = ["can_wait", "database_errors", "open_database", "transaction"]

_SCHEMA_VERSION = 2
_TABLES = (
    "CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, event BLOB NOT NULL)",
    "CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
)
_CHECK = b"a history of ownlet"
_CHECK_PURPOSE = b"history check"
_SETTINGS = (
    "synchronous = FULL",
    "fullfsync = ON",  # Apple's fsync alone does not reach the disk; no effect elsewhere
    "checkpoint_fullfsync = ON",
    "secure_delete = ON",
    "temp_store = MEMORY",
)
_COMPANIONS = ("", "-wal", "-shm", "-journal")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_NO_ROOM = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def open_database(path: Path, seal: Seal, *, busy_timeout_seconds: float) -> sqlite3.Connection:
    """Open the file, or make it; bring an older schema up to date.

    Args:
        path: the file; its folder must exist.
        seal: under which its rows are sealed.
        busy_timeout_seconds: how long to wait for another process.

    Returns:
        A connection in autocommit mode that any thread may use, one at a time.

    Raises:
        DataError: damaged, empty, of a newer ownlet, sealed under another key, or locked; the file is as it was.
    """
    with database_errors(path):
        if not path.exists():
            _create(path, seal)
        if path.stat().st_size == 0:
            raise DataError(f"history must be a readable database, got an empty file at {path}")
        _make_private(path)
        # mode=rw: a file that vanishes now must not be made anew
        database = _connect(f"{path.absolute().as_uri()}?mode=rw", busy_timeout_seconds)
        try:
            _check(database, path)
            _migrate(database, path, seal)
            _check_key(database, path, seal)
        except BaseException:
            database.close()
            raise
    return database


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say into a DataError that names the file and what is wrong."""
    try:
        yield
    except sqlite3.Error as error:
        raise DataError(f"history must be {_rule(_code(error))}, got {path}: {error}") from error
    except OSError as error:
        raise DataError(f"history must be in a folder that can be written, got {path}: {error}") from error


@contextlib.contextmanager
def transaction(database: sqlite3.Connection, *, write: bool = True) -> Iterator[None]:
    """Do all of the block or nothing; a write waits here for other writers, so that it cannot fail half-way."""
    try:
        database.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        yield
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def can_wait(error: DataError) -> bool:
    """Whether an error is a full disk or another process, so that house-keeping may be tried again later."""
    return isinstance(error.__cause__, sqlite3.Error) and _code(error.__cause__) in _NO_ROOM | _LOCKED


def _create(path: Path, seal: Seal) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # the kernel lets go of it when the process dies
        if path.exists():
            return  # another process was first
        if path.with_name(f"{path.name}-wal").exists():
            raise DataError(f"history must be a readable database, got {path}-wal without its database")
        new = path.with_name(f".{path.name}.new")
        for suffix in _COMPANIONS:  # of a process that was killed here
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            _fill(new, seal)
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        os.fsync(folder)
    finally:
        os.close(folder)


def _fill(new: Path, seal: Seal) -> None:
    with contextlib.closing(_connect(new.absolute().as_uri(), 0.0)) as database:
        with transaction(database):
            _make_tables(database, seal)
        database.execute("PRAGMA journal_mode = WAL")  # last: until here the file needs no companion


def _make_tables(database: sqlite3.Connection, seal: Seal) -> None:
    for statement in _TABLES:
        database.execute(statement)
    check = seal.seal(_CHECK, _CHECK_PURPOSE)
    database.executemany("INSERT INTO meta VALUES (?, ?)", [("generation", 0), ("wipe", 0), ("check", check)])
    database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _connect(uri: str, busy_timeout_seconds: float) -> sqlite3.Connection:
    database = sqlite3.connect(
        uri, uri=True, timeout=busy_timeout_seconds, isolation_level=None, check_same_thread=False
    )
    try:
        for setting in _SETTINGS:
            database.execute(f"PRAGMA {setting}")
    except BaseException:
        database.close()
        raise
    return database


def _make_private(path: Path) -> None:
    """Take the rights of others away from a file that an older ownlet made with the umask's."""
    for suffix in _COMPANIONS:
        file = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):  # another process may close its log just now
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)


def _check(database: sqlite3.Connection, path: Path) -> None:
    version = _version(database)
    if version > _SCHEMA_VERSION:
        raise DataError(f"history must have schema {_SCHEMA_VERSION} or older, got {version} in {path}")
    if version < 1:
        raise DataError(f"history must be a readable database, got {path}: a database of something else")
    found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise DataError(f"history must be a readable database, got {path}: damaged, {found}")


def _migrate(database: sqlite3.Connection, path: Path, seal: Seal) -> None:
    if _version(database) == _SCHEMA_VERSION:
        return
    if seal.seals:
        raise DataError(f"history must be opened as it was made, without a key, got a key for {path}")
    with transaction(database):
        if _version(database) == 1:  # unless another process was first
            _migrate_from_1(database)
    database.execute("PRAGMA journal_mode = WAL")


def _migrate_from_1(database: sqlite3.Connection) -> None:
    rows = database.execute("SELECT sequence, item, timestamp FROM events ORDER BY sequence").fetchall()
    database.execute("DROP TABLE events")
    _make_tables(database, Seal())
    encoded = [(sequence, encode_event(item, timestamp)) for sequence, item, timestamp in rows]
    database.executemany("INSERT INTO events VALUES (?, ?)", encoded)
    # the next wipe rewrites the file: schema 1 has left its rows behind, in pages that are free now
    database.execute("UPDATE meta SET value = 1 WHERE name IN ('generation', 'wipe')")


def _check_key(database: sqlite3.Connection, path: Path, seal: Seal) -> None:
    meta = dict(database.execute("SELECT name, value FROM meta").fetchall())
    value = meta.get("check")
    counters = all(isinstance(meta.get(name), int) for name in ("generation", "wipe"))
    if not counters or not isinstance(value, bytes):
        raise DataError(f"history must be a readable database, got {path}: damaged, its meta table lacks a value")
    if value == _CHECK:
        if seal.seals:
            raise DataError(f"history must be opened as it was made, without a key, got a key for {path}")
        return
    if not seal.seals:
        raise DataError(f"history must be opened with the key that sealed it, got none for {path}")
    try:
        seal.open(value, _CHECK_PURPOSE)
    except DataError as error:
        raise DataError(f"history must be opened with the key that sealed it, got another for {path}") from error


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the primary code; errors of Python's module have none


def _rule(code: int) -> str:
    if code in _DAMAGED:
        return "a readable database"
    if code in _LOCKED:
        return "free while it is used, not locked by another process"
    return "on a disk with room" if code == sqlite3.SQLITE_FULL else "an open, readable and writable database"
