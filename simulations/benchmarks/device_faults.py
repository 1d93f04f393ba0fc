"""What a device survives, really done: counts trials and losses of each fault.

    python -m ownlet.simulations.benchmarks.device_faults --bundle BUNDLE --kills 200

Every trial is a process of its own that is forked from this one, which itself never runs a program: a fork with the
runtime's threads in it would hang. A trial is lost if anything is missing that a call had returned, if anything torn is
visible, if something was accepted that must be refused, or if the next use does not work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ownlet.device import Personalizer
from ownlet.device.budget import Budget
from ownlet.device.history import EventHistory
from ownlet.device.ledger import read_ledger
from ownlet.device.release import Release
from ownlet.device.state import StateFolder
from ownlet.shared.adapter import load_adapter, save_adapter
from ownlet.shared.bundle_items import read_catalogue
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import BundleError, OwnletError, StateBusyError, require
from ownlet.shared.manifest import ADAPTER_FILE, ITEMS_FILE, MANIFEST_FILE, PROGRAM_FILE, read_manifest
from ownlet.shared.seal import Keys, Seal
from ownlet.simulations.benchmarks.processes import Say, end_child, start_child

__all__ = ["FAULTS", "Trials", "run_faults"]

_KEY = bytes(range(32))
_PLAN = Plan(steps=2, learning_rate=0.01)
_LONG_PLAN = Plan(steps=200, learning_rate=0.001)
_LONGEST_LIFE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How often a fault was done, and how often something was lost."""

    trials: int
    losses: int


def run_faults(
    bundle: Path,
    kills: int,
    seed: int = 0,
    names: Iterable[str] | None = None,
    on_fault: Callable[[str], None] = print,
) -> dict[str, Trials]:
    """Do faults, one after the other.

    Args:
        bundle: of a small base; it is copied before it is damaged.
        kills: how many processes are killed.
        seed: of the random instants and places.
        names: of those in ``FAULTS``; by default all.
        on_fault: told the name of each fault before it is done.
    """
    require(kills >= 1, "kills must be at least 1", kills=kills)
    import dp_accounting.pld  # noqa: F401  (here once, rather than in every child)
    import executorch.extension.pybindings._portable_lib  # noqa: F401

    found = {}
    for name in FAULTS if names is None else names:
        on_fault(name)
        with tempfile.TemporaryDirectory() as folder:
            losses = list(FAULTS[name](bundle, Path(folder), random.Random(seed), kills))
        found[name] = Trials(trials=len(losses), losses=sum(losses))
    return found


def _kill(bundle: Path, folder: Path, rng: random.Random, kills: int) -> Iterator[bool]:
    """Kill -9 at random instants of recording, training, publishing and releasing, over the same state."""
    state, told = folder / "state", ["event 0"]
    _in_child(lambda say: _use(bundle, state, say, first=0, count=8))
    for _ in range(kills):
        first = 1 + max(int(line.split()[1]) for line in told if line.startswith("event"))
        said = _killed(lambda say, first=first: _use(bundle, state, say, first), rng)  # type: ignore[misc]
        told = [line for line in told if line.startswith("event")][-1:] + said
        yield _lost(bundle, state, told)


