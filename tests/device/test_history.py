from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ownlet.device.history import EventHistory
from ownlet.shared.errors import DataError


def test_events_come_in_order_of_time_then_insertion(tmp_path: Path) -> None:
    history = EventHistory(tmp_path / "history.sqlite")
    for item, timestamp in [("c", 3.0), ("a", 1.0), ("b", 3.0), ("é", 2.5)]:
        history.record(item, timestamp)
    assert history.items() == ["a", "é", "c", "b"]
    history.close()


def test_events_survive_reopening(tmp_path: Path) -> None:
    history = EventHistory(tmp_path / "history.sqlite")
    history.record("a", 1)
    history.close()
    again = EventHistory(tmp_path / "history.sqlite")
    assert (again.items(), len(again)) == (["a"], 1)
    again.close()


def test_a_recorded_event_is_on_disk_before_the_history_is_closed(tmp_path: Path) -> None:
    history = EventHistory(tmp_path / "history.sqlite")
    history.record("a", 1)
    other = EventHistory(tmp_path / "history.sqlite")
    assert other.items() == ["a"]
    other.close()
    history.close()


@pytest.mark.parametrize(
    "item, timestamp, rule",
    [("a", float("nan"), "timestamp must be finite"), ("a", float("inf"), "timestamp"), ("", 1.0, "item must be")],
)
def test_a_broken_event_is_refused_and_changes_nothing(tmp_path: Path, item: str, timestamp: float, rule: str) -> None:
    history = EventHistory(tmp_path / "history.sqlite")
    with pytest.raises(DataError, match=rule):
        history.record(item, timestamp)
    assert len(history) == 0
    history.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    path.write_bytes(b"not a database, but long enough to be read as a header" * 10)
    with pytest.raises(DataError, match="must be a readable database"):
        EventHistory(path)


def test_a_history_of_a_newer_ownlet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(DataError, match="schema 1 or older, got 2"):
        EventHistory(path)
