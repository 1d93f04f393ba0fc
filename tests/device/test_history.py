"""Recording, forgetting, retention and values, with real kills, real full disks and real bytes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ownlet.device.history import EventHistory, Retention
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.seal import Seal

SECRET = "a-secret-item"
SEALS = [Seal(), Seal(b"k" * 32)]
DAY = 86_400.0
BAD_TEXT = "x'ff'"  # not UTF-8

each_seal = pytest.mark.parametrize("seal", SEALS, ids=["open", "sealed"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


@pytest.fixture
def history(path: Path) -> Iterator[EventHistory]:
    history = EventHistory(path)
    yield history
    history.close()


def all_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if file.is_file())


@each_seal
def test_events_come_in_order_of_time_then_insertion_before_and_after_reopening(path: Path, seal: Seal) -> None:
    history = EventHistory(path, seal=seal)
    for item, timestamp in [("c", 3.0), ("a", 1.0), ("b", 3.0), ("é", 2.5)]:
        history.record(item, timestamp)
    assert history.items() == ["a", "é", "c", "b"]
    history.close()
    again = EventHistory(path, seal=seal)
    assert (again.items(), len(again)) == (["a", "é", "c", "b"], 4)
    again.close()


@each_seal
def test_a_recorded_event_is_on_disk_before_the_history_is_closed(path: Path, seal: Seal) -> None:
    history, other = EventHistory(path, seal=seal), EventHistory(path, seal=seal)
    history.record("a", 1)
    assert other.items() == ["a"]
    other.close()
    history.close()


@pytest.mark.parametrize(
    "item, timestamp, rule",
    [
        ("a", float("nan"), "timestamp must be finite"),
        ("a", float("inf"), "timestamp must be finite"),
        ("a", "1", "timestamp must be a number"),
        ("", 1.0, "item must be"),
        ("a\0", 1.0, "item must be"),
        ("x" * 1025, 1.0, "item must have"),
    ],
)
def test_a_broken_event_is_refused_with_all_that_come_with_it(
    history: EventHistory, item: str, timestamp: float, rule: str
) -> None:
    with pytest.raises(DataError, match=rule):
        history.record(item, timestamp)
    with pytest.raises(DataError, match=rule):
        history.record_many([("good", 1.0), (item, timestamp), ("good", 2.0)])
    assert len(history) == 0


def test_recording_no_events_changes_nothing(history: EventHistory) -> None:
    history.record_many([])
    assert (len(history), history.position()) == (0, (0, 0))


def test_a_closed_history_gives_a_data_error_and_closes_twice(history: EventHistory) -> None:
    history.close()
    history.close()
    for use in (history.items, history.position, history.prune, lambda: history.record("a", 1.0)):
        with pytest.raises(DataError, match="must be an open"):
            use()


def test_nothing_of_an_event_or_a_value_is_in_clear_in_any_file(path: Path) -> None:
    def clear() -> bool:
        content = all_bytes(path)
        return any(part in content for part in (SECRET.encode(), struct.pack("<d", 1234.5), struct.pack(">d", 1234.5)))

    for seal in SEALS:
        history = EventHistory(path, seal=seal)
        history.record(SECRET, 1234.5)
        history.put("name", SECRET)
        assert path.with_name(path.name + "-wal").stat().st_size > 0
        assert clear() != seal.seals
        history.close()
        assert clear() != seal.seals
        path.unlink()


def test_sealed_rows_and_values_cannot_change_places(path: Path) -> None:
    history = EventHistory(path, seal=SEALS[1])
    history.put_many({"a": "1", "b": "2"})
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE entries SET value = (SELECT value FROM entries WHERE key = 'a') WHERE key = 'b'")
        database.execute("INSERT INTO events (event) SELECT value FROM entries WHERE key = 'a'")
    assert history.get("a") == "1"
    with pytest.raises(DataError, match="must open"):
        history.get("b")
    with pytest.raises(DataError, match=r"readable database, got .*history\.sqlite"):
        history.items()
    assert history.forget(everything=True) == 1  # what cannot be read can be deleted
    history.close()


@each_seal
@pytest.mark.parametrize("value", ["x'00'", "x''", "'text'", "7", "x'ffffffffffffffffffffffff'"])
def test_a_damaged_row_or_value_gives_an_error_that_names_the_file(path: Path, seal: Seal, value: str) -> None:
    history = EventHistory(path, seal=seal)
    history.put("a", "1")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"INSERT INTO events (event) VALUES ({value})")
        database.execute(f"UPDATE entries SET value = {value if seal.seals else BAD_TEXT}")
    for read in (history.items, lambda: history.get("a")):
        with pytest.raises(DataError, match=r"readable database, got .*history\.sqlite"):
            read()
    history.close()


@pytest.mark.parametrize("change", ["DELETE FROM meta WHERE name = 'generation'", "UPDATE meta SET value = 'x'"])
def test_a_damaged_meta_table_is_refused(path: Path, change: str) -> None:
    EventHistory(path).close()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(change)
    with pytest.raises(DataError, match="meta table lacks a value"):
        EventHistory(path)


@each_seal
def test_forgetting_an_item_removes_its_bytes_from_every_file(path: Path, seal: Seal) -> None:
    history = EventHistory(path, seal=seal)
    history.record_many([(SECRET if k % 3 == 0 else f"item-{k}", float(k)) for k in range(900)])
    rows = [row[0] for row in sqlite_rows(path, "SELECT event FROM events WHERE sequence % 3 = 1")]
    assert all(row in all_bytes(path) for row in rows)
    assert history.forget(item=SECRET) == 300
    content = all_bytes(path)
    assert SECRET.encode() not in content
    assert not any(row in content for row in rows)
    assert history.items() == [f"item-{k}" for k in range(900) if k % 3]
    history.close()


def sqlite_rows(path: Path, query: str) -> list[tuple[bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


@each_seal
def test_forgetting_by_time_and_forgetting_everything(path: Path, seal: Seal) -> None:
    history = EventHistory(path, seal=seal)
    history.record_many([(f"item-{k}", float(k)) for k in range(10)])
    history.put("drift", "1")
    assert history.forget(before=4.0) == 4  # the event at 4.0 stays
    assert history.items() == [f"item-{k}" for k in range(4, 10)]
    assert history.forget(before=4.0) == 0
    assert history.forget(everything=True) == 6
    assert (history.items(), history.get("drift")) == ([], "1")
    history.record("new", 1.0)
    assert history.position()[1] == 11  # a sequence number is never used twice
    history.close()


@pytest.mark.parametrize("criteria", [{}, {"item": "a", "before": 1.0}, {"before": 0.0, "everything": True}])
def test_forgetting_takes_exactly_one_criterion(history: EventHistory, criteria: dict[str, object]) -> None:
    history.record("a", 0.0)
    with pytest.raises(ConfigError, match="exactly one of"):
        history.forget(**criteria)  # type: ignore[arg-type]
    assert len(history) == 1


@pytest.mark.parametrize("criteria", [{"item": ""}, {"before": float("nan")}, {"before": "2020"}])
def test_a_criterion_must_be_one_that_an_event_could_meet(history: EventHistory, criteria: dict[str, object]) -> None:
    with pytest.raises(DataError, match="must be"):
        history.forget(**criteria)  # type: ignore[arg-type]


def test_bytes_that_another_reader_keeps_in_the_log_are_removed_later(path: Path) -> None:
    history = EventHistory(path, busy_timeout_seconds=0.05)
    history.record_many([(SECRET, 1.0), ("other", 2.0)])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    with pytest.raises(DataError, match="the events are deleted, their bytes stay until the next forget or open"):
        history.forget(item=SECRET)
    assert history.items() == ["other"]
    assert SECRET.encode() in all_bytes(path)
    EventHistory(path, busy_timeout_seconds=0.05).close()  # opening works all the same
    reader.execute("COMMIT")
    reader.close()
    assert history.forget(item=SECRET) == 0
    assert SECRET.encode() not in all_bytes(path)
    history.close()


def test_the_generation_changes_with_every_deletion_and_with_nothing_else(path: Path) -> None:
    history, other = EventHistory(path), EventHistory(path, retention=Retention(max_events=3))
    generations = [history.generation]
    history.record_many([("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)])
    history.put("x", "y")
    assert history.forget(item="missing") == 0
    assert [history.generation] == generations
    for delete in (lambda: history.forget(item="d"), lambda: other.forget(before=2.0)):
        assert delete() == 1
        generations.append(history.generation)
    other.record_many([("e", 5.0), ("f", 6.0)])  # prunes one
    assert history.items() == ["c", "e", "f"]
    generations.append(history.generation)
    assert generations == sorted(set(generations))
    other.close()
    history.close()


@each_seal
def test_retention_by_number_keeps_what_was_recorded_last_whatever_the_clock_says(path: Path, seal: Seal) -> None:
    history = EventHistory(path, seal=seal, retention=Retention(max_events=20))
    for k in range(100):
        history.record(f"item-{k}", 1000.0 - k)  # a clock that runs backwards
        assert history.items()[0] == f"item-{k}"  # never lost at once
        assert len(history) <= 22  # a tenth more, at most
    assert history.items()[::-1][-20:] == [f"item-{k}" for k in range(80, 100)]
    history.close()
    again = EventHistory(path, seal=seal, retention=Retention(max_events=5))
    assert again.items() == [f"item-{k}" for k in range(99, 94, -1)]
    assert b"item-80" not in all_bytes(path)
    again.close()


@each_seal
def test_retention_by_age_prunes_on_opening_and_survives_wrong_clocks(path: Path, seal: Seal) -> None:
    def opened(now: float) -> int:
        history = EventHistory(path, seal=seal, retention=Retention(max_age_seconds=30 * DAY), clock=lambda: now)
        size = len(history)
        history.close()
        return size

    history = EventHistory(path, seal=seal)
    history.record_many([(f"item-{k}", k * DAY) for k in range(100)])
    history.close()
    assert opened(20 * DAY) == 100  # the clock went back
    assert opened(80 * DAY) == 50
    assert opened(1e15) == 40  # measured against the 10th newest, of day 90
    assert opened(1e15) == 40


def test_an_event_that_is_too_old_when_it_is_recorded_stays_until_the_next_pruning(path: Path) -> None:
    history = EventHistory(path, retention=Retention(max_age_seconds=DAY), clock=lambda: 100 * DAY)
    history.record_many([("new", 100 * DAY)] * 10)
    history.record("old", 1.0)
    assert "old" in history.items()
    assert history.prune() == 1
    assert history.items() == ["new"] * 10
    history.close()


def test_values_are_kept_replaced_and_removed(path: Path) -> None:
    for seal in SEALS:
        history = EventHistory(path, seal=seal)
        assert history.get("drift/base") is None
        history.put("drift/base", "1")
        history.put_many({"drift/base": "é", "empty": ""})
        history.close()
        history = EventHistory(path, seal=seal)
        assert (history.get("drift/base"), history.get("empty"), history.get("other")) == ("é", "", None)
        history.put("empty", None)
        assert history.get("empty") is None
        history.close()
        path.unlink()


def test_a_broken_value_is_refused_with_all_that_come_with_it(history: EventHistory) -> None:
    for value in (1, b"x", "\ud800"):
        with pytest.raises(DataError, match="value of 'b' must be text"):
            history.put_many({"a": "1", "b": value})  # type: ignore[dict-item]
    for key in ("", "a b", "é", "x" * 65, "-a", "a\n"):
        with pytest.raises(ConfigError, match="key must be"):
            history.put_many({"a": "1", key: "2"})
        with pytest.raises(ConfigError, match="key must be"):
            history.get(key)
    assert history.get("a") is None


def test_threads_that_record_read_and_forget_at_once_lose_nothing(path: Path) -> None:
    history, failures = EventHistory(path), []

    def work(name: int) -> None:
        try:
            for k in range(40):
                history.record(f"{name}-{k}", float(k))
                history.put(f"last-{name}", str(k))
                assert f"{name}-{k}" in history.items()
                if k % 20 == 0:
                    history.record(f"gone-{name}", 1.0)
                    assert history.forget(item=f"gone-{name}") == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(history.items()) == sorted(f"{name}-{k}" for name in range(4) for k in range(40))
    assert [history.get(f"last-{name}") for name in range(4)] == ["39"] * 4
    history.close()


def test_a_file_that_may_not_grow_refuses_events_until_it_may(path: Path) -> None:
    history = EventHistory(path)
    history.record_many([("x" * 1000, float(k)) for k in range(20)])
    pages = sqlite_rows(path, "PRAGMA page_count")[0][0]
    history._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DataError, match=r"on a disk with room, got .*history\.sqlite"):
        history.record_many([("x" * 1000, 1.0)] * 50)
    assert len(history) == 20
    history._database.execute("PRAGMA max_page_count = 100000")
    history.record("new", 99.0)
    assert (len(history), history.items()[-1]) == (21, "new")
    history.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=512k", "none", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@each_seal
def test_a_full_disk_refuses_events_and_keeps_what_is_there(small_disk: Path, seal: Seal) -> None:
    path, ballast = small_disk / "history.sqlite", small_disk / "ballast"
    history = EventHistory(path, seal=seal)
    recorded: list[str] = []

    def record_forever() -> None:
        while True:
            history.record(f"item-{len(recorded)}", float(len(recorded)))
            recorded.append(f"item-{len(recorded)}")

    history.record(SECRET, -1.0)
    fill(ballast, leave=16_384)
    with pytest.raises(DataError, match="on a disk with room"):
        record_forever()
    assert recorded
    assert history.items() == [SECRET, *recorded]
    with pytest.raises(DataError, match="on a disk with room"):
        history.put("key", "x" * 100_000)
    with pytest.raises(DataError, match="on a disk with room"):
        history.record_many([("y" * 1000, 1e6)] * 100)
    assert history.items() == [SECRET, *recorded]
    ballast.unlink()
    history.record("after", 1e6)
    assert history.forget(item=SECRET) == 1
    history.close()
    again = EventHistory(path, seal=seal)
    assert again.items() == [*recorded, "after"]
    again.close()


def test_forgetting_on_a_full_disk_is_all_or_nothing_and_is_finished_later(small_disk: Path) -> None:
    path, ballast = small_disk / "history.sqlite", small_disk / "ballast"
    for room in range(0, 200_000, 20_000):
        path.unlink(missing_ok=True)
        ballast.unlink(missing_ok=True)
        history = EventHistory(path)
        history.record_many([(SECRET if k % 2 else "other", float(k)) for k in range(2000)])
        fill(ballast, leave=room)
        with contextlib.suppress(DataError):
            history.forget(item=SECRET)
        assert history.items().count(SECRET) in (0, 1000)
        assert history.items().count("other") == 1000
        ballast.unlink()
        history.forget(item=SECRET)
        assert SECRET.encode() not in all_bytes(path)
        assert len(history) == 1000
        history.close()


def test_a_history_on_a_full_disk_opens_or_says_why(small_disk: Path) -> None:
    path, ballast = small_disk / "history.sqlite", small_disk / "ballast"
    fill(ballast, leave=4096)
    with pytest.raises(DataError, match="history must be"):
        EventHistory(path)
    assert not path.exists()
    ballast.unlink()
    history = EventHistory(path)
    history.record_many([(f"item-{k}", float(k)) for k in range(100)])
    history.close()
    for room in (0, 4096, 40_000):
        fill(ballast, leave=room)
        try:
            history = EventHistory(path, retention=Retention(max_events=50))
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 either outcome is right
        else:
            assert history.items()[-50:] == [f"item-{k}" for k in range(50, 100)]
            history.close()
        ballast.unlink()
    history = EventHistory(path, retention=Retention(max_events=50))
    assert len(history) == 50
    history.close()


def fill(ballast: Path, *, leave: int) -> None:
    """Write until no block is free, but for so many bytes."""
    disk = os.statvfs(ballast.parent)
    room = disk.f_bavail * disk.f_frsize
    ballast.write_bytes(bytes(max(room - leave, 0)))


@pytest.fixture(scope="module", params=[40, pytest.param(200, marks=pytest.mark.slow)], ids=["40 kills", "200 kills"])
def kills(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    script, folder = Path(__file__).with_name("history_kills.py"), tmp_path_factory.mktemp("kills")
    command = [sys.executable, str(script), str(folder), str(request.param), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, dict[str, int]] = json.loads(done.stdout)
    return report


def test_no_event_and_no_value_is_lost_once_record_returned(kills: dict[str, dict[str, int]]) -> None:
    counts = kills["record"]
    assert counts["killed"] == counts["trials"]
    assert counts["said"] > 0
    assert (counts["losses"], counts["torn"]) == (0, 0)


def test_a_killed_forget_leaves_all_or_nothing(kills: dict[str, dict[str, int]]) -> None:
    counts = kills["forget"]
    assert counts["killed"] > 0
    assert counts["losses"] == 0


def test_a_forget_killed_before_it_removed_the_bytes_is_finished_by_the_next_open(
    kills: dict[str, dict[str, int]],
) -> None:
    assert kills["wipe"] == {"killed": 1, "bytes_before": 1, "bytes_after": 0, "losses": 0}


@pytest.mark.parametrize("what", ["migration", "creation"])
def test_a_killed_opening_leaves_a_file_that_opens(kills: dict[str, dict[str, int]], what: str) -> None:
    assert kills[what]["killed"] > 0
    assert kills[what]["losses"] == 0


def test_processes_that_make_open_and_close_the_same_history_at_once_lose_nothing(
    kills: dict[str, dict[str, int]],
) -> None:
    assert kills["race"] == {"processes": 6, "failed": 0, "losses": 0}
