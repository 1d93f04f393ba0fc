"""The device's front door: record what a user does, recommend, train on the spot, and hand out a private update.

Runs from a bundle alone. Everything personal (events, adapters, ledger) stays in one folder of the app's choosing, and
everything that changes it survives a kill at any instant: ``device/state.py`` lists the files.

    >>> with Personalizer.open(bundle, state) as personalizer:
    ...     for second, item in enumerate(["item-3", "item-1", "item-4", "item-1", "item-5"]):
    ...         personalizer.record(item, timestamp=1_700_000_000 + second)
    ...     best = personalizer.recommend(3)  # what to show next
    ...     report = personalizer.train()  # the personal adapter, which stays here
    ...     update = personalizer.update(terms)  # the private contribution to the shared one
    ...     left = personalizer.status().privacy["window"].left  # epsilon that may still be spent
    >>> len(best), report.steps_done, update.adapter_version
    (3, 1, 3)
    >>> 0 < left < terms.target_epsilon
    True

Training holds a lock on the folder; everything else may go on beside it, in other threads and processes. A training can
be stopped between two steps and goes on when it is called again, so with asyncio it is

    cancel = threading.Event()
    report = await asyncio.to_thread(personalizer.train, cancel=cancel)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ownlet.device.adapters import PersonalAdapters, Shared, SharedAdapters
from ownlet.device.budget import Budget
from ownlet.device.contributor import Contributor
from ownlet.device.counter import HitCounter
from ownlet.device.engines import EngineName, open_engine
from ownlet.device.event import checked_context, checked_timestamp
from ownlet.device.follow import Fetch, Follower
from ownlet.device.guard import Drift, Guard
from ownlet.device.history import EventHistory
from ownlet.device.learner import Learner, TrainingReport
from ownlet.device.ledger import Ledger, Spent
from ownlet.device.policy import Conditions, Policy, Reading
from ownlet.device.release import check_terms
from ownlet.device.retention import Retention
from ownlet.device.state import StateFolder
from ownlet.device.timeline import KnownEvents, Timeline
from ownlet.device.training import Cancel, OnStep
from ownlet.device.user_state import UserState
from ownlet.shared.adapter import load_adapter
from ownlet.shared.bundle_items import read_catalogue
from ownlet.shared.config import PERSONAL_PLAN, FederationConfig, Plan
from ownlet.shared.counters import CountReport
from ownlet.shared.delta import Update
from ownlet.shared.domains import load_domains
from ownlet.shared.errors import ConfigError, NotEligibleError, StateBusyError, StateError, require
from ownlet.shared.manifest import ADAPTER_FILE, ITEMS_FILE, read_manifest
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.seal import Keys, Seal
from ownlet.shared.store import VersionStore

__all__ = ["Personalizer", "Recommendation", "Status", "TrainingReport", "VersionInfo"]

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One recommended item: its original id, its title and the model's score (a logit; of the last stage)."""

    item: str
    title: str
    score: float


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """A personal version: its number, what it was made from, when (unix seconds), and whether it serves."""

    number: int
    parent: int | None
    created: float
    current: bool
    shared_version: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """How the device stands. Everything in it is private.

    Args:
        events: recorded events of items that the bundle knows.
        unknown_events: recorded events of items that it does not know yet.
        shared_version: version of the shared adapter in use.
        shared_digest: SHA-256 of its vector.
        domain: the domain whose shared adapter that is; None where it is everybody's.
        personal_version: the personal version that serves on top; None where the shared adapter serves alone.
        drift: hits of both on the latest events.
        privacy: spent and left, per unit, at the budget's delta.
        waiting_for: what the policy demands before the next training, one line each; empty when it may run.
        halted: kinds of training that were stopped and can go on.
        has_update: whether an update lies in the outbox.
        damaged: personal versions that cannot be used, and why.
    """

    events: int
    unknown_events: int
    shared_version: int
    shared_digest: str
    domain: str | None
    personal_version: int | None
    drift: Drift
    privacy: dict[str, Spent]
    waiting_for: tuple[str, ...]
    halted: tuple[str, ...]
    has_update: bool
    damaged: tuple[str, ...]


