"""The registry: published adapters in a plain folder, and which of them serves whom.

    versions/        a ``VersionStore``: an adapter each, with its parent, quality, privacy, size and hash
    registry.json    the rollout (``server/rollout.py``); replaced in one step, so a crash leaves the old or the new one
    reports/         what devices reported, a file of JSON lines per count (``server/reports.py``)
    lock             held by whoever changes anything; readers take no lock

Every file is compared with its hash when it is read. Nothing is ever deleted: a rollback is a new state, not an erased
one. One registry serves one base and one shape of adapter, since devices can change between such adapters only.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from ownlet.server.drift import DropDetector, look
from ownlet.server.published import ADAPTER_FILE, Publication, Published, check_new, metadata_of, published_of
from ownlet.server.rollout import (
    Arms,
    Rollout,
    dump_rollout,
    pause,
    promote,
    read_rollout,
    resume,
    rollback,
    start_count,
    stop_count,
    watch,
)
from ownlet.shared.adapter import dump_adapter, parse_adapter
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import StoreError, require
from ownlet.shared.filelock import held_lock
from ownlet.shared.rollout import MANIFEST_FILE, Experiment, Manifest, Offer, dump_manifest
from ownlet.shared.store import Damage, VersionStore, make_folder, write_atomic

__all__ = ["Registry"]

_STATE = "registry.json"


class Registry:
    """Published adapters and their rollout; threads and processes may share the folder."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time, lock_seconds: float = 30.0) -> None:
        """Name a registry; nothing is touched until something is published.

        Args:
            folder: of the registry alone.
            clock: unix seconds.
            lock_seconds: how long to wait while another writes.
        """
        self.folder, self._clock, self._lock_seconds = folder, clock, lock_seconds
        self._store = VersionStore(folder / "versions", clock=clock, lock_seconds=lock_seconds)

    def publish(self, publication: Publication) -> Published:
        """Add an adapter as a candidate; no device gets it before it is promoted.

        Raises:
            AdapterError: below the base on public users, damaged, published before, or of another base or shape.
            StoreError: the disk refused; nothing is published then.
        """
        spec, vector, run_version = parse_adapter(publication.content, source=publication.source)
        digest = sha256(vector.tobytes()).hexdigest()
        with self._locked():
            state, known = self.rollout(), self._store.versions()
            check_new(publication, spec, digest, known)
            highest = max((int(version.metadata["adapter_version"]) for version in known), default=0)
            adapter_version = max(run_version, highest + 1)
            if not (self.folder / _STATE).exists():
                self._save(state)  # before the first version, so that a missing one is known to be lost
            return published_of(
                self._store.publish(
                    {ADAPTER_FILE: dump_adapter(spec, vector, version=adapter_version)},
                    metadata_of(publication, spec, digest, adapter_version),
                    parent=state.stable or None,
                    make_current=False,
                )
            )

    def versions(self) -> list[Published]:
        """Return the intact versions, oldest first, each read whole and compared with its hashes."""
        return [published_of(version) for version in self._store.versions()]

    def damaged(self) -> list[Damage]:
        """Return what ``versions`` leaves out, and why."""
        return self._store.damaged()

    def version(self, number: int) -> Published:
        """Return one version.

        Raises:
            StoreError: unknown or damaged.
        """
        found = {published.number: published for published in self.versions()}
        if number in found:
            return found[number]
        reason = next((damage.reason for damage in self.damaged() if damage.number == number), "no such version")
        raise StoreError(f"version must be published and intact, got version {number} of {self.folder}: {reason}")

    def adapter(self, number: int) -> bytes:
        """Return the adapter's file of a version, compared with its hash.

        Raises:
            StoreError: unknown or damaged.
        """
        return self._store.read(number, ADAPTER_FILE)

    def rollout(self) -> Rollout:
        """Return which version serves whom.

        Raises:
            StoreError: altered, or missing beside published versions.
        """
        try:
            return read_rollout((self.folder / _STATE).read_bytes(), _STATE)
        except FileNotFoundError as error:
            if self._store.versions() or self._store.damaged():
                raise StoreError(f"{_STATE} must be beside published versions, got none in {self.folder}") from error
            return Rollout()
        except OSError as error:
            raise StoreError(f"{_STATE} must be readable, got {error}") from error

    def promote(self, number: int, percent: float) -> Rollout:
        """Give a version to this share of devices; see ``server.rollout.promote``.

        Raises:
            ConfigError: the rollout does not allow it.
            StoreError: the version is unknown or damaged, or the disk refused.
        """
        self.version(number)
        return self._change(lambda state, at: promote(state, number, percent, salt=_fresh_salt(), at=at))

    def rollback(self, why: str = "") -> Rollout:
        """Take the candidate back, or the stable version where there is none.

        Raises:
            ConfigError: nothing is there to go back to.
            StoreError: the version to go back to is damaged, or the disk refused.
        """

        def back(state: Rollout, at: float) -> Rollout:
            after = rollback(state, why=why, at=at)
            if after.stable:
                self.version(after.stable)
            return after

        return self._change(back)

    def pause(self, why: str) -> Rollout:
        """Let nobody new have the candidate."""
        return self._change(lambda state, at: pause(state, why=why, at=at))

    def resume(self, why: str = "") -> Rollout:
        """End a pause."""
        return self._change(lambda state, at: resume(state, why=why, at=at))

    def start_count(self, terms: CountTerms, arms: tuple[int, int, float] | None = None) -> Rollout:
        """Ask devices for reports; with arms (number of a, number of b, percent of devices) as an experiment.

        Raises:
            ConfigError: another is under way, the name was used before, or the numbers break their rules.
            StoreError: a version is unknown or damaged.
        """
        for number in arms[:2] if arms else ():
            if number:
                self.version(number)
        chosen = None if arms is None else Arms(a=arms[0], b=arms[1], percent=arms[2], salt=_fresh_salt())

        def start(state: Rollout, at: float) -> Rollout:
            used = any(entry.what.startswith(f"count {terms.count} started") for entry in state.log)
            require(not used, "count must have a name that was not used before", count=terms.count)
            return start_count(state, terms, chosen, at=at)

        return self._change(start)

    def stop_count(self, why: str = "") -> Rollout:
        """Ask for no more reports."""
        return self._change(lambda state, at: stop_count(state, why=why, at=at))

    def watch(self, detector: DropDetector | None) -> Rollout:
        """Let a detector watch quality, or none."""
        return self._change(lambda state, at: watch(state, detector, at=at))

    def observe(self, values: Iterable[float]) -> Rollout:
        """Show the detector more values; an alarm pauses the rollout, and the log says why.

        Raises:
            ConfigError: nothing watches, or a value is not finite.
        """
        seen = list(values)

        def observed(state: Rollout, at: float) -> Rollout:
            require(state.detector is not None, "quality must be watched", detector=None)
            assert state.detector is not None
            after = replace(state, watched=look(state.detector, state.watched, seen))
            if after.watched.alarm and not state.watched.alarm and not state.paused:
                return pause(after, why=_alarm(state.detector, after.watched.alarm_at), at=at)
            return after

        return self._change(observed)

    def manifest(self) -> Manifest:
        """Return what devices are told.

        Raises:
            StoreError: nothing is published, or a version that serves is damaged.
        """
        state, known = self.rollout(), {version.number: version for version in self.versions()}
        if not known:
            raise StoreError(f"registry must have an intact version, got none in {self.folder}")

        def offer(number: int) -> Offer | None:
            return (known.get(number) or self.version(number)).offer if number else None

        count, arms = state.count, state.arms
        return Manifest(
            serial=state.serial,
            base_hash=next(iter(known.values())).base_hash,
            stable=offer(state.stable),
            candidate=offer(state.candidate),
            percent=state.percent,
            salt=state.salt,
            paused=bool(state.paused),
            experiment=None
            if arms is None or count is None
            else Experiment(name=count.count, salt=arms.salt, percent=arms.percent, a=offer(arms.a), b=offer(arms.b)),
            count=count,
        )

    def deliver(self, folder: Path) -> Manifest:
        """Write the manifest and the adapters that it offers into a folder for any web server; the manifest last.

        Raises:
            StoreError: a version that serves is damaged, or the disk refuses.
        """
        with self._locked():
            manifest, state = self.manifest(), self.rollout()
            arms = state.arms
            numbers = {state.stable, state.candidate, *((arms.a, arms.b) if arms else ())} - {0}
            for number in sorted(numbers):
                write_atomic(folder / self.version(number).offer.file, self.adapter(number))
            write_atomic(folder / MANIFEST_FILE, dump_manifest(manifest))
        return manifest

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            make_folder(self.folder)
            with held_lock(self.folder / "lock", wait_seconds=self._lock_seconds):
                yield
        except OSError as error:
            raise StoreError(
                f"disk must take what the registry writes, got {self.folder}: {error.strerror or error}"
            ) from error

    def _change(self, step: Callable[[Rollout, float], Rollout]) -> Rollout:
        with self._locked():
            after = step(self.rollout(), float(self._clock()))
            self._save(after)
        return after

    def _save(self, state: Rollout) -> None:
        write_atomic(self.folder / _STATE, dump_rollout(state))


def _alarm(detector: DropDetector, at: int) -> str:
    return (
        f"quality fell: value {at} since the watch began was the one too many below {detector.baseline:g} "
        f"(a false alarm comes once in {detector.false_alarm_every:g} values)"
    )


def _fresh_salt() -> str:
    return secrets.token_hex(16)
