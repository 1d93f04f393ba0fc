"""A world small enough for closed forms: eight trainable numbers, and an engine that adds each user's point."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from ownlet.device.client import make_client_app
from ownlet.server.rounds import FederationResult, run_rounds
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import Windows
from ownlet.simulations.grid import InProcessGrid

SPEC = AdapterSpec(
    layers=(LayerShape(name="layer", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64
)
START: Vector = np.linspace(-1, 1, SPEC.size, dtype=np.float32)


def point_of(user: int) -> Vector:
    return np.float32(0.1) * np.sin(np.arange(1, SPEC.num_trainable + 1, dtype=np.float32) * (user + 1))


class PointEngine:
    """Adds the user's point, and the plan's noise once, to the trainable part; NaN for users in ``broken``."""

    def __init__(self, broken: Sequence[int] = ()) -> None:
        self.spec, self.broken = SPEC, broken

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        trained = np.repeat(vector[None], len(users), axis=0)
        for row, windows, noise in zip(trained, users, noises, strict=True):
            user = int(windows.history[0, 0]) - 1
            row[SPEC.trainable] += point_of(user) + noise.gaussian(SPEC.num_trainable, plan.noise_std)
            if user in self.broken:
                row[-1] = np.nan
        return trained


@dataclass
class TinyShard:
    engine: PointEngine = field(default_factory=PointEngine)
    base_hash: str = SPEC.base_hash

    def windows(self, users: Sequence[int]) -> list[Windows]:
        rows = [np.full((1, 2), user + 1, dtype=np.int64) for user in users]
        return [Windows(history=row, target=row, valid=np.ones((1, 2), np.float32)) for row in rows]


class TamperingGrid(InProcessGrid):
    """Changes the list of replies to training requests before the server sees it."""

    tamper: Callable[[list[Message]], list[Message]] = staticmethod(lambda replies: replies)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        return self._tampered(super().send_and_receive(messages, timeout=timeout))

    def pull_messages(self, message_ids: Any) -> list[Message]:
        return self._tampered(super().pull_messages(message_ids))

    def _tampered(self, replies: list[Message]) -> list[Message]:
        training = [reply for reply in replies if reply.metadata.message_type == "train"]
        return self.tamper(training) if training else replies


@dataclass
class World:
    """Runs federations over twenty users and knows what the adapter must become."""

    num_users: int = 20
    spec: AdapterSpec = SPEC
    start: Vector = field(default_factory=START.copy)

    def grid(self, num_nodes: int = 1, shard: TinyShard | None = None, simulated: bool = True) -> TamperingGrid:
        tiny = shard or TinyShard()
        return TamperingGrid(make_client_app(lambda context: tiny, simulated=simulated), num_nodes)

    def run(
        self, config: FederationConfig, num_nodes: int = 1, grid: InProcessGrid | None = None, **options: Any
    ) -> FederationResult:
        quick = replace(config, reply_timeout_seconds=0.02)  # every node answers when it is asked, or never
        return run_rounds(grid or self.grid(num_nodes), quick, SPEC, self.start, self.num_users, **options)

    def shard(self) -> TinyShard:
        return TinyShard()

    def clipped_deltas(self, clip_norm: float) -> NDArray[np.float32]:
        deltas = np.stack([point_of(user) for user in range(self.num_users)])
        norms = np.linalg.norm(deltas.astype(np.float64), axis=1)
        return deltas * np.minimum(1.0, clip_norm / norms)[:, None].astype(np.float32)

    def expected_step(self, config: FederationConfig, users: Sequence[int]) -> Vector:
        """One noiseless round in which these users' deltas enter: closed form."""
        deltas = [point_of(user).astype(np.float64) for user in users]
        clipped = [delta * min(1.0, config.clip_norm / np.linalg.norm(delta)) for delta in deltas]
        moved = self.start.astype(np.float64)
        moved[SPEC.trainable] += np.sum(clipped, axis=0) / (config.cohort_rate * self.num_users)
        return moved.astype(np.float32)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def noiseless() -> FederationConfig:
    """One round, everybody, clipped, no noise."""
    return FederationConfig(rounds=1, cohort_rate=1.0, clip_norm=0.15, noise_multiplier=0.0, seed=1)


@pytest.fixture
def broken_shard() -> Callable[[Sequence[int]], TinyShard]:
    return lambda broken: TinyShard(engine=PointEngine(broken))