class Personalizer:
    """One user's recommender; safe to use from several threads, and from several processes on one state folder."""

    def __init__(
        self,
        bundle: Path,
        state: Path,
        *,
        engine: EngineName,
        policy: Policy,
        conditions: Conditions | None,
        budget: Budget | None,
        retention: Retention,
        guard: Guard,
        key: bytes | None,
        rollout_keys: Sequence[bytes] | None,
        clock: Callable[[], float],
    ) -> None:
        """Open a bundle and a user's state; see ``open``."""
        manifest = read_manifest(bundle)
        spec, vector, version = load_adapter(bundle / ADAPTER_FILE, base_hash=manifest.base_hash)
        self._manifest, self._clock = manifest, clock
        self._policy, self._conditions = policy, conditions
        self._catalogue = read_catalogue(bundle / ITEMS_FILE, manifest.num_items)
        self._engine = open_engine(engine, bundle, manifest, spec)
        keys, folder = Keys.of(key), StateFolder.make(state)
        seal, may_start = Seal(keys.state), not folder.has_trained
        self._history = EventHistory(folder.history, seal=seal, retention=retention)
        try:
            self._ledger = Ledger(folder.ledger, budget=budget, key=keys.ledger, may_start=may_start, clock=clock)
            bundled = Shared(spec=spec, vector=vector, version=version)
            self._state = UserState(
                folder,
                seal,
                self._history,
                Timeline(self._history, self._catalogue.numbers, manifest.num_items, manifest.context),
                SharedAdapters(VersionStore(folder.shared, clock=clock), bundled),
                PersonalAdapters(VersionStore(folder.personal, clock=clock), spec, seal),
            )
            self._learner = Learner(self._engine, self._state, manifest.windows, guard)
            self._contributor = Contributor(self._engine, self._state, self._ledger)
            self._follower = Follower(self._history, self._state.shared, rollout_keys)
            self._counter = HitCounter(self._history, self._ledger, folder)
            with suppress(StateBusyError), folder.held():
                self._learner.judge_again()  # after a new bundle; the next open does it if a training holds the state
        except BaseException:
            self._history.close()
            raise

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        state_dir: str | Path,
        *,
        engine: EngineName = "executorch",
        policy: Policy | None = None,
        conditions: Conditions | None = None,
        budget: Budget | None = None,
        retention: Retention | None = None,
        guard: Guard | None = None,
        key: bytes | None = None,
        rollout_keys: Sequence[bytes] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Personalizer:
        """Open a bundle for one user.

        Events, personal adapter and ledger of earlier sessions are taken up again. After a new bundle of the same base
        the personal adapter stays if it is no worse on top of the new shared one; after a new base it is set aside.

        Args:
            bundle: the folder that export wrote.
            state_dir: the user's own folder; made if it is missing.
            engine: ``executorch`` runs the bundle's program; ``opacus`` trains with PyTorch and Opacus, on a bundle
                that was exported with its base.
            policy: when the device may train; by default always.
            conditions: tells charging, network, temperature and the like, where the policy asks for them.
            budget: how much privacy may ever be spent, for each unit; by default what the ledger says, and epsilon 8 at
                delta 1e-6 where it is new.
            retention: how long events are kept; by default the latest 100,000.
            guard: how personal adapters are judged.
            key: 32 random bytes from the platform's key store. With it, events and personal adapters are encrypted at
                rest and the ledger cannot be forged without it.
            rollout_keys: the registry's public keys, 32 bytes each, pinned by the app: ``follow`` then takes only
                manifests that one of them signed. None takes unsigned ones, too.
            clock: unix seconds.

        Raises:
            BundleError: the bundle is incomplete, altered, or newer than this ownlet.
            AdapterError: an adapter does not belong to its base, or is damaged.
            DataError: the history cannot be read, or was made with another key.
            PrivacyError: the ledger does not verify, or is missing beside adapters that were trained.
        """
        return cls(
            Path(bundle),
            Path(state_dir),
            engine=engine,
            policy=policy or Policy(),
            conditions=conditions,
            budget=budget,
            retention=retention or Retention(),
            guard=guard or Guard(),
            key=key,
            rollout_keys=rollout_keys,
            clock=clock,
        )

    def __enter__(self) -> Personalizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the history. All state is on disk already."""
        self._history.close()

    def record(self, item: str, timestamp: float | None = None, context: Mapping[str, str] | None = None) -> None:
        """Remember an event; once this returns, it survives a crash.

        An item that the catalogue lacks is kept, and ignored until a bundle knows it.

        Args:
            item: the item's original id.
            timestamp: unix seconds; by default now.
            context: what the app says of the moment, by name, such as ``{"device": "phone"}``; names and values that
                the bundle does not know are kept, and ignored until one does.

        Raises:
            DataError: an empty item, a timestamp that is not finite, context that is not text, or a disk that refuses.
        """
        self._history.record(item, self._clock() if timestamp is None else timestamp, context)

    def forget(self, *, item: str | None = None, before: float | None = None, user: bool = False) -> int:
        """Delete events, and everything that was made from the user's events: what was learned cannot be unlearned.

        Personal versions, stopped trainings, drift counters and an update that still lies here go with them; the ledger
        stays, because what was spent was spent. Exactly one of the three says what to delete.

        Args:
            item: all events of this item.
            before: all events before this unix second.
            user: everything.

        Returns:
            how many events were deleted. Where there are none, nothing else is touched.

        Raises:
            ConfigError: not exactly one criterion.
            StateBusyError: a training is running.
        """
        given = (item is not None) + (before is not None) + user
        require(given == 1, "exactly one of item, before and user must be given", item=item, before=before, user=user)
        state = self._state
        with state.folder.held():
            if not user and not self._history.count(item=item, before=before):
                return 0
            state.personal.store.clear()  # first: were this cut short, no adapter would remember what is forgotten
            for path in (state.folder.halted("personal"), state.folder.halted("update"), state.folder.outbox):
                path.unlink(missing_ok=True)
            self._counter.forget()
            deleted = self._history.forget(item=item, before=before, everything=user)
            self._learner.restart_drift()
            return deleted

    def recommend(
        self,
        k: int = 10,
        exclude_seen: bool = True,
        candidates: Sequence[str] | None = None,
        *,
        timestamp: float | None = None,
        context: Mapping[str, str] | None = None,
    ) -> list[Recommendation]:
        """Return the k best items, best first; fewer where fewer are left.

        Where the bundle has a ranking stage, the best by ``score`` are its candidates, and it orders them.

        Args:
            k: at most the bundle's ``top_k``.
            exclude_seen: leave out what the user has had.
            candidates: choose among these items only; by default among all.
            timestamp: when they are shown, unix seconds; by default now. Read where the bundle's base reads context.
            context: what the app says of that moment; as in ``record``.

        Raises:
            ConfigError: k is out of range.
            DataError: a candidate that the catalogue lacks, or context that is not text.
        """
        require(1 <= k <= self._manifest.top_k, f"k must be from 1 to {self._manifest.top_k}", k=k)
        timeline = self._state.timeline
        timeline.refresh()
        barred = timeline.seen() if exclude_seen else np.zeros(self._manifest.num_items + 1, np.bool_)
        if candidates is not None:
            others = np.ones_like(barred)
            others[self._catalogue.numbers_of(candidates)] = False
            barred |= others
        recent = timeline.latest(self._manifest.max_length)
        asked = self._asked(recent, timestamp, context)
        items, scores = self._engine.recommend(self._state.serving(), recent.numbers, barred, asked)
        ids, titles = self._catalogue.ids, self._catalogue.titles
        return [
            Recommendation(item=ids[number], title=titles[number], score=float(score))
            for number, score in zip(items[:k], scores[:k], strict=True)
        ]

    def score(
        self, items: Sequence[str], *, timestamp: float | None = None, context: Mapping[str, str] | None = None
    ) -> list[float]:
        """Return the score of each item (original id) as the user's next one; comparable within one call.

        Args:
            items: original ids.
            timestamp: as in ``recommend``.
            context: as in ``record``.

        Raises:
            DataError: an item that the catalogue lacks, or context that is not text.
        """
        numbers = self._catalogue.numbers_of(items)
        self._state.timeline.refresh()
        recent = self._state.timeline.latest(self._manifest.max_length)
        asked = self._asked(recent, timestamp, context)
        scores = self._engine.score(self._state.serving(), recent.numbers, asked)
        return [float(score) for score in scores[numbers]]

    def train(
        self,
        plan: Plan | None = None,
        *,
        noise: NoiseSource | None = None,
        cancel: Cancel | None = None,
        on_step: OnStep | None = None,
    ) -> TrainingReport:
        """Train the personal adapter from where it stands, and keep the outcome if it is not worse.

        It never leaves the device, so it costs no privacy. The latest events judge it: they are not trained on, and the
        outcome serves only if its loss on them is no higher than before, and no higher than the shared adapter's.

        Args:
            plan: the public numbers; by default ``PERSONAL_PLAN``, without noise, with the bundle's objective.
            noise: by default a fresh source keyed by the operating system; another one for tests only.
            cancel: looked at before every step; a training that it stops goes on in the next call.
            on_step: told after every step.

        Raises:
            StateBusyError: another training is running.
            NotEligibleError: the policy does not allow it now.
            AdapterError: the training diverged; what served still does.
            StateError: the disk refuses; what served still does.
        """
        with self._state.folder.held():
            self._check_eligible("personal")
            return self._learner.train(plan or self._personal_plan(), noise or AesNoise(), cancel, on_step)

    def _personal_plan(self) -> Plan:
        manifest = self._manifest
        return replace(PERSONAL_PLAN, objective=manifest.objective, num_negatives=manifest.num_negatives)

    def update(
        self,
        terms: FederationConfig | None = None,
        *,
        round_number: int | None = None,
        noise: NoiseSource | None = None,
        cancel: Cancel | None = None,
        on_step: OnStep | None = None,
    ) -> Update | None:
        """Take part in a round: train from the shared adapter under the server's terms, and return what may leave.

        The ledger is charged, on disk, before the first step. A second call with the same terms and the same shared
        adapter returns the same update and costs nothing; where the terms' wire is sparse, in the same round.

        Args:
            terms: the public numbers of the federated run; by default those in the bundle.
            round_number: of the server's round, for the ledger; needed where the terms' wire is sparse.
            noise: by default a fresh source keyed by the operating system; another one for tests only.
            cancel: looked at before every step; a training that it stops goes on in the next call, at no further cost.
            on_step: told after every step.

        Returns:
            the update; None where ``cancel`` stopped the training.

        Raises:
            ConfigError: no terms, or some that the bundle or a device on its own cannot do: other windows, correlated
                noise, rounds that alternate.
            BudgetExceededError: it would spend more than is left; nothing is charged.
            PrivacyError: the ledger does not verify, or windows share events where they are the unit.
            StateBusyError: another training is running.
            NotEligibleError: the policy does not allow it now.
            AdapterError: the training diverged; the charge stays.
            StateError: the disk refuses; the charge stays.
        """
        terms = terms or self._manifest.federation
        if terms is None:
            raise ConfigError("terms must be given where the bundle carries none, got terms=None")
        check_terms(terms, self._manifest.windows, round_number)
        self._engine.check_plan(terms.plan)
        with self._state.folder.held():
            release = self._contributor.waiting(terms, round_number)
            if release is None:
                self._check_eligible("update")
                release = self._contributor.train(terms, round_number, noise or AesNoise(), cancel, on_step)
            return None if release is None else self._contributor.hand_out(release, terms)

    def adopt(self, adapter: str | Path) -> int:
        """Take a newer shared adapter from the server, without a new bundle; return its version.

        The personal adapter stays on top of it if it is no worse there.

        Args:
            adapter: the file that ``shared.adapter.save_adapter`` wrote.

        Raises:
            AdapterError: damaged, of another base or shape, or not newer.
            StateBusyError: a training is running.
            StateError: the disk refuses.
        """
        with self._state.folder.held():
            try:
                content = Path(adapter).read_bytes()
            except OSError as error:
                raise StateError(f"adapter file must be readable, got {adapter}: {error}") from error
            version = self._state.shared.adopt(content, str(adapter)).version
            self._learner.judge_again()
            return version

    def follow(self, manifest: str | Path, fetch: Fetch) -> int:
        """Do what the registry's manifest asks of this device, and return the version of the shared adapter then.

        Which share of a rollout and which arm of an experiment this device belongs to is decided here, by a secret
        that never leaves. A manifest may also lead back to an older adapter; the personal one stays on top where it is
        no worse. Where the manifest asks for a count, impressions are counted from now on (``shown``, ``report``).

        Args:
            manifest: the file ``rollout.json`` that `ownlet registry deliver` wrote.
            fetch: gets the file of an offer, ``offer.file`` beside the manifest; called only where it is needed.

        Raises:
            StateError: the manifest is altered, older than one that was followed, or not signed by a pinned key; or the
                disk refuses.
            AdapterError: of another base, or the fetched file is not the one that the manifest names.
            StateBusyError: a training is running.
        """
        try:
            told = self._follower.read(Path(manifest).read_bytes())
        except OSError as error:
            raise StateError(f"manifest must be readable, got {manifest}: {error}") from error
        choice = self._follower.choice(told)
        content = self._follower.needed(choice, fetch)  # without the lock: it may take long
        with self._state.folder.held():
            shared = self._follower.adopt(told, choice, content)
            self._learner.judge_again()
            self._counter.begin(told.count, choice.arm, shared.version)
            return shared.version

    def shown(self, hit: bool) -> None:
        """Count one impression: recommendations were shown, and the user took one of them or none.

        Does nothing where the registry asks for no count, or enough were counted.
        """
        self._counter.shown(hit)

    def report(self, *, noise: NoiseSource | None = None) -> CountReport | None:
        """Return what may be said about the impressions of the present count: one bit, private and charged.

        To be called at the end of the count, whatever was shown and taken: when a device reports must not depend on
        what it has to say. A second call returns the same report and costs nothing. Send ``report.to_json()`` without
        anything that names the device.

        Args:
            noise: by default a fresh source keyed by the operating system; another one for tests only.

        Returns:
            the report; None where the registry asks for no count.

        Raises:
            BudgetExceededError: it would spend more than is left of the unit ``user``; nothing is charged.
            PrivacyError: the ledger does not verify.
            StateBusyError: a training is running.
            StateError: the disk refuses; the charge stays.
        """
        with self._state.folder.held():
            return self._counter.report(self._manifest.base_hash, noise or AesNoise())

    def activate(self, domains: str | Path, domain: str | None) -> str | None:
        """Let the shared adapter of a domain serve from now on, until another is activated or a newer one adopted.

        To be called when the domain changes: a user who travels, a period that ends. The personal adapter stays on top
        if it is no worse there; else it is retired, and ``rollback`` brings it back. Updates train from the domain's
        adapter: send them to that domain's run.

        Args:
            domains: the file that ``shared.domains.save_domains`` wrote.
            domain: its name; the file's default serves None and a domain that the file lacks.

        Returns:
            the domain that serves; None for the default.

        Raises:
            AdapterError: damaged, of another base or shape, or older than what serves.
            StateBusyError: a training is running.
            StateError: the disk refuses.
        """
        adapters = load_domains(Path(domains), spec=self._engine.spec)
        with self._state.folder.held():
            active = self._state.shared.activate(adapters, domain)
            self._learner.judge_again()
            return active.domain

    def versions(self) -> list[VersionInfo]:
        """Return the intact personal versions, oldest first."""
        store = self._state.personal.store
        current = store.current()
        return [
            VersionInfo(
                number=version.number,
                parent=version.parent,
                created=version.created,
                current=current is not None and version.number == current.number,
                shared_version=int(version.metadata["shared_version"]),
            )
            for version in store.versions()
        ]

    def rollback(self, version: int | None) -> None:
        """Let an earlier personal version serve; None for the shared adapter alone.

        A version that was made on an earlier shared adapter serves only if it is no worse on top of the present one.

        Raises:
            StateError: no such version, or it is damaged, or belongs to another base.
            StateBusyError: a training is running.
        """
        with self._state.folder.held():
            self._state.personal.use(version)
            self._learner.restart_drift()
            self._learner.judge_again()

    def status(self) -> Status:
        """Return how the device stands: events, versions, hit rates, budget, and what a training waits for."""
        state = self._state
        shared, personal = state.adapters()
        known = len(state.events().numbers)
        return Status(
            events=known,
            unknown_events=len(self._history) - known,
            shared_version=shared.version,
            shared_digest=shared.digest,
            domain=shared.domain,
            personal_version=None if personal is None else personal.number,
            drift=self._learner.drift,
            privacy={unit: self._ledger.spent(unit) for unit in ("window", "user")},
            waiting_for=tuple(self._refusals("update")),
            halted=tuple(kind for kind in ("personal", "update") if state.folder.halted(kind).exists()),
            has_update=state.folder.outbox.exists(),
            damaged=tuple(f"version {found.number}: {found.reason}" for found in state.personal.store.damaged()),
        )

    def _asked(
        self, recent: KnownEvents, timestamp: float | None, context: Mapping[str, str] | None
    ) -> NDArray[np.int64] | None:
        """Return the moment after each event and that of the request; None where the base reads none."""
        said = checked_context(context)
        second = checked_timestamp(self._clock() if timestamp is None else timestamp)
        return recent.moments.asked(second, said) if recent.moments.fields else None

    def _check_eligible(self, kind: Literal["personal", "update"]) -> None:
        reasons = self._refusals(kind)
        if reasons:
            raise NotEligibleError(reasons)

    def _refusals(self, kind: Literal["personal", "update"]) -> list[str]:
        """Return what the policy demands before a training; participations are what costs privacy: updates."""
        now = self._clock()
        new = int((self._state.events().sequences > self._state.finished_until(kind)).sum())
        taken = self._ledger.participations_since(now - _DAY_SECONDS) if kind == "update" else 0
        reading = self._conditions.read() if self._conditions else Reading(local_hour=_local_hour(now))
        return self._policy.refusals(reading, new_events=new, participations_last_day=taken)


def _local_hour(now: float) -> float:
    """Return the time of day, 0 up to 24, at a unix second."""
    local = time.localtime(now)
    return local.tm_hour + local.tm_min / 60
