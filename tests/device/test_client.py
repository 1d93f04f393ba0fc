"""A node's answer, with the real step of ``shared.step`` looped over users, and with an engine of known deltas."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from numpy.typing import NDArray

from ownlet.device.client import answer, device_noise, place_of
from ownlet.device.train import Engine, clipped_deltas
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector, hash_state, initial_adapter
from ownlet.shared.config import ModelConfig, Plan, WindowConfig
from ownlet.shared.errors import AdapterError, FederationError
from ownlet.shared.lora import attach
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.windows import Windows, cut_windows
from ownlet.shared.wire import Place, TrainRequest


class StepEngine:
    """The contract spelled out, one user and one step after the other."""

    def __init__(self, model: SASRec, spec: AdapterSpec) -> None:
        self.model, self.spec, self.calls = model, spec, 0

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        self.calls += 1
        return np.stack([self._one(vector, user, plan, noise) for user, noise in zip(users, noises, strict=True)])

    def _one(self, vector: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> NDArray[np.float32]:
        local = torch.from_numpy(vector.copy())
        rate, clip = torch.tensor(plan.learning_rate / plan.expected_batch), torch.tensor(plan.clip_norm)
        for _ in range(plan.steps):
            mask = noise.poisson_mask(len(windows), plan.sample_rate)
            drawn = torch.from_numpy(noise.gaussian(self.spec.num_trainable, plan.noise_std))
            rows = [torch.from_numpy(x[mask]) for x in (windows.history, windows.target, windows.valid)]
            local, _, _ = dp_sgd_step(self.model, self.spec, local, *rows, drawn, clip, rate)
        return local.numpy()


class FixedEngine:
    """Every user's delta is the row of a table."""

    def __init__(self, deltas: NDArray[np.float32]) -> None:
        layer = LayerShape(name="x", in_features=2, out_features=deltas.shape[1])
        self.spec = AdapterSpec(layers=(layer,), rank=1, alpha=1.0, base_hash="b" * 64)
        self.deltas = deltas

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        local = np.repeat(vector[None], len(users), axis=0)
        local[:, self.spec.trainable] += self.deltas[[int(user.history[0, 0]) - 1 for user in users]]
        return local


@dataclass
class ListShard:
    engine: Engine
    histories: list[NDArray[np.int64]]

    @property
    def base_hash(self) -> str:
        return self.engine.spec.base_hash

    def windows(self, users: Sequence[int]) -> list[Windows]:
        if max(users) >= len(self.histories):
            raise KeyError(max(users))
        return [cut_windows(self.histories[user], WindowConfig(window_length=5)) for user in users]


@pytest.fixture(scope="module")
def shard() -> ListShard:
    torch.manual_seed(0)
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=10), torch.zeros(51, 4)).eval()
    base_hash = hash_state(model.state_dict())
    spec = attach(model, target_modules=("query", "value"), rank=2, alpha=4.0, base_hash=base_hash)
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 51, size=n) for n in (12, 3, 1, 0, 9, 7)]
    return ListShard(StepEngine(model, spec), histories)


def _request(shard: ListShard, **changes: object) -> TrainRequest:
    spec = shard.engine.spec
    request = TrainRequest(
        vector=initial_adapter(spec, seed=0),
        round=2,
        version=1,
        base_hash=spec.base_hash,
        plan=Plan(steps=2, learning_rate=0.5, sample_rate=0.7, clip_norm=1.0, noise_multiplier=0.1),
        unit="window",
        clip_norm=0.2,
        users=(0, 1, 2, 3, 4, 5),
        seed=9,
    )
    return replace(request, **changes)  # type: ignore[arg-type]


def _fixed(deltas: list[list[float]]) -> ListShard:
    table = np.array(deltas, dtype=np.float32)
    return ListShard(FixedEngine(table), [np.array([user + 1, user + 1]) for user in range(len(deltas))])


def test_the_answer_is_the_sum_of_what_each_user_gives_alone(shard: ListShard) -> None:
    request = _request(shard)
    reply = answer(request, shard)
    alone = [
        clipped_deltas(
            shard.engine, request.vector, shard.windows([user]), request.plan, [device_noise(9, 2, user)], 0.2
        )[0].astype(np.float64)
        for user in request.users
    ]
    np.testing.assert_allclose(reply.total, np.sum(alone, axis=0), atol=1e-6)
    assert reply.total.dtype == np.float32
    assert (reply.round, reply.version, reply.base_hash, reply.num_users) == (2, 1, shard.base_hash, 6)
    assert all(np.linalg.norm(delta) <= 0.2 * (1 + 1e-6) for delta in alone)


