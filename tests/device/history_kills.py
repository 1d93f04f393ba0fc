"""Kill processes that work on a history at random instants, let others race, and print the losses as JSON.

    python history_kills.py FOLDER TRIALS SEED

A process of its own, because it forks: a fork of the small process here is fast and, unlike one of pytest's, has no
other threads. Each trial is a real process that ends by SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ownlet.device.history import EventHistory, Retention
from ownlet.shared.seal import Seal

KEEP_ALL = Retention(max_events=None)
SECRET = "a-secret-item"
V1_SCHEMA = """
CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL, timestamp REAL NOT NULL);
CREATE INDEX events_in_order ON events (timestamp, sequence);
PRAGMA user_version = 1;
"""

Say = Callable[[str], None]


def run(work: Callable[[Say], None], delay: float | None) -> tuple[bool, list[str], float]:
    """Do the work in a child that is killed so long after its first word; return whether it was, and what it said.

    The third value is the time from the first word to the end.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        in_child(lambda: work(lambda line: os.write(write, f"{line}\n".encode()) and None))
    os.close(write)
    while os.read(read, 1) not in (b"\n", b""):
        pass
    start = time.monotonic()
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        said = pipe.read().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status), said, time.monotonic() - start


def in_child(work: Callable[[], object]) -> None:
    """Work, and end this process whatever happens: it must not go on as if it were its parent."""
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def open_and_record(path: Path, seal: Seal, item: str, timestamp: float) -> None:
    history = EventHistory(path, seal=seal, busy_timeout_seconds=60.0)
    history.record(item, timestamp)
    history.close()


def open_and_close(say: Say, path: Path) -> None:
    say("start")
    EventHistory(path).close()


def raw_bytes(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir() if path.name in file.name)


def kill_record(folder: Path, rng: random.Random, trials: int) -> dict[str, int]:
    """A child records and says each event after ``record`` returned; every said event must be there."""
    counts = {"trials": trials, "killed": 0, "said": 0, "losses": 0, "torn": 0}
    for trial in range(trials):
        path, seal = folder / f"record-{trial % 2}.sqlite", Seal(bytes(32)) if trial % 2 else Seal()

        def work(say: Say, path: Path = path, seal: Seal = seal, trial: int = trial) -> None:
            say("start")
            history = EventHistory(path, seal=seal, retention=KEEP_ALL)
            for k in range(10_000):
                history.record(f"{trial}/{k}", float(k))
                history.put("last", f"{trial}/{k}")
                say(str(k))

        killed, said, _ = run(work, rng.uniform(0, 0.08))
        history = EventHistory(path, seal=seal, retention=KEEP_ALL)
        kept = [item for item in history.items() if item.startswith(f"{trial}/")]
        counts["killed"] += killed
        counts["said"] += len(said)
        counts["losses"] += len(set(said) - {item.split("/")[1] for item in kept})
        counts["losses"] += bool(said) and history.get("last") not in (
            f"{trial}/{len(said) - 1}",
            f"{trial}/{len(said)}",
        )
        counts["torn"] += kept != [f"{trial}/{k}" for k in range(len(kept))] or len(kept) > len(said) + 1
        history.close()
    return counts


def kill_forget(folder: Path, rng: random.Random, trials: int) -> dict[str, int]:
    """A child forgets; after the next open all or none of the events are there, and if none, none of their bytes."""
    counts = {"trials": trials, "killed": 0, "still_there": 0, "gone": 0, "losses": 0}
    original = folder / "forget.sqlite"
    history = EventHistory(original, retention=KEEP_ALL)
    history.record_many([(SECRET if k % 3 == 0 else f"item-{k}", float(k)) for k in range(1500)])
    history.close()
    whole = 1.0
    for trial in range(-1, trials):  # the first is not killed, and shows how long it takes
        path = folder / f"forget-{trial}.sqlite"
        shutil.copy(original, path)

        def work(say: Say, path: Path = path) -> None:
            history = EventHistory(path, retention=KEEP_ALL)
            say("start")
            history.forget(item=SECRET)
            say("done")

        killed, said, seconds = run(work, None if trial < 0 else rng.uniform(0, whole))
        whole = whole if killed else min(whole, seconds)
        history = EventHistory(path, retention=KEEP_ALL)
        items = history.items()
        left, others = items.count(SECRET), len(items) - items.count(SECRET)
        counts["killed"] += killed
        counts["still_there"] += left == 500
        counts["gone"] += left == 0
        counts["losses"] += left not in (0, 500) or others != 1000 or (bool(said) and left > 0)
        counts["losses"] += left == 0 and SECRET.encode() in raw_bytes(path)
        history.close()
    return counts


