"""Opening the history's file: new, old, newer, damaged, sealed, locked."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from ownlet.device.history import EventHistory
from ownlet.shared.errors import DataError
from ownlet.shared.seal import Seal

KEYED, OTHER = Seal(b"k" * 32), Seal(b"o" * 32)
V1_SCHEMA = """
CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, timestamp REAL NOT NULL);
CREATE INDEX events_in_order ON events (timestamp, sequence);
PRAGMA user_version = 1;
"""


def make_v1(path: Path, events: list[tuple[str, float]]) -> None:
    """Write what ownlet 0.1 wrote."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(V1_SCHEMA)
        database.executemany("INSERT INTO events (item, timestamp) VALUES (?, ?)", events)


def make(path: Path, seal: Seal | None = None, *, events: int = 1) -> None:
    history = EventHistory(path, seal=seal)
    history.record_many([(f"item-{k}", float(k)) for k in range(events)])
    history.close()


def pragma(path: Path, name: str) -> object:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(f"PRAGMA {name}").fetchone()[0]


def all_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if path.name in file.name)


def test_a_new_file_is_the_users_alone_and_the_only_one_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = EventHistory(path)
    history.record("a", 1.0)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    history.close()
    assert [file.name for file in tmp_path.iterdir()] == ["history.sqlite"]
    assert pragma(path, "journal_mode") == "wal"


def test_a_missing_folder_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="folder that can be written"):
        EventHistory(tmp_path / "missing" / "history.sqlite")
    assert not (tmp_path / "missing").exists()


def test_a_path_with_characters_that_mean_something_in_a_uri_is_a_path(tmp_path: Path) -> None:
    make(tmp_path / "a?mode=ro#b%20.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["a?mode=ro#b%20.sqlite"]


def test_a_history_of_schema_1_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    events = [("b", 2.0), ("a", 1.0), ("é", 2.0), ("x" * 5000, -1.5), ("a\0b", 3.0)]  # schema 1 had no limits on names
    make_v1(path, events)
    path.chmod(0o644)
    history = EventHistory(path)
    assert history.items() == ["x" * 5000, "a", "b", "é", "a\0b"]
    assert history.events_after(0).sequences.tolist() == [1, 2, 3, 4, 5]
    history.record("new", 9.0)
    assert history.position()[1] == 6
    history.close()
    assert pragma(path, "user_version") == 2
    assert pragma(path, "freelist_count") == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_schema_1_deleted_without_wiping_is_wiped_by_the_migration(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    make_v1(path, [("a-secret-item" if k % 2 else "other", float(k)) for k in range(200)])
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("DELETE FROM events WHERE item = 'a-secret-item'")
    assert b"a-secret-item" in all_bytes(path)
    history = EventHistory(path)
    assert len(history) == 100
    assert b"a-secret-item" not in all_bytes(path)
    history.close()


@pytest.mark.parametrize("version", [3, 99])
def test_a_newer_schema_is_refused_by_its_number(tmp_path: Path, version: int) -> None:
    path = tmp_path / "history.sqlite"
    make(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"schema 2 or older, got {version} in .*history.sqlite"):
        EventHistory(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "made_with, opened_with, rule",
    [
        (KEYED, OTHER, "with the key that sealed it, got another"),
        (KEYED, None, "with the key that sealed it, got none"),
        (None, KEYED, "without a key, got a key"),
    ],
)
def test_another_key_is_refused_and_changes_nothing(
    tmp_path: Path, made_with: Seal | None, opened_with: Seal | None, rule: str
) -> None:
    path = tmp_path / "history.sqlite"
    make(path, made_with)
    before = path.read_bytes()
    with pytest.raises(DataError, match=rule) as caught:
        EventHistory(path, seal=opened_with)
    assert str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["history.sqlite"]
    assert path.read_bytes() == before
    history = EventHistory(path, seal=made_with)
    assert history.items() == ["item-0"]
    history.close()


def test_a_key_for_a_history_of_schema_1_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    make_v1(path, [("a", 1.0)])
    before = path.read_bytes()
    with pytest.raises(DataError, match="without a key, got a key"):
        EventHistory(path, seal=KEYED)
    assert path.read_bytes() == before


@pytest.mark.parametrize("seal", [Seal(), KEYED], ids=["open", "sealed"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_and_left_alone(tmp_path: Path, seal: Seal, kept: float) -> None:
    path = tmp_path / "history.sqlite"
    make(path, seal, events=2000)
    content = path.read_bytes()[: int(kept * path.stat().st_size)]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"must be a readable database, got .*history\.sqlite"):
        EventHistory(path, seal=seal)
    assert path.read_bytes() == content


def test_random_bytes_are_refused_and_left_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    for size in (1, 15, 16, 100, 4096, 20_000):
        path, content = tmp_path / f"{size}.sqlite", rng.bytes(size)
        path.write_bytes(content)
        with pytest.raises(DataError, match="must be a readable database"):
            EventHistory(path)
        assert path.read_bytes() == content


def test_a_damaged_page_never_gives_anything_but_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    make(path, KEYED, events=2000)
    whole, rng, noticed = path.read_bytes(), np.random.default_rng(12), 0
    for _ in range(30):
        at = int(rng.integers(0, len(whole) - 64))
        path.write_bytes(whole[:at] + rng.bytes(64) + whole[at + 64 :])
        try:
            history = EventHistory(path, seal=KEYED)
            try:
                history.items()
            finally:
                history.close()
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 damage may hit free space
            noticed += 1
    assert noticed >= 20  # the rest hit free space


def test_a_database_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(DataError, match="a database of something else"):
        EventHistory(path)


def test_a_log_whose_database_is_gone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = EventHistory(path)
    history.record("a", 1.0)
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="without its database"):
        EventHistory(path)
    (tmp_path / "elsewhere").rename(path)
    history.close()


def test_what_a_killed_creation_left_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".history.sqlite.new").write_bytes(b"half")
    (tmp_path / ".history.sqlite.new-journal").write_bytes(b"half")
    make(tmp_path / "history.sqlite")
    assert [file.name for file in tmp_path.iterdir()] == ["history.sqlite"]


def test_a_file_that_another_process_holds_gives_an_error_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history = EventHistory(path, busy_timeout_seconds=0.05)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(DataError, match=r"not locked by another process, got .*history\.sqlite"):
        history.record("a", 1.0)
    assert history.items() == []  # reading goes on
    EventHistory(path, busy_timeout_seconds=0.05).close()  # and so does opening
    holder.execute("ROLLBACK")
    holder.close()
    history.record("a", 1.0)
    assert history.items() == ["a"]
    history.close()
