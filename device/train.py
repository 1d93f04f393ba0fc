"""The contract of local training, the same for every engine.

An engine takes the global adapter, windows, a public plan and a source of randomness, and returns what the adapter
became. Two engines that are given equal masks and noise return equal vectors, to float tolerance: a test pins it.

For each user, for each of the plan's steps, in this order: ``noise.poisson_mask(num_windows, plan.sample_rate)``
chooses the batch; ``noise.negatives`` gives every window its candidates, where the plan has any
(``shared.candidates``); ``noise.gaussian(num_trainable, plan.noise_std)`` is added to the sum of the clipped gradients,
also when the batch is empty; the sum is divided by ``plan.expected_batch`` and the adapter moves by the learning rate
against it. Where the plan has weight decay, the same step also takes ``plan.decay`` times the trained numbers, as they
were before it, away from them: a program's ``step`` does not know of it, so its host subtracts it from what the step
returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.alternate import Part
from ownlet.shared.config import Plan
from ownlet.shared.delta import clip_to_norm, delta_of
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import Windows

__all__ = ["Engine", "LocalEngine", "TrainsParts", "clipped_deltas", "local_deltas", "train_each"]


class Engine(Protocol):
    """Trains adapters locally. Implementations: ``opacus``, ``executorch`` and the simulation's ``cohort``."""

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that this engine trains."""
        ...

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user, each starting from ``vector``.

        Args:
            vector: (P,) the global adapter.
            users: the windows of each user; one element on a device.
            plan: the public numbers.
            noises: one source per user.

        Returns:
            (users, P) the trained adapters.
        """
        ...


@runtime_checkable
class TrainsParts(Protocol):
    """An engine that can train only A or only B, whose trained tensors are not fixed as a program's are."""

    def of_part(self, part: Part) -> Engine:
        """Return the engine that trains a part of this one's adapter; made once.

        Raises:
            ConfigError: this engine's adapter does not train both A and B.
        """
        ...


class LocalEngine(Engine, Protocol):
    """An engine that also serves: all that one device needs. Safe to call from several threads."""

    def check_plan(self, plan: Plan) -> None:
        """Raise ConfigError where the engine cannot run the plan: asked before anything is charged."""
        ...

    def steps(self, vector: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Iterator[Vector]:
        """Train one adapter and yield it after each of the plan's steps, so that a training can stop in between.

        Raises:
            AdapterError: the training diverged.
        """
        ...

    def score(
        self, vector: Vector, history: NDArray[np.int64], context: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Score every item as the next one.

        Args:
            vector: (P,) the adapter.
            history: (num_events,) item numbers in time order.
            context: (max(1, num_events), fields) rows from ``shared.context`` of the moment after each event, the last
                that of the request; None where nothing is known.

        Returns:
            (num_items + 1,); number 0 is padding.
        """
        ...

    def recommend(
        self,
        vector: Vector,
        history: NDArray[np.int64],
        barred: NDArray[np.bool_],
        context: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return items and scores, best first, without those that ``barred`` (num_items + 1,) marks."""
        ...

    def loss(self, vector: Vector, windows: Windows) -> NDArray[np.float32]:
        """Return the loss of every window, (num_windows,)."""
        ...


def train_each(
    train_user: Callable[[Vector, Windows, Plan, NoiseSource], Vector],
    spec: AdapterSpec,
    vector: Vector,
    users: Sequence[Windows],
    plan: Plan,
    noises: Sequence[NoiseSource],
) -> NDArray[np.float32]:
    """Be the ``train`` of an engine that takes one user after the other.

    Raises:
        AdapterError: the vector does not fit the spec.
        ConfigError: not as many sources as users.
    """
    require(len(users) == len(noises), "users and noises must be equally many", users=len(users), noises=len(noises))
    start = spec.check(vector)
    trained = [train_user(start, windows, plan, noise) for windows, noise in zip(users, noises, strict=True)]
    return np.stack(trained) if trained else np.zeros((0, spec.size), np.float32)


def clipped_deltas(
    engine: Engine,
    vector: Vector,
    users: Sequence[Windows],
    plan: Plan,
    noises: Sequence[NoiseSource],
    clip_norm: float,
) -> NDArray[np.float32]:
    """Train every user and return their deltas, each of L2 norm at most ``clip_norm``, (users, num_trainable)."""
    return clip_to_norm(local_deltas(engine, vector, users, plan, noises), clip_norm)


def local_deltas(
    engine: Engine, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
) -> NDArray[np.float32]:
    """Train every user and return their deltas, (users, num_trainable), of any norm: private, never to be sent."""
    return delta_of(engine.spec, engine.train(vector, users, plan, noises), vector)