class KilledBeforeWiping(EventHistory):
    """Dies at the worst instant: the deletion is committed, the bytes are in the log."""

    def _wipe(self) -> bool:
        if len(self) and self.generation:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._wipe()


def kill_before_wiping(folder: Path) -> dict[str, int]:
    path = folder / "wipe.sqlite"
    history = EventHistory(path)
    history.record_many([(SECRET, 1.0), ("other", 2.0)])
    history.close()
    killed, _, _ = run(lambda say: KilledBeforeWiping(path).forget(item=SECRET) and None, None)
    before = SECRET.encode() in raw_bytes(path)
    history = EventHistory(path)
    after = SECRET.encode() in raw_bytes(path)
    items = history.items()
    history.close()
    return {"killed": killed, "bytes_before": before, "bytes_after": after, "losses": items != ["other"]}


def kill_migration(folder: Path, rng: random.Random, trials: int) -> dict[str, int]:
    """A child opens a history of schema 1; the file is then of schema 1 or 2, and every event is there."""
    counts = {"trials": trials, "killed": 0, "schema_1": 0, "schema_2": 0, "losses": 0}
    original, names = folder / "old.sqlite", [f"item-{k}" for k in range(3000)]
    database = sqlite3.connect(original)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(V1_SCHEMA)
    with database:
        database.executemany("INSERT INTO events (item, timestamp) VALUES (?, 1.0)", [(name,) for name in names])
    database.close()
    whole = 1.0
    for trial in range(-1, trials):
        path = folder / f"old-{trial}.sqlite"
        shutil.copy(original, path)
        delay = None if trial < 0 else rng.uniform(0, whole)
        killed, _, seconds = run(lambda say, path=path: open_and_close(say, path), delay)
        whole = whole if killed else min(whole, seconds)
        database = sqlite3.connect(path)
        version = database.execute("PRAGMA user_version").fetchone()[0]
        database.close()
        history = EventHistory(path)
        counts["killed"] += killed
        counts[f"schema_{version}"] += 1
        counts["losses"] += history.items() != names
        history.close()
    return counts


def kill_creation(folder: Path, rng: random.Random, trials: int) -> dict[str, int]:
    """A child makes a history; the next open works, and there is never half a file in its place."""
    counts = {"trials": trials, "killed": 0, "absent": 0, "losses": 0}
    whole = 1.0
    for trial in range(-1, trials):
        path = folder / f"new-{trial}.sqlite"
        delay = None if trial < 0 else rng.uniform(0, whole)
        killed, _, seconds = run(lambda say, path=path: open_and_close(say, path), delay)
        whole = whole if killed else min(whole, seconds)
        counts["killed"] += killed
        counts["absent"] += not path.exists()
        history = EventHistory(path)
        history.record("a", 1.0)
        counts["losses"] += history.items() != ["a"]
        history.close()
        counts["losses"] += path.with_name(f".{path.name}.new").exists()
    return counts


def race(folder: Path, processes: int = 6) -> dict[str, int]:
    """Processes that find no file at the same instant, and then open, record and close in turns."""
    path, seal = folder / "race.sqlite", Seal(bytes(32))
    hold, start = os.pipe()
    children = []
    for name in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            os.close(start)
            os.read(hold, 1)  # returns when the parent closes the other end
            in_child(lambda name=name: [open_and_record(path, seal, f"{name}-{k}", float(k)) for k in range(15)])
    os.close(start)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    os.close(hold)
    history = EventHistory(path, seal=seal)
    expected = {f"{name}-{k}" for name in range(processes) for k in range(15)}
    losses = len(expected ^ set(history.items()))
    history.close()
    return {"processes": processes, "failed": failed, "losses": losses}


def main() -> None:
    folder, trials, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
    report = {
        "record": kill_record(folder, rng, trials),
        "forget": kill_forget(folder, rng, trials // 2),
        "wipe": kill_before_wiping(folder),
        "migration": kill_migration(folder, rng, trials // 4),
        "race": race(folder),
        "creation": kill_creation(folder, rng, trials // 4),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
