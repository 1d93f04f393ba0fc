"""The registry: published adapters in a plain folder, and which of them serves whom.

    versions/        a ``VersionStore``: an adapter each, with its parent, quality, privacy, size and hash
    registry.json    the rollout (``server/rollout.py``); replaced in one step, so a crash leaves the old or the new one
    registry.json.bak  the state before the last write (``server/rollout_file.py``)
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
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ownlet.server.drift import DropDetector
from ownlet.server.offers import manifest_of, serving_numbers
from ownlet.server.published import ADAPTER_FILE, Publication, Published, check_new, metadata_of, published_of
from ownlet.server.reports import Collected, ReportFile, tally_arms
from ownlet.server.rollout import (
    Arms,
    Count,
    Rollout,
    observed,
    pause,
    promote,
    resume,
    rollback,
    start_count,
    stop_count,
    watch,
)
from ownlet.server.rollout_file import STATE_FILE, load_rollout, restored_rollout, save_rollout
from ownlet.server.rollout_key import check_not_signed
from ownlet.server.sequential import Tally, Verdict, judge_arms
from ownlet.shared.adapter import dump_adapter, parse_adapter
from ownlet.shared.counters import CountReport, CountTerms
from ownlet.shared.errors import StoreError, require
from ownlet.shared.filelock import held_lock
from ownlet.shared.rollout import MANIFEST_FILE, Manifest, dump_manifest
from ownlet.shared.store import Damage, VersionStore, make_folder, write_atomic

__all__ = ["Registry"]


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
            if not (self.folder / STATE_FILE).exists():
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
        there = (self.folder / STATE_FILE).exists()
        published = not there and bool(self._store.versions() or self._store.damaged())
        return load_rollout(self.folder, must_be_there=published)

    def restore(self, source: Path | None = None, above: int | None = None) -> Rollout:
        """Go on from a copy of the state where the state is damaged or lost; a rollout under way is paused.

        Args:
            source: an older ``registry.json``; None for the copy beside it, the state before the last step.
            above: the highest serial number that was delivered; needed with ``source``.

        Raises:
            ConfigError: the state is intact, or above is missing.
            StoreError: the copy is missing or damaged, or the disk refused.
        """
        with self._locked():
            return restored_rollout(self.folder, source, above, float(self._clock()))

    def promote(self, number: int, percent: float, *, without_privacy: bool = False) -> Rollout:
        """Give a version to this share of devices; see ``server.rollout.promote``.

        Args:
            number: of the version.
            percent: of devices.
            without_privacy: allows a version whose run had no privacy.

        Raises:
            ConfigError: the rollout does not allow it, or the version's run had no privacy.
            StoreError: the version is unknown or damaged, or the disk refused.
        """
        self._check_may_serve(number, without_privacy)
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

    def start_count(self, terms: CountTerms) -> Rollout:
        """Ask devices for reports.

        Raises:
            ConfigError: another count is under way, or the name was used before.
        """
        return self._change(lambda state, at: start_count(state, Count(terms=terms), at=at))

    def start_experiment(
        self,
        terms: CountTerms,
        *,
        a: int,
        b: int,
        percent: float,
        alpha: float = 0.05,
        expected_reports: int = 100_000,
        without_privacy: bool = False,
    ) -> Rollout:
        """Ask devices for reports, and give two versions to a share of them, half each.

        Args:
            terms: of the reports; their name is the experiment's.
            a: number of the version to compare with; 0 is the bundle's own adapter.
            b: number of the version that is asked about.
            percent: share of all devices.
            alpha: the chance to be wrong about the arms, ever.
            expected_reports: where the test is at its best.
            without_privacy: allows versions whose run had no privacy.

        Raises:
            ConfigError: as ``start_count``, numbers that break their rules, or a version's run had no privacy.
            StoreError: a version is unknown or damaged.
        """
        for number in {a, b} - {0}:
            self._check_may_serve(number, without_privacy)
        arms = Arms(a=a, b=b, percent=percent, salt=_fresh_salt(), alpha=alpha, expected_reports=expected_reports)
        return self._change(lambda state, at: start_count(state, Count(terms=terms, arms=arms), at=at))

    def stop_count(self, why: str = "") -> Rollout:
        """Ask for no more reports."""
        return self._change(lambda state, at: stop_count(state, why=why, at=at))

    def watch(self, detector: DropDetector | None) -> Rollout:
        """Let a detector watch quality, or none.

        Raises:
            ConfigError: the baseline is outside [0, 1].
        """
        return self._change(lambda state, at: watch(state, detector, at=at))

    def observe(self, values: Iterable[float]) -> Rollout:
        """Show the detector more measured values; an alarm pauses the rollout, and the log says why.

        Raises:
            ConfigError: nothing watches quality (a detector of bits takes none), or a value is outside [0, 1].
        """
        return self._change(lambda state, at: observed(state, list(values), of_bits=False, at=at))

    def collect(self, lines: Iterable[str]) -> Collected:
        """Take in reports of the present count, each once; those about the adapter in rollout feed a detector of bits.

        Args:
            lines: of JSON, as devices send them.

        Raises:
            ConfigError: no count is under way.
            StoreError: the disk refuses; then nothing was taken in.
        """
        with self._locked():
            state = self.rollout()
            count = state.count
            require(count is not None, "count must be under way", count=None)
            assert count is not None
            collected = self._reports(count.terms.count).collect(lines)
            if state.detector is not None and state.detector.of_bits:
                watched = state.candidate or state.stable
                version = self.version(watched).adapter_version if watched else None
                bits = [report.bit for report in collected.new if version in (None, report.version)]
                self._save(observed(state, bits, of_bits=True, at=float(self._clock())))
        return collected

    def reports(self, count: str) -> list[CountReport]:
        """Return the reports of a count, past or present.

        Raises:
            ConfigError: no such count.
            StoreError: they cannot be read.
        """
        return self._reports(self._count(count).terms.count).read()

    def verdict(self, count: str) -> tuple[Tally, Verdict]:
        """Return an experiment's reports, added up, and what may be said about its arms now.

        Raises:
            ConfigError: no such experiment.
            StoreError: the reports cannot be read.
        """
        found = self._count(count)
        require(found.arms is not None, "count must be an experiment", count=count)
        assert found.arms is not None
        tally = tally_arms(self._reports(count).read())
        arms = found.arms
        return tally, judge_arms(tally, found.terms.epsilon, alpha=arms.alpha, expected_reports=arms.expected_reports)

    def manifest(self) -> Manifest:
        """Return what devices are told.

        Raises:
            StoreError: nothing is published, or a version that serves is damaged.
        """
        return manifest_of(self.rollout(), self.versions())

    def deliver(self, folder: Path, key: Ed25519PrivateKey | None = None) -> Manifest:
        """Write the manifest and the adapters that it offers into a folder for any web server; the manifest last.

        Args:
            folder: made if it is missing.
            key: signs the manifest; to be given again wherever the one before was signed.

        Raises:
            ConfigError: no key where the folder's manifest is signed.
            StoreError: a version that serves is damaged, or the disk refuses.
        """
        with self._locked():
            if key is None:
                check_not_signed(folder / MANIFEST_FILE)
            state, versions = self.rollout(), self.versions()
            manifest = manifest_of(state, versions)
            for version in versions:
                if version.number in serving_numbers(state):
                    write_atomic(folder / version.offer.file, self.adapter(version.number))
            write_atomic(folder / MANIFEST_FILE, dump_manifest(manifest, key))
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

    def _check_may_serve(self, number: int, without_privacy: bool) -> None:
        private = self.version(number).spent is not None
        rule = "version must come from a run with privacy, or be allowed with --without-privacy"
        require(private or without_privacy, rule, version=number)

    def _count(self, name: str) -> Count:
        found = {count.terms.count: count for count in self.rollout().counts}
        require(name in found, f"count must be one of {sorted(found)}", count=name)
        return found[name]

    def _reports(self, count: str) -> ReportFile:
        return ReportFile(self.folder / "reports" / f"{count}.jsonl", count)

    def _save(self, state: Rollout) -> None:
        save_rollout(self.folder, state)


def _fresh_salt() -> str:
    return secrets.token_hex(16)
