"""Takes part in a round: charges, trains from the shared adapter under the server's terms, and lays the update out."""

from __future__ import annotations

from ownlet.device.adapters import Shared
from ownlet.device.ledger import Ledger
from ownlet.device.release import Release, charge_for, make_release, release_identity, terms_identity
from ownlet.device.train import LocalEngine
from ownlet.device.training import Cancel, Halted, OnStep, Task, run_task
from ownlet.device.user_state import UserState
from ownlet.shared.config import FederationConfig
from ownlet.shared.delta import Update
from ownlet.shared.errors import PrivacyError, StateError
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import cut_windows

__all__ = ["Contributor"]

_KIND = "update"


class Contributor:
    """The device's part in a federated run; its caller holds the state folder."""

    def __init__(self, engine: LocalEngine, state: UserState, ledger: Ledger) -> None:
        """Take what it works with."""
        self._engine, self._state, self._ledger = engine, state, ledger

    def waiting(self, terms: FederationConfig, round_number: int | None) -> Release | None:
        """Return the update that answers these terms already, if one lies in the outbox."""
        release, (shared, _) = self._outbox(), self._state.adapters()
        wanted = release_identity(terms, shared, round_number)
        return release if release is not None and release.identity == wanted else None

    def train(
        self,
        terms: FederationConfig,
        round_number: int | None,
        noise: NoiseSource,
        cancel: Cancel | None = None,
        on_step: OnStep | None = None,
    ) -> Release | None:
        """Charge, train and put the update into the outbox; None where ``cancel`` stopped it. See ``Personalizer``."""
        shared, _ = self._state.adapters()
        halted = self._state.halted(_KIND)
        task = self._task(shared, terms, halted.until if halted else None)
        if halted is not None and not (halted.identity == task.identity and self._ledger.is_open(halted.charge)):
            halted, task = None, self._task(shared, terms, None)
        paid = self._ledger.charge(charge_for(terms, shared, round_number)) if halted is None else halted.charge
        vector, done = run_task(self._engine, task, noise, halted=halted, cancel=cancel, on_step=on_step)
        if done < task.plan.steps:
            reached = Halted(identity=task.identity, vector=vector, steps_done=done, until=task.until, charge=paid)
            self._state.halt(_KIND, reached)
            return None
        before = self._outbox()
        release = make_release(vector, terms, shared, round_number=round_number, charge=paid, before=before)
        try:
            release.save(self._state.folder.outbox, self._state.seal)
        except OSError as error:
            raise StateError(f"outbox must accept an update, got {self._state.folder.outbox}: {error}") from error
        self._state.finish(_KIND, task.until)
        return release

    def hand_out(self, release: Release, terms: FederationConfig) -> Update:
        """Commit the charge, if that is not done yet, and return what leaves."""
        if self._ledger.is_open(release.charge):
            self._ledger.commit(release.charge, release.digest)
        elif not self._is_paid(release):
            raise PrivacyError(f"update in the outbox must have its charge in the ledger, got charge={release.charge}")
        shared, _ = self._state.adapters()
        return Update(
            delta=release.delta,
            adapter_version=shared.version,
            base_hash=shared.spec.base_hash,
            event=charge_for(terms, shared).event if terms.unit == "window" else "",
            ledger_seq=self._ledger.seq,
            ledger_head=self._ledger.head,
            coded=release.coded,
            count=release.count,
        )

    def _outbox(self) -> Release | None:
        return Release.load(self._state.folder.outbox, self._state.seal)

    def _is_paid(self, release: Release) -> bool:
        paid = (release.charge, release.digest)
        commits = (entry for entry in self._ledger.entries() if entry["state"] == "commit")
        return any((entry["of"], entry["update"]) == paid for entry in commits)

    def _task(self, shared: Shared, terms: FederationConfig, until: int | None) -> Task:
        events = self._state.events(until)
        windows = cut_windows(events.numbers, terms.windows, events.context)
        kind = f"{_KIND} {terms_identity(terms, shared)}"  # a charge pays for the terms that it was made for, only
        return Task(kind=kind, start=shared.vector, windows=windows, plan=terms.plan, until=events.last)