def _full_disk(bundle: Path, folder: Path, rng: random.Random, kills: int) -> Iterator[bool]:
    """Leave a little less room on the disk each time, so that every write is once the one that does not fit."""
    with _small_disk(folder / "disk", size=4 * 2**20) as disk:
        if disk is None:
            return
        for room in range(0, 200 * 4096, 4096 * max(1, 200 // kills)):
            state = disk / "state"
            said = _in_child(lambda say, state=state: _use(bundle, state, say, first=0, count=8))  # type: ignore[misc]
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            (disk / "ballast").write_bytes(bytes(max(0, free - room)))
            said += _in_child(
                lambda say, state=state: _use(bundle, state, say, first=8, count=12, go_on=True)  # type: ignore[misc]
            )
            (disk / "ballast").unlink()
            yield "unexpected" in " ".join(said) or _lost(bundle, state, said)
            shutil.rmtree(state)


def _two_trainers(bundle: Path, folder: Path, rng: random.Random, kills: int) -> Iterator[bool]:
    """Train in two processes at once: one trains, the other gets a clear error."""
    for number in range(max(3, kills // 10)):
        state = folder / str(number)
        _in_child(lambda say, state=state: _use(bundle, state, say, first=0, count=8))  # type: ignore[misc]
        children = [start_child(lambda say, state=state: _train_long(bundle, state, say)) for _ in range(2)]  # type: ignore[misc]
        ends = sorted(end_child(child, pipe)[-1] for child, pipe in children)
        yield ends != ["busy", "trained"] or _lost(bundle, state, [])


def _train_long(bundle: Path, state: Path, say: Say) -> None:
    with Personalizer.open(bundle, state, key=_KEY) as personalizer:
        held = StateFolder(state).root / "both are here"
        try:
            # the one that trains waits, between two steps, until the other has been refused
            personalizer.train(_LONG_PLAN, on_step=lambda done, total: _wait_for(held) if done == 1 else None)
            say("trained")
        except StateBusyError:
            held.touch()
            say("busy")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def _damaged_bundle(bundle: Path, folder: Path, rng: random.Random, kills: int) -> Iterator[bool]:
    """Flip a bit of a bundle, cut it short, give it another base or a newer format: it must be refused by name."""
    names = (PROGRAM_FILE, ADAPTER_FILE, ITEMS_FILE, MANIFEST_FILE)
    for number in range(kills):
        copy = Path(shutil.copytree(bundle, folder / "bundle"))
        file = copy / rng.choice(names)
        content = bytearray(file.read_bytes())
        if number % 4 == 0:
            file.write_bytes(content[: rng.randrange(len(content))])
        elif number % 4 == 1:
            file = copy / MANIFEST_FILE
            raw = json.loads(file.read_text())
            file.write_text(json.dumps({**raw, "format_version": raw["format_version"] + 1}))
        elif number % 4 == 2:
            file = copy / ADAPTER_FILE
            spec, vector, version = load_adapter(file)
            save_adapter(file, replace(spec, base_hash="0" * 64), vector, version=version)
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
        said = _in_child(lambda say, copy=copy, file=file: _open_damaged(copy, folder / "state", file.name, say))  # type: ignore[misc]
        yield said != ["refused"] or (folder / "state").exists()
        shutil.rmtree(copy)


def _open_damaged(bundle: Path, state: Path, name: str, say: Say) -> None:
    try:
        Personalizer.open(bundle, state)
        say("opened")
    except BundleError as error:
        say("refused" if name in str(error) or "manifest" in str(error) else f"not by name: {error}")


def _bad_input(bundle: Path, folder: Path, rng: random.Random, kills: int) -> Iterator[bool]:
    """Feed NaN in an adapter, items that do not exist, times that are no times, and a clock that goes back."""
    for number in range(max(4, kills // 10)):
        state = folder / str(number)
        _in_child(lambda say, state=state: _use(bundle, state, say, first=0, count=8))  # type: ignore[misc]
        said = _in_child(lambda say, state=state: _feed_badly(bundle, state, rng.random() * 1e9, say))  # type: ignore[misc]
        yield said != ["refused"] * 7 + ["clock"] or _lost(bundle, state, [f"event {n}" for n in range(8)])


def _feed_badly(bundle: Path, state: Path, back: float, say: Say) -> None:
    spec, vector, version = load_adapter(bundle / ADAPTER_FILE)
    poisoned = vector.copy()
    poisoned[-1] = np.nan
    file = state.parent / "poisoned.safetensors"
    save_adapter(file, spec, vector, version=version + 1)
    file.write_bytes(file.read_bytes().replace(vector[-8:].tobytes(), poisoned[-8:].tobytes()))
    now = [1e9]
    with Personalizer.open(bundle, state, key=_KEY, clock=lambda: now[0]) as personalizer:
        best = personalizer.recommend(5)
        spent = personalizer.status().privacy["window"]
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: personalizer.adopt(file),
            lambda: personalizer.score(["no such item"]),
            lambda: personalizer.recommend(5, candidates=["no such item"]),
            lambda: personalizer.record("", 1.0),
            lambda: personalizer.record("item", float("nan")),
            lambda: personalizer.record("item", float("inf")),
            lambda: personalizer.recommend(0),
        )
        for attempt in attempts:
            try:
                attempt()
                say("accepted")
            except OwnletError:
                say("refused")
        now[0] -= back
        same = personalizer.recommend(5) == best and personalizer.status().privacy["window"] == spent
        personalizer.record(_items(bundle)[0])
        personalizer.train(_PLAN)
        say("clock" if same else "changed")


FAULTS: dict[str, Callable[[Path, Path, random.Random, int], Iterable[bool]]] = {
    "kill": _kill,
    "full_disk": _full_disk,
    "two_trainers": _two_trainers,
    "damaged_bundle": _damaged_bundle,
    "bad_input": _bad_input,
}


def _use(bundle: Path, state: Path, say: Say, first: int, count: int | None = None, *, go_on: bool = False) -> None:
    """Record, train and release in turn, and say what was done once the call has returned.

    Args:
        bundle: to open.
        state: the user's folder.
        say: told.
        first: number of the first event; also its timestamp.
        count: events; None for as long as the process lives.
        go_on: after an error that ownlet raises on purpose, go on with the next call.
    """
    items, terms = _items(bundle), _terms(bundle)
    number = first
    while count is None or number < first + count:
        with _survive(go_on, say), _open(bundle, state) as personalizer:
            while count is None or number < first + count:
                number += 1
                with _survive(go_on, say):
                    personalizer.record(items[number % 7], number - 1)
                    say(f"event {number - 1}")
                with _survive(go_on, say):
                    if number % 3 == 0:
                        report = personalizer.train(_PLAN)
                        if report.version is not None:
                            say(f"version {report.version}")
                with _survive(go_on, say):
                    if number % 3 == 1:
                        update = personalizer.update(replace(terms, clip_norm=1.0 + number))
                        assert update is not None
                        say(f"update {hashlib.sha256(update.delta.tobytes()).hexdigest()}")
        number += 1 if go_on else 0  # where not even opening works, the loop must end too


@contextmanager
def _survive(go_on: bool, say: Say) -> Iterator[None]:
    try:
        yield
    except OwnletError:
        if not go_on:
            raise


def _open(bundle: Path, state: Path) -> Personalizer:
    return Personalizer.open(bundle, state, key=_KEY, budget=Budget(epsilon=float("inf")))


def _lost(bundle: Path, state: Path, told: list[str]) -> bool:
    """Whether something that had been said is missing, something torn is visible, or the next use does not work."""
    said = _in_child(lambda say: _look(bundle, state, told, say))
    if said != ["whole"]:
        print(f"lost: {said}", flush=True)
    return said != ["whole"]


def _look(bundle: Path, state: Path, told: list[str], say: Say) -> None:
    folder, keys = StateFolder(state), Keys.of(_KEY)
    _, entries = read_ledger(folder.ledger, keys.ledger)
    charged = {entry["seq"] for entry in entries if entry["state"] == "intent"}
    released = {entry["update"] for entry in entries if entry["state"] == "commit"}
    waiting = Release.load(folder.outbox, Seal(keys.state))
    if waiting is not None and waiting.charge not in charged:
        say("an update without its charge")
    with _open(bundle, state) as personalizer:
        history = EventHistory(folder.history, seal=Seal(keys.state))
        recorded = set(history.events_after(0).timestamps.astype(int).tolist())
        history.close()
        versions = [version.number for version in personalizer.versions()]
        if personalizer.status().damaged:
            say("a torn version")
        for kind, value in (line.split() for line in told):
            missing = {
                "event": lambda value=value: int(value) not in recorded,
                "version": lambda value=value: int(value) > max(versions, default=0),
                "update": lambda value=value: value not in released,
            }
            if missing[kind]():
                say(f"{kind} {value} is missing")
        personalizer.recommend(3)
        personalizer.record(_items(bundle)[0], max(recorded, default=0))
        personalizer.train(_PLAN)
        if personalizer.update(_terms(bundle)) is None:
            say("no update")
    say("whole")


def _items(bundle: Path) -> tuple[str, ...]:
    return read_catalogue(bundle / ITEMS_FILE, read_manifest(bundle).num_items).ids[1:]


def _terms(bundle: Path) -> FederationConfig:
    private = Plan(steps=2, learning_rate=0.1, sample_rate=0.5, clip_norm=0.2, noise_multiplier=1.0)
    return FederationConfig(unit="window", plan=private, windows=read_manifest(bundle).windows, clip_norm=1.0)


def _in_child(work: Callable[[Say], None]) -> list[str]:
    return end_child(*start_child(work))


def _killed(work: Callable[[Say], None], rng: random.Random) -> list[str]:
    child, pipe = start_child(work)
    time.sleep(rng.uniform(0, _LONGEST_LIFE_SECONDS))
    os.kill(child, signal.SIGKILL)
    return end_child(child, pipe)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Path | None]:
    """Mount a file system of its own in memory; give None where the system does not let us."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        with suppress(OSError):
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def main(arguments: list[str] | None = None) -> None:
    """Do every fault on a bundle and print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle of a small base")
    parser.add_argument("--kills", type=int, default=200, help="processes to kill")
    parser.add_argument("--seed", type=int, default=0, help="of instants and places")
    parser.add_argument("--only", choices=FAULTS, help="one fault instead of all")
    options = parser.parse_args(arguments)
    names = [options.only] if options.only else None
    found = run_faults(options.bundle, options.kills, options.seed, names)
    print(json.dumps({name: asdict(trials) for name, trials in found.items()}))


if __name__ == "__main__":
    main()
