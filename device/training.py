"""Local trainings that can stop between two steps and go on later, in this process or the next.

What was reached is kept in one file, whole or absent, sealed where the app gave a key. It is taken up again only by the
training that it belongs to: same start, same events, same plan. The remaining steps draw fresh masks and noise, which
is the same mechanism; and since nothing of a training that has stopped has left the device, it is not charged again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ownlet.device.train import LocalEngine
from ownlet.shared.adapter import Vector
from ownlet.shared.config import Plan
from ownlet.shared.errors import DataError
from ownlet.shared.noise import NoiseSource
from ownlet.shared.seal import Seal
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack
from ownlet.shared.windows import Windows

__all__ = ["Cancel", "Halted", "OnStep", "Task", "run_task"]

OnStep = Callable[[int, int], None]
"""Told how many steps are done, and how many there are."""

_PURPOSE = b"training"


class Cancel(Protocol):
    """Asks a training to stop between two steps; a ``threading.Event`` or an ``asyncio.Event`` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""
        ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training: where it starts, on what, by which public numbers.

    Args:
        kind: what it is for: trainings of another kind never go on from it.
        start: (P,) the adapter to start from.
        windows: the examples.
        plan: the public numbers.
        until: sequence number of the last event that it reads, so that it can go on although more were recorded.
    """

    kind: str
    start: Vector
    windows: Windows
    plan: Plan
    until: int

    @property
    def identity(self) -> str:
        """SHA-256 of all that the training is."""
        digest = hashlib.sha256(json.dumps([self.kind, asdict(self.plan)], sort_keys=True).encode())
        windows = self.windows
        context = [] if windows.context is None else [windows.context]
        for array in (self.start, windows.history, windows.target, windows.valid, *context):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Halted:
    """What a stopped training had reached.

    Args:
        identity: of its task.
        vector: (P,) the adapter so far.
        steps_done: steps taken.
        until: of its task.
        charge: the ledger entry that paid for all of its steps; 0 where nothing was charged.
    """

    identity: str
    vector: Vector
    steps_done: int
    until: int
    charge: int = 0

    def save(self, path: Path, seal: Seal) -> None:
        """Write the file, atomically.

        Raises:
            OSError: the disk refuses.
        """
        numbers = {"steps_done": self.steps_done, "until": self.until, "charge": self.charge}
        words = {"identity": self.identity, **{name: str(number) for name, number in numbers.items()}}
        write_atomic(path, seal.seal(pack({"vector": self.vector}, words), _PURPOSE))

    @classmethod
    def load(cls, path: Path, seal: Seal) -> Halted | None:
        """Read what ``save`` wrote; None where there is nothing, or nothing readable: then a training starts over."""
        with suppress(OSError, ValueError, KeyError, DataError):
            tensors, words = unpack(seal.open(path.read_bytes(), _PURPOSE))
            numbers = {name: int(words[name]) for name in ("steps_done", "until", "charge")}
            return cls(identity=words["identity"], vector=tensors["vector"], **numbers)
        return None


def run_task(
    engine: LocalEngine,
    task: Task,
    noise: NoiseSource,
    *,
    halted: Halted | None = None,
    cancel: Cancel | None = None,
    on_step: OnStep | None = None,
) -> tuple[Vector, int]:
    """Take the steps of a task that are left.

    Args:
        engine: trains.
        task: what to train.
        noise: masks and noise.
        halted: where an earlier call stopped, of the same task.
        cancel: looked at before every step.
        on_step: told after every step.

    Returns:
        the adapter (P,) and how many of the plan's steps are done in all.

    Raises:
        AdapterError: the training diverged.
    """
    vector, done = (task.start, 0) if halted is None else (halted.vector, halted.steps_done)
    if done >= task.plan.steps:
        return vector, done
    rest = replace(task.plan, steps=task.plan.steps - done)
    steps: Any = engine.steps(vector, task.windows, rest, noise)
    while done < task.plan.steps and not (cancel is not None and cancel.is_set()):
        vector, done = next(steps), done + 1
        if on_step is not None:
            on_step(done, task.plan.steps)
    return vector, done
