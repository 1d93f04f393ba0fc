"""Files and versions that are whole or absent, whatever happens to the process, the disk and the clock."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ownlet.shared.errors import ConfigError, StoreError
from ownlet.shared.store import Version, VersionStore, write_atomic

FILES = {"adapter.bin": bytes(range(256)) * 12, "note.txt": b"a note"}


def published(store: VersionStore, count: int) -> VersionStore:
    """Publish some versions, each made from the one before."""
    for _ in range(count):
        current = store.current()
        store.publish(FILES, {"why": "test"}, parent=current.number if current else None)
    return store


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    """Versions 1, 2 and 3; 3 is current, and each is the parent of the next."""
    return published(VersionStore(tmp_path / "store"), 3)


@pytest.fixture
def folder(store: VersionStore, tmp_path: Path) -> Path:
    return tmp_path / "store"


def numbers(store: VersionStore) -> list[int]:
    return [version.number for version in store.versions()]


def current_number(store: VersionStore) -> int | None:
    current = store.current()
    return current.number if current else None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, at: int = -1) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    overwrite(path, content)


def overwrite(path: Path, content: bytes | bytearray) -> None:
    """Write over a file of the same length, which a disk does faster than to begin a new one."""
    with path.open("r+b") as file:
        file.write(content)


# One file


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path: Path):
    write_atomic(tmp_path / "new" / "file", b"one")
    write_atomic(tmp_path / "new" / "file", b"two")
    assert (tmp_path / "new" / "file").read_bytes() == b"two"
    assert names(tmp_path / "new") == ["file"]


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_atomic(tmp_path / "file", b"old")
    for call in ("open", "fsync", "replace"):
        with fault_at(monkeypatch, 0, only=call), pytest.raises(OSError):
            write_atomic(tmp_path / "file", b"new")
        assert (tmp_path / "file").read_bytes() == b"old"
        assert names(tmp_path) == ["file"]


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


# Versions


def test_a_store_that_nobody_wrote_to_is_empty_and_leaves_no_trace(tmp_path: Path):
    store = VersionStore(tmp_path / "none")
    assert (store.versions(), store.damaged(), store.current()) == ([], [], None)
    assert names(tmp_path) == []


def test_a_version_is_read_back_as_it_was_published(tmp_path: Path):
    store = VersionStore(tmp_path / "deep" / "store", clock=lambda: 1234.5)
    first = store.publish(FILES, {"round": 3, "scores": [0.5, None], "of": {"a": True}}, parent=None)
    second = store.publish({}, {}, parent=1)
    assert (first.number, first.parent, first.created, first.made_current) == (1, None, 1234.5, True)
    assert first.metadata == {"round": 3, "scores": [0.5, None], "of": {"a": True}}
    assert {name: entry.size for name, entry in first.files.items()} == {"adapter.bin": 3072, "note.txt": 6}
    again = VersionStore(tmp_path / "deep" / "store")
    assert again.versions() == [first, second]
    assert again.current() == second
    assert {name: again.read(1, name) for name in FILES} == FILES


def test_a_candidate_is_there_and_not_in_use_until_it_is_promoted(store: VersionStore):
    candidate = store.publish(FILES, {}, parent=3, make_current=False)
    assert (candidate.number, current_number(store)) == (4, 3)
    store.set_current(4)
    assert current_number(store) == 4


def test_a_store_of_candidates_only_has_no_current_version_and_no_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = VersionStore(tmp_path / "store")
    store.publish(FILES, {}, parent=None, make_current=False)
    assert store.current() is None
    assert not caplog.records


@pytest.mark.parametrize("none", [None, 0])
def test_a_rollback_goes_to_any_version_or_to_none(store: VersionStore, none: int | None):
    store.set_current(1)
    assert current_number(store) == 1
    store.set_current(none)
    assert store.current() is None
    assert published(store, 1).versions()[-1].parent is None
    assert numbers(store) == [1, 2, 3, 4]


def test_only_a_version_that_is_there_and_intact_can_be_put_into_use(store: VersionStore, folder: Path):
    with pytest.raises(StoreError, match=r"version must be there and intact, got number=9"):
        store.set_current(9)
    flip(folder / "000002" / "adapter.bin")
    with pytest.raises(StoreError, match=r"intact, got version 2: file adapter\.bin must have the sha256"):
        store.set_current(2)
    assert current_number(store) == 3


def test_a_clock_that_goes_back_changes_no_order(tmp_path: Path):
    times = iter([300.0, 100.0, 200.0, -5.0])
    store = published(VersionStore(tmp_path / "store", clock=lambda: next(times)), 4)
    assert [(version.number, version.created) for version in store.versions()] == [
        (1, 300.0),
        (2, 100.0),
        (3, 200.0),
        (4, -5.0),
    ]
    assert current_number(store) == 4
    assert store.prune(2) == [1, 2]
    (tmp_path / "store" / "current").unlink()
    assert current_number(store) == 4


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "version.json", "a\0", "ü", "a" * 201, 3])
def test_a_file_name_that_is_not_plain_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="file name must be"):
        VersionStore(tmp_path / "store").publish({name: b""}, {}, parent=None)
    assert names(tmp_path) == []


@pytest.mark.parametrize("metadata", [{"a": float("nan")}, {"a": b"bytes"}, {"a": {1, 2}}])
def test_metadata_that_is_not_json_is_refused(tmp_path: Path, metadata: dict[str, object]):
    with pytest.raises(ConfigError, match="metadata must be JSON"):
        VersionStore(tmp_path / "store").publish(FILES, metadata, parent=None)


@pytest.mark.parametrize("parent", [0, -1, 4, 99])
def test_a_parent_that_never_was_is_refused(store: VersionStore, parent: int):
    with pytest.raises(ConfigError, match="parent must be None or a number from 1 to 3"):
        store.publish(FILES, {}, parent=parent)


# Damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered byte": (lambda version: flip(version / "adapter.bin", 1000), "adapter.bin must have the sha256"),
    "torn file": (lambda version: os.truncate(version / "adapter.bin", 100), "must have 3072 bytes, got 100"),
    "empty file": (lambda version: os.truncate(version / "note.txt", 0), "note.txt must have 6 bytes, got 0"),
    "missing file": (lambda version: (version / "note.txt").unlink(), "note.txt must be readable, got: No such"),
    "folder for a file": (
        lambda version: ((version / "note.txt").unlink(), (version / "note.txt").mkdir()),
        "note.txt must be readable, got: Is a directory",
    ),
    "altered document": (lambda version: flip(version / "version.json", 20), "version.json must"),
    "torn document": (lambda version: os.truncate(version / "version.json", 50), "version.json must be JSON"),
    "missing document": (lambda version: (version / "version.json").unlink(), "version.json must be readable"),
    "empty folder": (lambda version: (shutil.rmtree(version), version.mkdir()), "version.json must be readable"),
    "file for a folder": (lambda version: (shutil.rmtree(version), version.touch()), "Not a directory"),
    "another version's document": (
        lambda version: shutil.copy(version.parent / "000001" / "version.json", version),
        "version.json must be of version 3, got one of version 1",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_version_is_skipped_and_reported(
    store: VersionStore, folder: Path, kind: str, caplog: pytest.LogCaptureFixture
):
    damage, reason = DAMAGES[kind]
    damage(folder / "000003")
    assert numbers(store) == [1, 2]
    (found,) = store.damaged()
    assert found.number == 3
    assert reason in found.reason
    assert current_number(store) == 2
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(f"version 3 of {folder} is damaged and skipped" in message for message in messages)
    assert any("in use instead: version 2" in message for message in messages)
    with pytest.raises(StoreError):
        [store.read(3, name) for name in FILES]
    assert published(store, 1).versions()[-1].number == 4
    assert current_number(store) == 4


def test_flipped_bits_all_over_a_document_and_the_pointer_are_noticed(store: VersionStore, folder: Path):
    for path in (folder / "000003" / "version.json", folder / "current"):
        whole = path.read_bytes()
        for bit in range(0, 8 * len(whole), 7):
            altered = bytearray(whole)
            altered[bit // 8] ^= 1 << bit % 8
            overwrite(path, altered)
            assert current_number(store) == (2 if path.name == "version.json" else 3)
            assert len(store.damaged()) == (path.name == "version.json")
        overwrite(path, whole)
    assert store.damaged() == []


def test_a_version_of_a_newer_ownlet_is_refused_by_name(store: VersionStore, folder: Path):
    newer = VersionStore(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ownlet.shared.versions._VERSION_FORMAT", "ownlet-version-2")
        newer.publish(FILES, {}, parent=3)
    assert store.damaged()[0].reason == "version.json must have format ownlet-version-1, got 'ownlet-version-2'"
    assert current_number(store) == 3


def test_a_warning_is_given_once(store: VersionStore, folder: Path, caplog: pytest.LogCaptureFixture):
    flip(folder / "000002" / "note.txt")
    for _ in range(5):
        store.versions()
        store.damaged()
    assert len(caplog.records) == 1


def test_what_stands_in_is_the_ancestor_and_not_the_newest(store: VersionStore, folder: Path):
    store.set_current(1)
    store.publish(FILES, {}, parent=1)  # 4, beside 2 and 3
    flip(folder / "000004" / "note.txt")
    assert current_number(store) == 1


def test_a_chain_of_damage_is_followed_to_the_first_intact_ancestor(store: VersionStore, folder: Path):
    for damaged in ("000003", "000002"):
        flip(folder / damaged / "note.txt")
    assert current_number(store) == 1
    flip(folder / "000001" / "note.txt")
    assert store.current() is None


def test_without_a_readable_parent_no_candidate_comes_into_use(store: VersionStore, folder: Path):
    store.publish(FILES, {}, parent=3, make_current=False)  # 4, a candidate
    store.publish(FILES, {}, parent=3)  # 5
    flip(folder / "000005" / "version.json")
    assert current_number(store) == 3


@pytest.mark.parametrize("content", [None, b"", b"5", b"{}", b"[]", b"\xff\xfe", b'{"format":1}'])
def test_a_lost_or_damaged_pointer_falls_back_to_the_newest_that_was_in_use(
    store: VersionStore, folder: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
):
    store.publish(FILES, {}, parent=3, make_current=False)
    if content is None:
        (folder / "current").unlink()
    else:
        (folder / "current").write_bytes(content)
    assert current_number(store) == 3
    assert "current must" in caplog.text or "file current must be there" in caplog.text
    caplog.clear()
    store.set_current(3)
    assert VersionStore(folder).current() == store.versions()[2]
    assert not caplog.records


def test_a_promoted_candidate_counts_as_once_in_use_when_another_was_made_from_it(store: VersionStore, folder: Path):
    store.publish(FILES, {}, parent=3, make_current=False)  # 4
    store.publish(FILES, {}, parent=4, make_current=False)  # 5, made from 4
    (folder / "current").unlink()
    assert current_number(store) == 4


def test_reading_names_what_is_missing(store: VersionStore):
    with pytest.raises(StoreError, match=r"name must be one of \['adapter.bin', 'note.txt'\], got name='other'"):
        store.read(1, "other")
    with pytest.raises(StoreError, match="version 9 must be there with its files, got No such file"):
        store.read(9, "note.txt")


# Deleting


def test_pruning_keeps_the_newest_and_never_the_current_version_nor_its_parent(store: VersionStore, folder: Path):
    published(store, 5)
    assert store.prune(3) == [1, 2, 3, 4, 5]
    assert numbers(store) == [6, 7, 8]
    store.set_current(7)
    published(store, 1)  # 9, made from 7
    store.publish(FILES, {}, parent=9, make_current=False)
    assert store.prune(1) == [6, 8]
    assert numbers(store) == [7, 9, 10]
    assert names(folder) == ["000007", "000009", "000010", "current", "lock"]
    assert store.prune(1) == []


def test_pruning_deletes_old_damaged_versions_and_spares_new_ones(store: VersionStore, folder: Path):
    published(store, 3)
    for damaged in ("000002", "000005"):
        flip(folder / damaged / "note.txt")
    assert store.prune(2) == [1, 2, 3]
    assert (numbers(store), [damage.number for damage in store.damaged()]) == ([4, 6], [5])


def test_pruning_spares_what_stands_in_for_a_damaged_current_version(store: VersionStore, folder: Path):
    for _ in range(3):
        store.publish(FILES, {}, parent=None, make_current=False)
    flip(folder / "000003" / "note.txt")
    assert store.prune(1) == [4, 5]
    assert (numbers(store), current_number(store)) == ([1, 2, 6], 2)


def test_pruning_needs_a_number_to_keep(store: VersionStore):
    with pytest.raises(ConfigError, match="keep must be at least 1, got keep=0"):
        store.prune(0)


def test_a_removed_version_is_gone_from_the_disk(store: VersionStore, folder: Path):
    store.remove(2)
    assert numbers(store) == [1, 3]
    assert names(folder) == ["000001", "000003", "current", "lock"]
    with pytest.raises(StoreError, match="version must be there, got number=2"):
        store.remove(2)


def test_a_version_in_use_is_not_removed(store: VersionStore, folder: Path):
    with pytest.raises(StoreError, match="version must not be in use"):
        store.remove(3)
    flip(folder / "000003" / "note.txt")
    for number in (2, 3):  # 2 stands in for 3
        with pytest.raises(StoreError, match="version must not be in use"):
            store.remove(number)
    store.set_current(2)
    store.remove(3)
    assert numbers(store) == [1, 2]


def test_a_cleared_store_holds_no_byte_of_its_versions(store: VersionStore, folder: Path):
    flip(folder / "000002" / "version.json")
    store.clear()
    assert (store.versions(), store.damaged(), store.current()) == ([], [], None)
    assert names(folder) == ["000003.removed", "current", "lock"]
    assert names(folder / "000003.removed") == []


@pytest.mark.parametrize("delete", ["remove", "clear", "prune"])
def test_a_number_is_never_given_twice(store: VersionStore, folder: Path, delete: str):
    store.set_current(1)
    match delete:
        case "remove":
            store.remove(3)
        case "clear":
            store.clear()
        case "prune":
            flip(folder / "000003" / "note.txt")
            store.publish(FILES, {}, parent=None)
            store.prune(1)
            store.clear()
    again = VersionStore(folder).publish(FILES, {}, parent=None)
    assert again.number == (5 if delete == "prune" else 4)
    published(store, 1)  # the mark of the removed number goes with the next write
    assert not [name for name in names(folder) if name.endswith(".removed")]


def test_numbers_go_on_beyond_six_digits(store: VersionStore, folder: Path):
    (folder / "999999.removed").mkdir()
    assert published(store, 2).versions()[-1].number == 1_000_001
    assert numbers(store) == [1, 2, 3, 1_000_000, 1_000_001]


def test_what_is_not_a_version_is_left_alone(store: VersionStore, folder: Path):
    for name in ("000000", "0000004", "12", "abc", ".other"):
        (folder / name).mkdir()
    assert numbers(store) == [1, 2, 3]
    assert published(store, 1).versions()[-1].number == 4
    assert {"000000", "0000004", "12", "abc", ".other"} < set(names(folder))


# Faults: an error at any call, death at any call, death at any instant, full disks, two at once

ACTIONS: dict[str, Callable[[VersionStore], object]] = {
    "publish": lambda store: store.publish(FILES, {}, parent=3),
    "publish a candidate": lambda store: store.publish(FILES, {}, parent=3, make_current=False),
    "set_current": lambda store: store.set_current(1),
    "prune": lambda store: store.prune(1),
    "remove": lambda store: store.remove(2),
    "clear": lambda store: store.clear(),
}
CALLS = ("open", "mkdir", "fsync", "rename", "replace", "unlink", "rmdir")


@contextmanager
def fault_at(
    patch: pytest.MonkeyPatch, at: int, *, only: str | None = None, error: type[BaseException] = OSError
) -> Iterator[list[str]]:
    """Let the call of this number that changes or opens something fail as on a full disk; yields the calls made."""
    made: list[str] = []

    def wrapped(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object, **kwargs: object) -> object:
            made.append(name)
            if len(made) - 1 == at:
                raise error(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return counted

    with patch.context() as inner:
        for name in (only,) if only else CALLS:
            inner.setattr(os, name, wrapped(name, getattr(os, name)))
        yield made


def whole_after_a_fault(folder: Path, given: set[int]) -> None:
    """Check a store that was interrupted: nothing torn, current intact, and the next publish leaves all tidy."""
    store = VersionStore(folder)
    assert store.damaged() == []
    current = store.current()
    assert current is None or current in store.versions()
    version = store.publish({"x": b"1"}, {}, parent=None)
    assert version.number > max(given, default=0)
    assert store.current() == version
    assert store.damaged() == []
    marks = [name for name in names(folder) if name.endswith(".removed")]
    assert all(names(folder / mark) == [] for mark in marks)
    assert sorted([*marks, "current", "lock", *(f"{number:06d}" for number in numbers(store))]) == names(folder)
    for whole in store.versions():
        assert sorted(["version.json", *whole.files]) == names(folder / f"{whole.number:06d}")


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_at_any_call_leaves_the_store_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, error: type[BaseException]
):
    made = [""]
    at = -1
    while len(made) > at:  # until the call to fail is one that is not made
        at += 1
        copy = tmp_path / f"copy-{at}"
        shutil.copytree(folder, copy)
        raised: BaseException | None = None
        with fault_at(monkeypatch, at, error=error) as made:
            try:
                ACTIONS[action](VersionStore(copy))
            except (StoreError, KeyboardInterrupt) as caught:
                raised = caught
        assert bool(raised) == (len(made) > at) or made[at] == "mkdir"  # of a folder that is there already
        if isinstance(raised, StoreError):
            assert str(raised) == f"disk must take what the store writes, got {copy}: No space left on device"
        if action.startswith("publish"):
            found, current = numbers(VersionStore(copy)), current_number(VersionStore(copy))
            assert found == ([1, 2, 3] if raised and current == 3 else [1, 2, 3, 4])  # all of it or nothing
        whole_after_a_fault(copy, {1, 2, 3})
    assert at > 3


KILLER = """
import os, signal, sys, pathlib, shutil, json
from ownlet.shared.store import VersionStore