@pytest.mark.parametrize("users_at_once", [1, 4, 6, 100])
def test_the_answer_does_not_depend_on_how_many_users_are_trained_together(
    shard: ListShard, users_at_once: int
) -> None:
    request = _request(shard)
    expected = answer(request, shard).total
    assert isinstance(shard.engine, StepEngine)
    before = shard.engine.calls
    memory_bytes = users_at_once * 16 * shard.engine.spec.size
    np.testing.assert_allclose(answer(request, shard, memory_bytes=memory_bytes).total, expected, atol=1e-6)
    assert shard.engine.calls - before == -(-6 // users_at_once)


def test_the_order_of_users_does_not_matter(shard: ListShard) -> None:
    forwards, backwards = _request(shard), _request(shard, users=(5, 4, 3, 2, 1, 0))
    np.testing.assert_allclose(answer(forwards, shard).total, answer(backwards, shard).total, atol=1e-6)


def test_large_deltas_are_clipped_and_small_ones_are_not() -> None:
    shard = _fixed([[3.0, 4.0], [0.1, 0.0], [0.0, 0.0]])
    reply = answer(_request(shard, clip_norm=1.0, users=(0, 1, 2), unit="user"), shard)
    np.testing.assert_allclose(reply.total, [0.6 + 0.1, 0.8], atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_one_user_moves_the_sum_by_at_most_the_clip_norm_whatever_its_numbers_are(bad: float) -> None:
    shard = _fixed([[0.3, 0.0], [bad, bad]])
    reply = answer(_request(shard, clip_norm=1.0, users=(0, 1), unit="user"), shard)
    assert np.isfinite(reply.total).all()
    assert np.linalg.norm(reply.total - [0.3, 0.0]) <= 1.0 + 1e-5


def test_without_a_seed_noise_is_fresh_each_time(shard: ListShard) -> None:
    request = _request(shard, seed=None)
    assert not np.array_equal(answer(request, shard).total, answer(request, shard).total)


def test_noise_differs_between_users_and_rounds_and_repeats_with_the_seed() -> None:
    draws = [device_noise(1, *key).gaussian(4, 1.0).tolist() for key in ((1, 1), (1, 2), (2, 1), (1, 1))]
    assert draws[0] == draws[3]
    assert draws[0] != draws[1] != draws[2] != draws[0]
    server = AesNoise.seeded(1, "server", 1).gaussian(4, 1.0).tolist()
    assert server not in draws


@pytest.mark.parametrize(
    ("changes", "error", "rule"),
    [
        ({"base_hash": "c" * 64}, FederationError, "base must be"),
        ({"users": (0, 0)}, FederationError, "must not repeat"),
        ({"users": (0, 99)}, FederationError, "hosted by this node"),
        ({"plan": Plan()}, FederationError, "without noise"),
        ({"vector": np.zeros(3, np.float32)}, AdapterError, "shape"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(
    shard: ListShard, changes: dict[str, object], error: type[Exception], rule: str
) -> None:
    with pytest.raises(error, match=rule):
        answer(_request(shard, **changes), shard)


def test_a_global_adapter_that_is_not_finite_is_refused(shard: ListShard) -> None:
    vector = initial_adapter(shard.engine.spec, seed=0)
    vector[0] = np.nan
    with pytest.raises(AdapterError, match="finite"):
        answer(_request(shard, vector=vector), shard)


def test_a_node_without_a_place_hosts_everybody_and_a_wrong_place_is_refused() -> None:
    def context(**config: object) -> Context:
        named = {key.replace("_", "-"): value for key, value in config.items()}
        return Context(run_id=1, node_id=2, node_config=named, state=RecordDict(), run_config={})  # type: ignore[arg-type]

    assert place_of(context()) == Place(partition=0, num_partitions=1)
    assert place_of(context(partition_id=3, num_partitions=4)) == Place(partition=3, num_partitions=4)
    with pytest.raises(FederationError, match="partition-id"):
        place_of(context(partition_id=4, num_partitions=4))


def test_progress_tells_every_group_of_users_once(shard: ListShard) -> None:
    told: list[tuple[int, int]] = []
    answer(_request(shard), shard, memory_bytes=4 * 16 * shard.engine.spec.size, on_users=lambda *n: told.append(n))
    assert told == [(4, 6), (2, 6)]
