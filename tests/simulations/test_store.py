"""Stores in memory and on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Item
from ownlet.shared.windows import cut_windows
from ownlet.simulations.store import EventStore, StoreWriter

ITEMS = tuple(Item(number=n, id=f"item-{n}", title=f"Title {n}", genres=("Drama", "War")) for n in range(1, 51))
HISTORIES = [np.array(h, np.int64) for h in ([3, 1, 4, 1, 5, 9, 2, 6], [], [7], [10, 20], list(range(1, 31)))]


def write(folder: Path, histories: list[np.ndarray] = HISTORIES, *, overwrite: bool = False) -> Path:
    """Write histories in two blocks, so that blocks are seen to follow each other."""
    with StoreWriter(folder, name="five", items=ITEMS, overwrite=overwrite) as writer:
        for block in (histories[:2], histories[2:]):
            events = np.concatenate([np.zeros(0, np.int64), *block])
            writer.append(events, np.array([len(h) for h in block], np.int64))
    return folder


@pytest.fixture(params=["in memory", "on disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> EventStore:
    return EventStore.of(HISTORIES) if request.param == "in memory" else EventStore.open(write(tmp_path / "five"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_every_user_has_the_history_that_was_put_in(store: EventStore):
    assert store.num_users == 5
    assert [store.history(user).tolist() for user in range(5)] == [h.tolist() for h in HISTORIES]
    assert store.history(0).dtype == np.int64


@pytest.mark.parametrize("held_out", [0, 1, 2])
@pytest.mark.parametrize("context", [0, 3])
def test_windows_of_a_cohort_are_those_of_its_users_alone(store: EventStore, held_out: int, context: int):
    config = WindowConfig(window_length=6, context_length=context)
    users = np.array([4, 0, 2, 1, 3, 4])
    stack = store.windows(users, config, held_out=held_out)
    assert len(stack) == len(users)
    for found, user in zip(stack, users, strict=True):
        history = HISTORIES[user]
        alone = cut_windows(history[: max(0, len(history) - held_out)], config)
        for name in ("history", "target", "valid"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_an_event_that_is_held_out_is_in_no_window(store: EventStore):
    config = WindowConfig(window_length=6)
    for held_out, last in ((0, 30), (1, 29), (4, 26), (30, 0), (31, 0)):
        stack = store.windows(np.array([4]), config, held_out=held_out)
        targets = stack.windows.target[stack.windows.valid > 0]
        assert targets.max(initial=0) == last


def test_nobody_has_no_windows(store: EventStore):
    assert len(store.windows(np.zeros(0, np.int64), WindowConfig(window_length=6))) == 0


@pytest.mark.parametrize("user", [-1, 5])
def test_an_unknown_user_is_named(store: EventStore, user: int):
    with pytest.raises(KeyError, match=str(user)):
        store.history(user)
    with pytest.raises(KeyError, match=str(user)):
        store.windows(np.array([0, user, 1]), WindowConfig(window_length=6))


def test_a_store_on_disk_knows_its_name_and_catalogue_and_is_mapped(tmp_path: Path):
    store = EventStore.open(write(tmp_path / "five"))
    assert (store.name, store.items) == ("five", ITEMS)
    assert not store.events.flags.owndata
    assert not store.events.flags.writeable
    assert names(tmp_path) == ["five"]
    assert names(tmp_path / "five") == ["events.npy", "offsets.npy", "store.json"]
    np.testing.assert_array_equal(np.load(tmp_path / "five" / "events.npy"), np.concatenate(HISTORIES))  # plain NumPy


@pytest.mark.parametrize("histories", [[], [np.zeros(0, np.int64)] * 3], ids=["nobody", "three without events"])
def test_a_population_may_be_empty(tmp_path: Path, histories: list[np.ndarray]):
    for store in (EventStore.of(histories), EventStore.open(write(tmp_path / "empty", histories))):
        assert store.num_users == len(histories)
        assert len(store.events) == 0
        stack = store.windows(np.arange(store.num_users), WindowConfig(window_length=6))
        assert stack.counts.tolist() == [0] * len(histories)


def test_a_writer_that_was_given_nothing_leaves_a_store_without_users(tmp_path: Path):
    with StoreWriter(tmp_path / "empty", name="", items=()):
        pass
    assert EventStore.open(tmp_path / "empty").num_users == 0


@pytest.mark.parametrize("name", ["events.npy", "offsets.npy", "store.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "one byte short", "another file"])
def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path, name: str, damage: str):
    path = write(tmp_path / "five") / name
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "half": content[: len(content) // 2],
        "one byte short": content[:-1],
        "another file": b"PK\x03\x04 nothing of ours",
    }
    path.unlink()
    if damage in damaged:
        path.write_bytes(damaged[damage])
    with pytest.raises(DataError, match="store must"):
        EventStore.open(tmp_path / "five")


@pytest.mark.parametrize(
    "key, value",
    [
        ("format", "ownlet-events-0"),
        ("num_users", 6),
        ("num_events", 3),
        ("items", 7),
        ("items", [{"number": 1}]),
        ("items", None),
    ],
)
def test_a_description_that_says_otherwise_is_refused(tmp_path: Path, key: str, value: object):
    path = write(tmp_path / "five") / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(DataError, match="store must"):
        EventStore.open(tmp_path / "five")


@pytest.mark.parametrize("text", ["[]", "null", "{}", '"text"'])
def test_a_description_of_another_kind_is_refused(tmp_path: Path, text: str):
    (write(tmp_path / "five") / "store.json").write_text(text)
    with pytest.raises(DataError, match="store must be a folder that ownlet wrote"):
        EventStore.open(tmp_path / "five")


@pytest.mark.parametrize(
    "offsets",
    [
        np.array([0, 8, 8, 9, 11, 40]),
        np.array([1, 8, 8, 9, 11, 41]),
        np.array([0, 9, 8, 9, 11, 41]),
        np.array([0.0, 8, 8, 9, 11, 41]),
        np.array([[0], [8], [8], [9], [11], [41]]),
        np.array(0),
    ],
    ids=["end", "begin", "order", "numbers", "shape", "scalar"],
)
def test_offsets_that_do_not_fit_are_refused(tmp_path: Path, offsets: np.ndarray):
    np.save(write(tmp_path / "five") / "offsets.npy", offsets)
    with pytest.raises(DataError, match="store must"):
        EventStore.open(tmp_path / "five")


def test_a_foreign_folder_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="store must be a folder that ownlet wrote"):
        EventStore.open(tmp_path)
    with pytest.raises(DataError, match="store must be a folder that ownlet wrote"):
        EventStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("number", [0, -1, 51])
def test_an_item_that_the_catalogue_lacks_is_refused_and_nothing_stays(tmp_path: Path, number: int):
    with (
        pytest.raises(DataError, match="events must be item numbers from 1 to 50"),
        StoreWriter(tmp_path / "five", name="", items=ITEMS) as writer,
    ):
        writer.append(np.array([1, number]), np.array([2]))
    assert names(tmp_path) == []


@pytest.mark.parametrize("lengths", [[1], [2, 1], [3, -1], []])
def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path, lengths: list[int]):
    with (
        pytest.raises(DataError, match="lengths must"),
        StoreWriter(tmp_path / "five", name="", items=ITEMS) as writer,
    ):
        writer.append(np.array([1, 2]), np.array(lengths, np.int64))


def test_a_catalogue_that_is_not_numbered_from_1_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"items must be numbered from 1 in order, got numbers=\[2, 3, 4\]"):
        StoreWriter(tmp_path / "five", name="", items=ITEMS[1:])


def test_writing_is_only_possible_inside_the_block(tmp_path: Path):
    writer = StoreWriter(tmp_path / "five", name="", items=ITEMS)
    for _ in range(2):
        with pytest.raises(ConfigError, match="inside its with block"):
            writer.append(np.array([1]), np.array([1]))
        if not (tmp_path / "five").exists():
            with writer:
                pass


def test_an_existing_folder_is_refused_unless_it_is_a_store_to_overwrite(tmp_path: Path):
    folder = write(tmp_path / "five")
    with pytest.raises(DataError, match="store folder must not exist yet"):
        write(folder)
    write(folder, HISTORIES[:1], overwrite=True)
    assert EventStore.open(folder).num_users == 1
    assert names(tmp_path) == ["five"]
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="only a store may be overwritten"):
        write(tmp_path / "else", overwrite=True)
    assert names(tmp_path / "else") == ["letter.txt"]


def test_the_old_store_stays_until_the_new_one_is_whole(tmp_path: Path):
    folder = write(tmp_path / "five")

    def fail() -> None:
        with StoreWriter(folder, name="new", items=ITEMS, overwrite=True) as writer:
            writer.append(np.array([1]), np.array([1]))
            assert EventStore.open(folder).num_users == 5
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert EventStore.open(folder).name == "five"
    assert names(tmp_path) == ["five"]


def test_two_writers_of_one_store_do_not_mix(tmp_path: Path):
    with StoreWriter(tmp_path / "five", name="first", items=ITEMS) as first:
        first.append(np.array([1, 2]), np.array([2]))
        with (
            pytest.raises(DataError, match="store must be written by one writer at a time"),
            StoreWriter(tmp_path / "five", name="second", items=ITEMS),
        ):
            pass
        first.append(np.array([3]), np.array([1]))
    store = EventStore.open(tmp_path / "five")
    assert (store.name, store.history(0).tolist(), store.history(1).tolist()) == ("first", [1, 2], [3])


def test_a_store_that_appears_meanwhile_is_not_replaced(tmp_path: Path):
    late = StoreWriter(tmp_path / "five", name="late", items=ITEMS)
    write(tmp_path / "five")
    with pytest.raises(DataError, match="must not exist yet"), late:
        pass
    assert EventStore.open(tmp_path / "five").name == "five"


def test_files_in_scratch_do_not_become_part_of_the_store(tmp_path: Path):
    with StoreWriter(tmp_path / "five", name="", items=ITEMS) as writer:
        (writer.scratch / "notes").write_text("42")
        assert names(writer.scratch) == ["notes"]
    assert names(tmp_path / "five") == ["events.npy", "offsets.npy", "store.json"]


def test_a_killed_writer_leaves_a_part_that_the_next_one_replaces(tmp_path: Path):
    code = """
import os, signal, sys
from pathlib import Path
import numpy as np
from ownlet.shared.interactions import Item
from ownlet.simulations.store import StoreWriter
with StoreWriter(Path(sys.argv[1]), name="killed", items=[Item(number=1, id="a")]) as writer:
    (writer.scratch / "file").write_text("left")
    writer.append(np.ones(100_000), np.array([100_000]))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "five")], check=False, cwd="/")
    assert killed.returncode == -9
    assert names(tmp_path) == ["five.part"]
    store = EventStore.open(write(tmp_path / "five"))
    assert [store.history(user).tolist() for user in range(5)] == [h.tolist() for h in HISTORIES]
    assert names(tmp_path) == ["five"]
    assert names(tmp_path / "five") == ["events.npy", "offsets.npy", "store.json"]