folder, work, action = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
files = {"adapter.bin": bytes(3000), "note.txt": b"note"}
actions = {
    "publish": lambda store: store.publish(files, {}, parent=3),
    "publish a candidate": lambda store: store.publish(files, {}, parent=3, make_current=False),
    "set_current": lambda store: store.set_current(1),
    "prune": lambda store: store.prune(1),
    "remove": lambda store: store.remove(2),
    "clear": lambda store: store.clear(),
}

def die_at(number):
    made = 0
    def wrapped(call):
        def counted(*args, **kwargs):
            nonlocal made
            made += 1
            if made > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)
        return counted
    for name in ("open", "mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, wrapped(getattr(os, name)))

died, at = True, 0
while died:
    copy = work / f"killed-{at}"
    shutil.copytree(folder, copy)
    child = os.fork()
    if child == 0:
        store = VersionStore(copy)
        die_at(at)
        actions[action](store)
        os._exit(0)
    died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    at += 1
print(at)
"""


@pytest.mark.parametrize("action", ACTIONS)
def test_kill_9_before_any_call_leaves_the_store_whole(folder: Path, tmp_path: Path, action: str):
    done = run(KILLER, folder, tmp_path, action)
    trials = int(done)
    assert trials > 3
    for at in range(trials):
        copy = tmp_path / f"killed-{at}"
        left = VersionStore(copy)
        if action.startswith("publish"):
            assert {1, 2, 3} <= set(numbers(left))
        assert current_number(left) in {"set_current": (1, 3), "clear": (None, 1, 2, 3)}.get(action, (3, 4))
        whole_after_a_fault(copy, {1, 2, 3})


RANDOM_KILLER = """
import os, random, select, signal, sys, time, pathlib
from ownlet.shared.store import VersionStore

folder, trials, keep = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
instants = random.Random(20250 + keep)

def publish_forever(output):
    store = VersionStore(folder)
    while True:
        current = store.current()
        parent = current.number if current else None
        version = store.publish({"a.bin": os.urandom(5000), "b.bin": b"b"}, {"parent": parent}, parent=parent)
        os.write(output, b"%d\\n" % version.number)
        if keep:
            store.prune(keep)

printed = []
for trial in range(trials):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        publish_forever(writing)
    os.close(writing)
    if instants.random() < 0.75:  # else it may be killed before it published anything
        select.select([reading], [], [], 60)
    time.sleep(instants.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    with open(reading, "rb") as pipe:
        new = [int(line) for line in pipe]
    assert new == sorted(new) and (not new or not printed or new[0] > printed[-1]), (printed, new)
    printed += new
    store = VersionStore(folder)
    assert store.damaged() == [], store.damaged()
    present = {version.number for version in store.versions()}
    kept = [number for number in printed if not keep or number > max(present) - keep]
    assert set(kept) <= present, (printed, present)
    current = store.current()
    if printed:
        assert current.number in present and current.number >= printed[-1], (current, printed)
print(len(printed))
"""


def run(script: str, *arguments: object) -> str:
    """Run a script in a small process of its own, which can fork and die without harm to the tests."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("trials", [30, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keep", [0, 3])
def test_kill_9_at_random_instants_loses_no_published_version(tmp_path: Path, trials: int, keep: int):
    published_versions = int(run(RANDOM_KILLER, tmp_path / "store", trials, keep))
    assert published_versions > trials / 10
    whole_after_a_fault(tmp_path / "store", {published_versions})


def test_temporary_folders_of_dead_writers_are_swept(store: VersionStore, folder: Path):
    (folder / ".publish.dead").mkdir()
    (folder / ".publish.dead" / "adapter.bin").write_bytes(b"half")
    (folder / ".current.dead").write_bytes(b"half")
    (folder / "000001").rename(folder / "000001.removed")
    assert numbers(store) == [2, 3]
    whole_after_a_fault(folder, {1, 2, 3})


LIMITED = """
import pathlib, resource, sys
from ownlet.shared.errors import StoreError
from ownlet.shared.store import VersionStore

folder, limit, size = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = VersionStore(folder)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    store.publish({"small.bin": bytes(10), "large.bin": bytes(size)}, {"why": "x" * 500}, parent=3)
    print("published")
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "size", "fails"),
    [(0, 0, True), (5, 100, True), (99, 100, True), (150, 100, True), (0, 10, True), (5000, 4000, False)],
)
def test_a_file_size_limit_at_any_write_leaves_the_store_whole(folder: Path, limit: int, size: int, fails: bool):
    said = run(LIMITED, folder, limit, size)
    store = VersionStore(folder)
    if fails:
        assert said == f"disk must take what the store writes, got {folder}: File too large\n"
        assert names(folder) == ["000001", "000002", "000003", "current", "lock"]
        assert current_number(store) == 3
    else:
        assert (said, current_number(store)) == ("published\n", 4)
    whole_after_a_fault(folder, {1, 2, 3})


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system of a given size, or skip the test where that is not allowed."""
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("short_of", ["space", "inodes"])
def test_a_full_disk_at_any_write_leaves_the_store_whole(tmp_path: Path, short_of: str):
    outcomes = []
    with small_disk(tmp_path / "disk", "size=128k,nr_inodes=64") as disk:
        for free in range(12):
            store = published(VersionStore(disk / "store"), 3)
            fill(disk, short_of, free)
            try:
                version: Version | None = store.publish({f"{n}.bin": bytes(5000) for n in range(3)}, {}, parent=3)
            except StoreError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                version = None
            fresh = VersionStore(disk / "store")
            assert fresh.damaged() == []
            assert numbers(fresh) == ([1, 2, 3, 4] if version else [1, 2, 3])
            assert current_number(fresh) == (4 if version else 3)
            assert not [name for name in names(disk / "store") if name.startswith(".")]
            outcomes.append(version is not None)
            shutil.rmtree(disk / "ballast")
            whole_after_a_fault(disk / "store", {1, 2, 3})
            shutil.rmtree(disk / "store")
    assert outcomes == sorted(outcomes)
    assert {True, False} == set(outcomes)


def test_a_full_disk_does_not_keep_a_user_from_being_forgotten(tmp_path: Path):
    with small_disk(tmp_path / "disk", "size=128k") as disk:
        store = published(VersionStore(disk / "store"), 5)
        fill(disk, "space", 0)
        with pytest.raises(StoreError, match="No space left"):
            store.set_current(1)
        assert current_number(store) == 5
        assert store.prune(2) == [1, 2, 3]
        store.set_current(4)
        fill(disk, "space", 0)
        store.clear()
        assert (store.versions(), store.current()) == ([], None)


def fill(disk: Path, short_of: str, free: int) -> None:
    """Leave this many free pages, or inodes, on a small disk."""
    (disk / "ballast").mkdir(exist_ok=True)
    kept = [disk / "ballast" / f"kept-{number}" for number in range(free)]
    for path in kept:
        path.write_bytes(b"x" * (4096 if short_of == "space" else 0))
    number = len(names(disk / "ballast"))
    try:
        while True:
            (disk / "ballast" / f"more-{number}").write_bytes(b"x" * (4096 if short_of == "space" else 0))
            number += 1
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
    for path in kept:
        path.unlink()
    # What could not be filled is an empty file; it takes an inode and no page.


PUBLISHER = """
import pathlib, sys
from ownlet.shared.store import VersionStore
store = VersionStore(pathlib.Path(sys.argv[1]))
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    version = store.publish({"a.bin": bytes(2000)}, {"by": sys.argv[3]}, parent=None)
    print(version.number)
    if sys.argv[4] == "prune":
        store.prune(2)
"""


@contextmanager
def publishers(folder: Path, count: int, *, prune: bool) -> Iterator[list[subprocess.Popen[str]]]:
    """Start two processes that publish at the same time."""
    arguments = [str(folder), str(count)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, *arguments, name, "prune" if prune else "keep"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    try:
        for child in children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_two_processes_that_publish_at_once_get_different_numbers(tmp_path: Path):
    with publishers(tmp_path / "store", 40, prune=False) as children:
        given = [[int(line) for line in child.communicate(timeout=60)[0].split()] for child in children]
    assert [len(numbers) for numbers in given] == [40, 40]
    assert sorted(given[0] + given[1]) == list(range(1, 81))
    store = VersionStore(tmp_path / "store")
    assert all(store.versions()[number - 1].metadata == {"by": "one"} for number in given[0])
    assert (current_number(store), store.damaged()) == (80, [])
    whole_after_a_fault(tmp_path / "store", set(range(1, 81)))


def test_a_reader_sees_no_damage_while_others_publish_and_prune(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store, looks, last = VersionStore(tmp_path / "store"), 0, 0
    with publishers(tmp_path / "store", 60, prune=True) as children:
        while any(child.poll() is None for child in children):
            current = current_number(store) or 0
            assert current >= last
            last = current
            assert store.damaged() == []
            assert len(store.versions()) <= 4
            looks += 1
    assert (looks > 0, last <= 120, caplog.records) == (True, True, [])
    assert numbers(store) == [119, 120]


def test_threads_may_share_a_store(tmp_path: Path):
    store = VersionStore(tmp_path / "store")
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda _: store.publish(FILES, {}, parent=None).number, range(24)))
    assert sorted(given) == numbers(store) == list(range(1, 25))


def test_a_writer_waits_for_another_but_not_for_ever(store: VersionStore, folder: Path):
    impatient = VersionStore(folder, lock_seconds=0.02)
    with (folder / "lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            StoreError, match=r"store must be written by one at a time, got .* in use for 0\.02 seconds"
        ):
            impatient.publish(FILES, {}, parent=3)
        assert (numbers(impatient), current_number(impatient)) == ([1, 2, 3], 3)  # readers do not wait
        waiting = threading.Thread(target=published, args=(store, 1))
        waiting.start()
        fcntl.flock(held, fcntl.LOCK_UN)
        waiting.join(timeout=20)
    assert numbers(store) == [1, 2, 3, 4]


def test_a_folder_that_cannot_be_one_is_refused_with_the_reason(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(
        StoreError, match=r"disk must take what the store writes, got .*: (File exists|Not a directory)"
    ):
        VersionStore(tmp_path / "file" / "store").publish(FILES, {}, parent=None)


def test_the_document_of_a_version_can_be_read_by_others(store: VersionStore, folder: Path):
    document = json.loads((folder / "000002" / "version.json").read_bytes())
    assert (document["number"], document["parent"], document["metadata"]) == (2, 1, {"why": "test"})
    assert set(document["files"]["note.txt"]) == {"size", "sha256"}
