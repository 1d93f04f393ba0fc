"""Trains the personal adapter, and keeps it only while it is worth having (``device/guard.py``)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ownlet.device.adapters import Shared
from ownlet.device.guard import Drift, Guard, held_out_row, watch
from ownlet.device.timeline import KnownEvents
from ownlet.device.train import LocalEngine
from ownlet.device.training import Cancel, Halted, OnStep, Task, run_task
from ownlet.device.user_state import UserState
from ownlet.shared.adapter import Vector
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import Windows, cut_windows

__all__ = ["Learner", "TrainingReport"]

_KIND = "personal"


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What became of a call of ``train``. Losses are private: they stay on the device.

    Args:
        steps_done: steps taken so far, those of earlier calls that were stopped included.
        steps: how many the plan has; fewer done means that the training was stopped and can go on.
        version: the personal version that was published; None where none was.
        outcome: why, in words.
        held_out: events that judged it.
        loss_shared: mean loss on them with the shared adapter alone; NaN where nothing was judged.
        loss_before: with what served before.
        loss_after: with what was trained.
    """

    steps_done: int
    steps: int
    version: int | None
    outcome: str
    held_out: int = 0
    loss_shared: float = math.nan
    loss_before: float = math.nan
    loss_after: float = math.nan

    @property
    def kept(self) -> bool:
        """Whether the trained adapter serves now."""
        return self.version is not None


class Learner:
    """The personal adapter's training; its caller holds the state folder."""

    def __init__(self, engine: LocalEngine, state: UserState, windows: WindowConfig, guard: Guard) -> None:
        """Take what it works with."""
        self._engine, self._state, self._windows, self._guard = engine, state, windows, guard

    def train(
        self, plan: Plan, noise: NoiseSource, cancel: Cancel | None = None, on_step: OnStep | None = None
    ) -> TrainingReport:
        """Train from what serves; see ``Personalizer.train``."""
        self.watch_drift()
        shared, _ = self._state.adapters()
        start = self._state.serving()
        halted = self._state.halted(_KIND)
        task, judges = self._task(start, plan, halted.until if halted else None)
        if halted is not None and halted.identity != task.identity:
            halted, (task, judges) = None, self._task(start, plan, None)
        if judges is None:
            few = f"fewer than {self._guard.min_events} known events"
            return TrainingReport(steps_done=0, steps=plan.steps, version=None, outcome=few)
        vector, done = run_task(self._engine, task, noise, halted=halted, cancel=cancel, on_step=on_step)
        if done < plan.steps:
            self._state.halt(_KIND, Halted(identity=task.identity, vector=vector, steps_done=done, until=task.until))
            return TrainingReport(steps_done=done, steps=plan.steps, version=None, outcome="stopped; call again")
        report = self._publish_if_no_worse(vector, start, shared, plan, judges)
        self._state.finish(_KIND, task.until)
        return report

    def watch_drift(self) -> Drift:
        """Count hits on the events since the last look; take the personal adapter back where it is behind."""
        drift = self.drift
        events = self._state.events()
        shared, personal = self._state.adapters()
        outcomes = ""
        if personal is not None:
            new = np.flatnonzero(events.sequences > drift.until)[-self._guard.window :]
            both = (personal.on(shared), shared.vector)
            outcomes = watch(self._engine, *both, events.numbers, new, self._guard.k, events.context)
        drift = drift.add(outcomes, max(drift.until, events.last), self._guard.window)
        if drift.is_behind(self._guard.significance):
            self._state.personal.store.set_current(0)
            drift = Drift(until=drift.until)
        self._state.history.put("drift", drift.to_json())
        return drift

    @property
    def drift(self) -> Drift:
        """The counters as they stood at the last look."""
        return Drift.from_json(self._state.history.get("drift"))

    def restart_drift(self) -> None:
        """Forget all outcomes: what serves has changed."""
        self._state.history.put("drift", Drift(until=self._state.events().last).to_json())

    def judge_again(self) -> None:
        """Where the shared adapter has changed, keep the personal one if it is no worse on top, else retire it."""
        shared, personal = self._state.shared.current(), self._state.personal.current()
        if personal is None or personal.stands_on == shared.digest:
            return
        events = self._state.events()
        if personal.frozen_digest == shared.frozen_digest and len(events.numbers) >= 2:
            judges, candidate = self._judges(events), personal.on(shared)
            if self._engine.loss(candidate, judges)[0] <= self._engine.loss(shared.vector, judges)[0]:
                self._state.personal.publish(candidate, shared, {"carried_from": personal.number})
                return
        self._state.personal.store.set_current(0)
        self.restart_drift()

    def _task(self, start: Vector, plan: Plan, until: int | None) -> tuple[Task, Windows | None]:
        """Return the training and the row of events that it keeps out to be judged by; None where there are too few."""
        events = self._state.events(until)
        judges = self._judges(events) if len(events.numbers) >= self._guard.min_events else None
        trained = len(events.numbers) - (0 if judges is None else _num_judging(judges))
        windows = cut_windows(events.numbers[:trained], self._windows, events.context)
        return Task(kind=_KIND, start=start, windows=windows, plan=plan, until=events.last), judges

    def _judges(self, events: KnownEvents) -> Windows:
        row_length = self._windows.row_length
        held_out = self._guard.num_held_out(len(events.numbers), row_length)
        return held_out_row(events.numbers, held_out, row_length, events.context)

    def _publish_if_no_worse(
        self, vector: Vector, start: Vector, shared: Shared, plan: Plan, judges: Windows
    ) -> TrainingReport:
        held_out = _num_judging(judges)
        losses = {
            name: float(self._engine.loss(judged, judges)[0])
            for name, judged in (("loss_shared", shared.vector), ("loss_before", start), ("loss_after", vector))
        }
        told: dict[str, Any] = {**losses, "steps_done": plan.steps, "steps": plan.steps, "held_out": held_out}
        if not losses["loss_after"] <= min(losses["loss_before"], losses["loss_shared"]):
            return TrainingReport(**told, version=None, outcome="worse on held-out events; what served before stays")
        published = self._state.personal.publish(vector, shared, {**losses, "held_out": held_out, "steps": plan.steps})
        return TrainingReport(**told, version=published.number, outcome="no worse on held-out events; serves now")


def _num_judging(judges: Windows) -> int:
    return int(judges.valid.sum())
