"""What a node that hosts users may release: every user's ledger is charged first, and the same question costs once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from numpy.typing import NDArray

from ownlet.device.account import Account
from ownlet.device.client import make_client_app
from ownlet.device.ledger import Budget, Ledger
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.config import Plan
from ownlet.shared.errors import PrivacyError
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import Windows
from ownlet.shared.wire import TrainRequest, request_to_records
from ownlet.simulations.grid import InProcessGrid

SPEC = AdapterSpec(
    layers=(LayerShape(name="layer", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64
)
START: Vector = np.linspace(-1, 1, SPEC.size, dtype=np.float32)


def point_of(user: int) -> Vector:
    return np.float32(0.1) * np.sin(np.arange(1, SPEC.num_trainable + 1, dtype=np.float32) * (user + 1))


class PointEngine:
    """Adds the point of a user who has windows, and the plan's noise once."""

    spec = SPEC

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        trained = np.repeat(vector[None], len(users), axis=0)
        for row, windows, noise in zip(trained, users, noises, strict=True):
            row[SPEC.trainable] += noise.gaussian(SPEC.num_trainable, plan.noise_std)
            if len(windows):
                row[SPEC.trainable] += point_of(int(windows.history[0, 0]) - 1)
        return trained


class TinyShard:
    engine, base_hash = PointEngine(), SPEC.base_hash

    def windows(self, users: Sequence[int]) -> list[Windows]:
        rows = [np.full((1, 2), user + 1, dtype=np.int64) for user in users]
        return [Windows(history=row, target=row, valid=np.ones((1, 2), np.float32)) for row in rows]


LOOSE = Budget(epsilon=1e6)


def request(round_number: int = 1, **changes: Any) -> TrainRequest:
    values: dict[str, Any] = {
        "vector": START,
        "round": round_number,
        "version": round_number - 1,
        "base_hash": SPEC.base_hash,
        "plan": Plan(),
        "unit": "user",
        "clip_norm": 0.15,
        "users": (3, 5),
        "noise_multiplier": 1.0,
    }
    return TrainRequest(**{**values, **changes})


def ask(grid: InProcessGrid, asked: TrainRequest) -> Message:
    (reply,) = grid.send_and_receive([Message(request_to_records(asked), grid.get_node_ids()[0], "train")])
    return reply


def total_of(reply: Message) -> Any:
    return reply.content["delta"]["total"].numpy()


def node(folder: Path, budget: Budget, **options: Any) -> InProcessGrid:
    shard, account = TinyShard(), Account(folder, budget)
    return InProcessGrid(make_client_app(lambda context: shard, load_account=lambda context: account, **options), 1)


def states(folder: Path, user: int) -> list[str]:
    return [entry["state"] for entry in Ledger(folder / "ledgers" / f"{user}.jsonl").entries()]


def clipped(user: int) -> Any:
    point = point_of(user).astype(np.float64)
    return point * min(1.0, 0.15 / np.linalg.norm(point))


def test_every_user_is_charged_and_the_sum_is_theirs(tmp_path: Path) -> None:
    reply = ask(node(tmp_path, LOOSE), request())
    np.testing.assert_allclose(total_of(reply), clipped(3) + clipped(5), atol=1e-6)
    assert states(tmp_path, 3) == states(tmp_path, 5) == ["budget", "intent", "commit"]


def test_the_same_request_is_answered_alike_and_charged_once_even_by_a_node_that_was_restarted(tmp_path: Path) -> None:
    plan = Plan(noise_multiplier=1.0, clip_norm=0.1)  # fresh noise in every training
    asked = request(unit="window", plan=plan, clip_norm=9.0)
    first = total_of(ask(node(tmp_path, LOOSE), asked))
    np.testing.assert_array_equal(total_of(ask(node(tmp_path, LOOSE), asked)), first)
    assert states(tmp_path, 3) == ["budget", "intent", "commit"]
    other = total_of(ask(node(tmp_path, LOOSE), request(2, unit="window", plan=plan, clip_norm=9.0)))
    assert (other != first).any()
    assert states(tmp_path, 3).count("intent") == 2


def test_a_user_without_budget_contributes_zero_and_the_others_go_on(tmp_path: Path) -> None:
    tight = Budget(epsilon=6.0)  # one round of noise multiplier 1, not two
    ask(node(tmp_path, tight), request(users=(3,)))
    reply = ask(node(tmp_path, tight), request(2))
    np.testing.assert_allclose(total_of(reply), clipped(5), atol=1e-6)
    assert reply.content["reply"]["num-users"] == 2  # nobody but the node knows
    assert states(tmp_path, 3) == ["budget", "intent", "commit"]


def test_a_promise_of_no_noise_gets_nothing_from_a_finite_budget(tmp_path: Path) -> None:
    reply = ask(node(tmp_path, Budget()), request(noise_multiplier=0.0))
    np.testing.assert_array_equal(total_of(reply), np.zeros(SPEC.num_trainable))


def test_a_refused_request_costs_nothing(tmp_path: Path) -> None:
    assert ask(node(tmp_path, LOOSE), request(base_hash="c" * 64)).has_error()
    assert ask(node(tmp_path, LOOSE), request(seed=1)).has_error()
    assert list((tmp_path / "ledgers").iterdir()) == []


def test_a_damaged_ledger_lets_nobody_train(tmp_path: Path) -> None:
    ask(node(tmp_path, LOOSE), request())
    path = tmp_path / "ledgers" / "3.jsonl"
    path.write_bytes(path.read_bytes().replace(b"intent", b"commit"))
    assert ask(node(tmp_path, LOOSE), request(2)).has_error()
    with pytest.raises(PrivacyError):
        Ledger(path)
    assert states(tmp_path, 5).count("intent") == 1  # the user before it in the request came first


def test_a_node_may_say_by_its_own_configuration_that_it_is_simulated(tmp_path: Path) -> None:
    def says_so(context: Context) -> bool:
        return context.node_config["partition-id"] == 0

    assert not ask(node(tmp_path / "a", LOOSE, simulated=says_so), request(seed=1)).has_error()
    assert ask(node(tmp_path / "b", LOOSE, simulated=lambda context: False), request(seed=1)).has_error()
