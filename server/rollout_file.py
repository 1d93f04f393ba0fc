"""A registry's state on disk: ``registry.json``, and beside it the state before the last write, ``registry.json.bak``.

Each is replaced in one step, the copy first. So the copy is at most one step older than what devices were told, and a
state that goes on from it needs a serial number two above: devices refuse manifests that are older than one they
followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ownlet.server.drift import DropDetector, DropState
from ownlet.server.rollout import Arms, Count, LogEntry, Rollout, restored
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import ConfigError, StoreError
from ownlet.shared.sealed_json import opened_json, sealed_json
from ownlet.shared.store import write_atomic

__all__ = [
    "COPY_FILE",
    "STATE_FILE",
    "dump_rollout",
    "load_rollout",
    "read_rollout",
    "restored_rollout",
    "save_rollout",
]

STATE_FILE, COPY_FILE = "registry.json", "registry.json.bak"
_FORMAT = "ownlet-registry-1"
_WAY_OUT = (
    f"`ownlet registry restore` goes on from {COPY_FILE}, the state before the last step, with a serial number above "
    "all that were delivered (a copy put there by hand has an older one, and devices would refuse its manifests)"
)


def load_rollout(folder: Path, *, must_be_there: bool) -> Rollout:
    """Return the state of the registry in a folder; a fresh one where there is none.

    Args:
        folder: of the registry.
        must_be_there: something is published, so a missing file is a lost one.

    Raises:
        StoreError: altered, unreadable or lost; the message names the way out.
    """
    try:
        return read_rollout((folder / STATE_FILE).read_bytes(), STATE_FILE)
    except FileNotFoundError as error:
        if must_be_there:
            found = f"{STATE_FILE} must be beside published versions, got none in {folder}"
            raise StoreError(f"{found}; {_WAY_OUT}") from error
        return Rollout()
    except OSError as error:
        raise StoreError(f"{STATE_FILE} must be readable, got {error}") from error
    except StoreError as error:
        raise StoreError(f"{error} in {folder}; {_WAY_OUT}") from error


def save_rollout(folder: Path, state: Rollout) -> None:
    """Replace the state; the one before, which must be intact, stays as the copy.

    Raises:
        OSError: the disk refused.
    """
    content = dump_rollout(state)
    try:
        before = (folder / STATE_FILE).read_bytes()
    except FileNotFoundError:
        before = content
    write_atomic(folder / COPY_FILE, before)
    write_atomic(folder / STATE_FILE, content)


def restored_rollout(folder: Path, source: Path | None, above: int | None, at: float) -> Rollout:
    """Return the state that goes on from a copy, and write it.

    Args:
        folder: of the registry, whose state is damaged or lost.
        source: any older state; None for the copy that ``save_rollout`` keeps.
        above: the highest serial number that was delivered; needed with ``source``, whose age nobody knows.
        at: unix seconds.

    Raises:
        ConfigError: the state is intact, or above is missing.
        StoreError: the copy is missing or damaged, too.
        OSError: the disk refused.
    """
    try:
        load_rollout(folder, must_be_there=True)
    except StoreError:
        pass
    else:
        raise ConfigError(f"{STATE_FILE} must be damaged or lost to be restored, got an intact one in {folder}")
    if source is not None and above is None:
        raise ConfigError(
            f"above must be given with a copy of unknown age: the newest serial delivered, got {source} alone"
        )
    source = source or folder / COPY_FILE
    try:
        copy = read_rollout(source.read_bytes(), source.name)
    except OSError as error:
        raise StoreError(f"copy must be readable, got {error}") from error
    after = restored(copy, above=max(copy.serial + 1, above or 0), why=f"from {source.name}", at=at)
    for name in (COPY_FILE, STATE_FILE):  # the copy, too: to be restored once more, the number must rise again
        write_atomic(folder / name, dump_rollout(after))
    return after


def dump_rollout(state: Rollout) -> bytes:
    """Return the state's file."""
    return sealed_json({"format": _FORMAT, **asdict(state)})


def read_rollout(content: bytes, name: str) -> Rollout:
    """Read what ``dump_rollout`` wrote.

    Raises:
        StoreError: altered or torn.
    """
    plain = opened_json(content, name, _FORMAT)
    parts: dict[str, Any] = {
        "earlier": tuple(plain.pop("earlier")),
        "counts": tuple(_count(count) for count in plain.pop("counts")),
        "detector": None if (detector := plain.pop("detector")) is None else DropDetector(**detector),
        "watched": DropState(**plain.pop("watched")),
        "log": tuple(LogEntry(**entry) for entry in plain.pop("log")),
    }
    return Rollout(**plain, **parts)


def _count(plain: Mapping[str, Any]) -> Count:
    arms = None if plain["arms"] is None else Arms(**plain["arms"])
    return Count(terms=CountTerms(**plain["terms"]), arms=arms)
