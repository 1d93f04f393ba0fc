"""Ledgers of a node's users in a secure sum: charged before the masked vector leaves, and for one vector only."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from numpy.typing import NDArray

from ownlet.device.account import Account
from ownlet.device.client import make_client_app
from ownlet.device.ledger import Budget, Ledger
from ownlet.server.secure_rounds import SecureRound, ask_securely
from ownlet.shared.adapter import AdapterSpec, LayerShape, Vector
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.noise import NoiseSource
from ownlet.shared.privacy import event_to_json, user_level_event
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.secure_sum.messages import Inbox
from ownlet.shared.secure_wire import from_records, to_records
from ownlet.shared.windows import Windows
from ownlet.shared.wire import TrainRequest
from ownlet.simulations.grid import InProcessGrid

SPEC = AdapterSpec(
    layers=(LayerShape(name="layer", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64
)
START: Vector = np.linspace(-1, 1, SPEC.size, dtype=np.float32)
CONFIG = FederationConfig(
    clip_norm=0.15, noise_multiplier=1.0, reply_timeout_seconds=0.02, secure=SecureConfig(enabled=True, colluding=0.0)
)
USERS = range(6)  # user u lives on node u % 3
LOOSE = Budget(epsilon=1e6)
ONE_ROUND = Budget(epsilon=6.0)  # of noise multiplier 1, not two
DONE = ["budget", "intent", "commit"]


def point_of(user: int) -> Vector:
    return np.float32(0.1) * np.sin(np.arange(1, SPEC.num_trainable + 1, dtype=np.float32) * (user + 1))


def clipped(users: Sequence[int]) -> Any:
    points = [point_of(user).astype(np.float64) for user in users]
    return sum(point * min(1.0, 0.15 / np.linalg.norm(point)) for point in points)


def states(root: Path, user: int) -> list[str]:
    path = root / str(user % 3) / "ledgers" / f"{user}.jsonl"
    return [entry["state"] for entry in Ledger(path).entries()] if path.exists() else []


class PointEngine:
    """Adds the point of every user who has windows; notes what is in their ledgers then."""

    spec = SPEC

    def __init__(self, root: Path) -> None:
        self.root, self.seen = root, dict[int, list[str]]()

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        trained = np.repeat(vector[None], len(users), axis=0)
        for row, windows in zip(trained, users, strict=True):
            if len(windows):
                user = int(windows.history[0, 0]) - 1
                self.seen[user] = states(self.root, user)
                row[SPEC.trainable] += point_of(user)
        return trained


class TinyShard:
    base_hash = SPEC.base_hash

    def __init__(self, root: Path) -> None:
        self.engine = PointEngine(root)

    def windows(self, users: Sequence[int]) -> list[Windows]:
        rows = [np.full((1, 2), user + 1, dtype=np.int64) for user in users]
        return [Windows(history=row, target=row, valid=np.ones((1, 2), np.float32)) for row in rows]


class Nodes(InProcessGrid):
    """Three nodes with ledgers; what the server asks and gets at the third stage can be watched or changed."""

    def __init__(self, root: Path, budget: Budget = LOOSE) -> None:
        self.root, self.shard = root, TinyShard(root)
        self.change: Callable[[Message], Message] = lambda question: question
        self.then: Callable[[list[Message], list[Any], list[Message]], None] = lambda questions, before, replies: None

        def account(context: Context) -> Account:
            return Account(root / str(context.node_config["partition-id"]), budget)

        super().__init__(make_client_app(lambda context: self.shard, simulated=True, load_account=account), 3)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        questions = list(messages)
        if questions[0].metadata.message_type != "train.secure_masked":
            return super().send_and_receive(questions, timeout=timeout)
        questions = [self.change(question) for question in questions]
        before = [copy.deepcopy(context.state) for context in self._contexts]
        replies = super().send_and_receive(questions, timeout=timeout)
        self.then(questions, before, replies)
        return replies

    def again(self, questions: list[Message], before: list[Any] | None) -> list[Message]:
        """Send the same questions once more, to nodes whose state is the old one if that is given."""
        for context, state in zip(self._contexts, before or (), strict=False):
            context.state = state
        return super().send_and_receive(questions, timeout=0.02)

    def round(self, number: int = 1, users: Sequence[int] = USERS, **changes: Any) -> SecureRound:
        values: dict[str, Any] = {
            "vector": START,
            "round": number,
            "version": number - 1,
            "base_hash": SPEC.base_hash,
            "plan": Plan(),
            "unit": "user",
            "clip_norm": 0.15,
            "noise_multiplier": 1.0,
            "seed": 7,
        }
        requests = {
            node: TrainRequest(users=tuple(user for user in users if user % 3 == at), **{**values, **changes})
            for at, node in enumerate(self.get_node_ids())
        }
        return ask_securely(self, CONFIG, requests, SPEC.num_trainable)


def test_every_user_is_charged_once_before_training_for_the_noise_of_all_nodes(tmp_path: Path) -> None:
    nodes, committed = Nodes(tmp_path), list[list[str]]()
    nodes.then = lambda questions, before, replies: committed.extend(states(tmp_path, user) for user in USERS)
    done = nodes.round()
    assert done.total is not None
    assert done.refused == ()
    assert nodes.shard.engine.seen == {user: ["budget", "intent"] for user in USERS}
    assert committed == [DONE] * 6  # when the masked vectors are out
    assert [states(tmp_path, user) for user in USERS] == [DONE] * 6  # and when the sum is
    entry = Ledger(tmp_path / "2" / "ledgers" / "5.jsonl").entries()[1]
    assert (entry["unit"], entry["round"]) == ("user", 1)
    assert entry["event"] == json.loads(event_to_json(user_level_event(1.0, 1.0, 1)))


@pytest.mark.parametrize("forgotten", [False, True], ids=["again", "again by a node whose memory is the one before"])
def test_the_same_question_again_costs_nothing_and_gives_no_second_vector(tmp_path: Path, forgotten: bool) -> None:
    nodes, second = Nodes(tmp_path), list[Message]()
    nodes.then = lambda questions, before, replies: second.extend(nodes.again(questions, before if forgotten else None))
    nodes.round()
    assert len(second) == 3
    assert all(reply.has_error() for reply in second)
    assert [states(tmp_path, user) for user in USERS] == [DONE] * 6


def test_another_sum_for_the_same_round_is_another_draw_of_noise_and_charged_as_one(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    nodes.round()
    nodes.round()
    assert [states(tmp_path, user).count("intent") for user in USERS] == [2] * 6


def test_a_user_whose_budget_is_spent_adds_zero_and_its_node_still_adds_noise(tmp_path: Path) -> None:
    fresh = Nodes(tmp_path / "a", ONE_ROUND).round(2).total
    tight = Nodes(tmp_path / "b", ONE_ROUND)
    tight.round(1, users=(3, 7, 8))
    spent = tight.round(2).total
    assert fresh is not None
    assert spent is not None
    noise = fresh - clipped(USERS)  # of the same seed
    assert np.abs(noise).max() > 0.05
    np.testing.assert_allclose(spent - noise, clipped([0, 1, 2, 4, 5]), atol=1e-4)
    assert states(tmp_path / "b", 3) == DONE  # of the first round


def _without_shares(question: Message) -> Message:
    inbox = from_records(Inbox, question.content)
    question.content["secure"] = to_records(Inbox(session=inbox.session, senders=(), sealed=()))["secure"]
    return question


def _of_another_round(question: Message) -> Message:
    question.content["request"]["round"] = 9
    return question


@pytest.mark.parametrize(
    ("changes", "change"),
    [
        ({"noise_multiplier": 1.01}, None),  # promised to users' ledgers, but not in the coding that nodes agreed on
        ({"base_hash": "c" * 64}, None),
        ({}, _without_shares),
        ({}, _of_another_round),
    ],
    ids=["noise", "base", "shares", "round"],
)
def test_a_question_that_is_not_answered_costs_nothing(
    tmp_path: Path, changes: dict[str, Any], change: Callable[[Message], Message] | None
) -> None:
    nodes = Nodes(tmp_path)
    nodes.change = change or nodes.change
    done = nodes.round(**changes)
    assert done.total is None
    assert sum("secure_masked, node" in reason for reason in done.refused) == 3
    assert [states(tmp_path, user) for user in USERS] == [[]] * 6
