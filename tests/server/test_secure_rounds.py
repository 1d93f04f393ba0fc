"""Rounds under secure aggregation through the real Flower apps, on the tiny world."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, Message, RecordDict

from ownlet.device.client import make_client_app
from ownlet.server.checkpoint import load_checkpoint
from ownlet.server.cohorts import draw_cohort
from ownlet.server.secure_rounds import ask_securely
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import compose_events, epsilon, user_level_event, user_turns_event, window_level_event
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.secure_sum.vouching import Vouching
from ownlet.shared.wire import TrainRequest
from ownlet.simulations.grid import InProcessGrid

SECURE = SecureConfig(enabled=True, dropout=0.3, colluding=0.0)
PRIVATE = FederationConfig(rounds=3, cohort_rate=0.9, clip_norm=0.15, noise_multiplier=1.0, seed=3, secure=SECURE)
NOISELESS = replace(PRIVATE, noise_multiplier=0.0)
OPEN = SecureConfig()


def users_of(nodes: set[int], num_nodes: int, cohort: Any) -> list[int]:
    return [int(user) for user in cohort if user % num_nodes in nodes]


@pytest.mark.parametrize("num_nodes", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 20))])
def test_without_noise_the_adapter_is_that_of_the_open_run_up_to_coding(world: Any, num_nodes: int) -> None:
    masked, open_ = world.run(NOISELESS, num_nodes), world.run(replace(NOISELESS, secure=OPEN), num_nodes)
    assert not np.array_equal(masked.vector, world.start)
    np.testing.assert_allclose(masked.vector, open_.vector, atol=2e-6)
    assert [record.num_admitted for record in masked.rounds] == [record.num_nodes for record in open_.rounds]
    assert all(record.rejected == () and not record.void for record in masked.rounds)


@pytest.mark.slow
def test_window_level_noise_goes_through_the_sum_as_it_is(world: Any) -> None:
    plan = Plan(steps=2, clip_norm=1.0, noise_multiplier=0.3, learning_rate=0.01)
    config = replace(PRIVATE, unit="window", plan=plan, clip_norm=5.0)
    masked, open_ = world.run(config, 5), world.run(replace(config, secure=OPEN), 5)
    np.testing.assert_allclose(masked.vector, open_.vector, atol=1e-5)
    assert masked.epsilon == open_.epsilon == epsilon(window_level_event(plan, 3), 1e-5)
    assert masked.rounds[0].noise_multiplier is None


def test_a_node_that_knows_its_peers_gives_its_sum_to_nobody_without_masks(world: Any) -> None:
    knows = Vouching(key=ec.generate_private_key(ec.SECP384R1()), peers=frozenset())
    app = make_client_app(lambda context: world.shard(), simulated=True, vouching=knows)
    (record,) = world.run(replace(NOISELESS, rounds=1, secure=OPEN), grid=InProcessGrid(app, 2)).rounds
    assert (record.void, record.num_admitted, len(record.rejected)) == (True, 0, 2)


class Dropping:
    """Lets the nodes of some partitions fail at one stage, or changes what they answer there."""

    def __init__(
        self, grid: Any, stage: str, partitions: set[int], change: Callable[[Message], Message] | None
    ) -> None:
        self.stage, self.partitions, self.asked = stage, partitions, list[str]()
        change = change or (lambda reply: Message(Error(2, "secret"), reply_to=_question(reply)))
        receive = grid.send_and_receive

        def send_and_receive(messages: Any, *, timeout: float | None = None) -> list[Message]:
            sent = list(messages)
            self.asked += [message.metadata.message_type for message in sent]
            replies = receive(sent, timeout=timeout)
            hit = {1000 + partition for partition in partitions}
            at = [r.metadata.message_type.endswith(stage) and r.metadata.src_node_id in hit for r in replies]
            return [change(reply) if now else reply for now, reply in zip(at, replies, strict=True)]

        grid.send_and_receive = send_and_receive


def _question(reply: Message) -> Message:
    return Message(RecordDict(), dst_node_id=reply.metadata.src_node_id, message_type=reply.metadata.message_type)


STAGES = ("secure_advert", "secure_shares", "secure_masked", "secure_confirm", "secure_reveal")


@pytest.mark.parametrize("stage", STAGES)
def test_nodes_that_fail_at_a_stage_are_left_out_only_if_their_sum_had_not_come(world: Any, stage: str) -> None:
    config = replace(NOISELESS, rounds=1, cohort_rate=1.0)
    grid = world.grid(10)
    Dropping(grid, stage, {2, 5}, None)
    result = world.run(config, grid=grid)
    counted = set(range(10)) if stage in STAGES[3:] else set(range(10)) - {2, 5}
    expected = world.expected_step(config, users_of(counted, 10, range(20)))
    np.testing.assert_allclose(result.vector, expected, atol=2e-6)
    (record,) = result.rounds
    assert record.num_admitted == len(counted)
    assert len(record.rejected) == 2
    assert all(f"{stage}, partition " in reason and "secret" not in reason for reason in record.rejected)


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_flower_says_has_gone_is_missing_unless_its_sum_had_come(world: Any, stage: str) -> None:
    grid = world.grid(10)
    Dropping(grid, stage, {2}, lambda reply: Message(Error(5), reply_to=_question(reply)))
    (record,) = world.run(replace(NOISELESS, rounds=1, cohort_rate=1.0), grid=grid).rounds
    assert record.num_admitted + record.num_missing == 10
    assert record.num_missing == (stage in STAGES[:3])
    assert record.rejected == ()


@pytest.mark.parametrize("stage", STAGES[1:])
def test_beyond_the_tolerance_the_round_is_void_and_charged_as_planned(world: Any, stage: str) -> None:
    lost = {"secure_confirm": 5, "secure_reveal": 6}.get(stage, 4)
    grid = world.grid(10)
    Dropping(grid, stage, set(range(lost)), None)
    result = world.run(replace(PRIVATE, cohort_rate=1.0, rounds=1), grid=grid)
    np.testing.assert_array_equal(result.vector, world.start)
    assert all(record.void and record.update_norm == 0 and record.num_admitted == 0 for record in result.rounds)
    assert "secure sum" in result.rounds[0].rejected[-1]
    assert result.epsilon == epsilon(user_level_event(1.0, 1.0, 1), 1e-5)
    assert {record.noise_multiplier for record in result.rounds} == {1.0}


def test_fewer_than_three_nodes_have_no_sum_to_hide_in(world: Any) -> None:
    result = world.run(NOISELESS, 2)
    assert all(record.void for record in result.rounds)
    assert "at least 3" in result.rounds[0].rejected[-1]


def _other(record: dict[str, Any]) -> Callable[[Message], Message]:
    def change(reply: Message) -> Message:
        reply.content["secure"] = ConfigRecord({**reply.content["secure"], **record})
        return reply

    return change


def _emptied(reply: Message) -> Message:
    return Message(RecordDict(), reply_to=_question(reply))


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        ("secure_masked", _other({"data": b"short"})),
        ("secure_masked", _other({"data": "text"})),
        ("secure_masked", _other({"kind": "Reveal"})),
        ("secure_masked", _other({"loss": 0.3})),
        ("secure_masked", _emptied),
        ("secure_advert", _other({"signature": bytes(64)})),
        ("secure_shares", _other({"sealed": [bytes(82)] * 3})),
    ],
)
def test_a_bad_answer_leaves_the_round_as_if_its_users_were_not_there(
    world: Any, stage: str, change: Callable[[Message], Message]
) -> None:
    config = replace(NOISELESS, rounds=1, cohort_rate=1.0)
    grid = world.grid(10)
    Dropping(grid, stage, {4}, change)
    result = world.run(config, grid=grid)
    expected = world.expected_step(config, users_of(set(range(10)) - {4}, 10, range(20)))
    np.testing.assert_allclose(result.vector, expected, atol=2e-6)
    assert len(result.rounds[0].rejected) == 1


def test_a_node_that_sends_what_honest_nodes_cannot_voids_the_round(world: Any) -> None:
    """One vector cannot be seen, and so not be bounded; a sum of absurd length can."""
    grid = world.grid(10)
    Dropping(grid, "secure_masked", {4}, lambda reply: _other({"data": bytes(24)})(reply))
    result = world.run(replace(NOISELESS, rounds=1, cohort_rate=1.0), grid=grid)
    assert result.rounds[0].void
    assert "its norm must be at most" in result.rounds[0].rejected[-1]


@pytest.mark.slow
def test_on_average_a_noised_sum_is_that_of_the_open_run_and_its_noise_is_the_realised_one(world: Any) -> None:
    grid = world.grid(5)
    clean = (world.expected_step(replace(PRIVATE, cohort_rate=1.0), range(20)) - world.start)[world.spec.trainable] * 20
    drawn, refused = [], []
    for number in range(60):
        requests = {
            1000 + at: TrainRequest(
                vector=world.start,
                round=number,
                version=0,
                base_hash=world.spec.base_hash,
                plan=PRIVATE.plan,
                unit="user",
                clip_norm=0.15,
                users=tuple(range(at, 20, 5)),
                seed=7,
            )
            for at in range(5)
        }
        done = ask_securely(grid, PRIVATE, requests, 8)
        drawn.append(done.total)
        refused += done.refused
    assert refused == []
    assert done.noise_multiplier == pytest.approx(math.sqrt(5 / 4), rel=1e-3)  # 1 of 5 may drop out, and none did
    noise = (np.array(drawn) - clean) / (0.15 * done.noise_multiplier)
    assert np.abs(noise.mean(axis=0)).max() < 4.5 / math.sqrt(60)
    assert noise.std() == pytest.approx(1.0, abs=4.5 / math.sqrt(2 * noise.size))


def test_the_realised_noise_is_charged_and_not_the_planned_one(world: Any) -> None:
    grid = world.grid(10)
    Dropping(grid, "secure_masked", {1, 2}, None)
    result = world.run(replace(PRIVATE, rounds=2), grid=grid)
    fewest = math.floor(128 * math.sqrt(8 / 7)) / 128  # 7 of 10 would have been enough
    assert [record.noise_multiplier for record in result.rounds] == [fewest] * 2
    assert result.epsilon == epsilon(user_level_event(0.9, fewest, 2), 1e-5)
    assert result.epsilon < 0.95 * epsilon(user_level_event(0.9, 1.0, 2), 1e-5)


@pytest.mark.slow
def test_rounds_of_different_noise_compose_and_the_server_gains_nothing_from_sampling(world: Any) -> None:
    grid = world.grid(10)
    dropping = Dropping(grid, "secure_masked", {1, 2}, None)
    sigmas: list[float] = []

    def recover(record: Any, vector: Any) -> None:
        sigmas.append(record.noise_multiplier)
        dropping.partitions.clear()

    receive = grid.send_and_receive
    count = [0]

    def first_round_only(messages: Any, *, timeout: float | None = None) -> list[Message]:
        count[0] += 1
        if count[0] > 6:  # the place of nodes, then five stages
            dropping.stage = "none"
        return receive(messages, timeout=timeout)

    grid.send_and_receive = first_round_only
    result = world.run(replace(PRIVATE, rounds=2, cohort_rate=0.5), grid=grid, on_round=recover)
    event = compose_events(*(user_level_event(0.5, sigma, 1) for sigma in sigmas))
    assert result.epsilon == pytest.approx(epsilon(event, 1e-5), rel=1e-6)
    cohorts = [draw_cohort(PRIVATE_HALF, 20, number) for number in (1, 2)]
    most = int(np.bincount(np.concatenate(cohorts), minlength=20).max())
    assert result.rounds[-1].server_epsilon == epsilon(user_turns_event(min(sigmas), most), 1e-5)
    assert result.rounds[-1].server_epsilon > result.epsilon


PRIVATE_HALF = replace(PRIVATE, rounds=2, cohort_rate=0.5)


def test_an_empty_cohort_is_void_since_nobody_adds_noise(world: Any) -> None:
    result = world.run(replace(PRIVATE, rounds=2, cohort_rate=1e-9), 5)
    assert all(record.void and record.num_asked == 0 for record in result.rounds)
    assert result.epsilon == epsilon(user_level_event(1e-9, 1.0, 2), 1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_what_was_realised(world: Any, tmp_path: Any) -> None:
    whole = world.run(PRIVATE, 5)
    world.run(replace(PRIVATE, rounds=2), 5, checkpoint=tmp_path / "c")
    resumed = world.run(PRIVATE, 5, checkpoint=tmp_path / "c", resume=True)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    assert resumed.epsilon == whole.epsilon
    state = load_checkpoint(tmp_path / "c", PRIVATE, world.spec, world.num_users)
    assert len(state.realised) == 3
    assert state.results[-1].server_epsilon == whole.rounds[-1].server_epsilon


def test_the_server_never_asks_for_a_single_sum(world: Any) -> None:
    grid = world.grid(5)
    dropping = Dropping(grid, "none", set(), None)
    world.run(replace(NOISELESS, rounds=1, cohort_rate=1.0), grid=grid)
    kinds = [kind for kind in dropping.asked if kind != "query.place"]
    assert sorted(set(kinds)) == sorted(
        ["train.secure_masked", *(f"query.{stage}" for stage in STAGES if stage != "secure_masked")]
    )
    assert len(kinds) == 25


def test_a_node_answers_each_message_once(world: Any) -> None:
    """The server repeats the question for a masked vector, to get a second one with other noise."""
    grid = world.grid(5)
    receive = grid.send_and_receive
    second: list[Message] = []

    def repeat(messages: Any, *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        replies = receive(sent, timeout=timeout)
        if sent[0].metadata.message_type == "train.secure_masked":
            second.extend(receive(sent, timeout=timeout))
        return replies

    grid.send_and_receive = repeat
    result = world.run(replace(NOISELESS, rounds=1, cohort_rate=1.0), grid=grid)
    assert len(second) == 5
    assert all(reply.has_error() for reply in second)
    assert result.rounds[0].void  # the state was used up: nodes cannot be asked in two ways


@pytest.mark.parametrize(
    "change", [{"unit": "none"}, {"adaptive_clip": {"quantile": 0.5}}], ids=["unit none", "adaptive clip"]
)
def test_what_cannot_be_summed_securely_is_refused(change: dict[str, Any]) -> None:
    raw = json.loads(json.dumps({**_plain(PRIVATE), **change}))
    with pytest.raises(ConfigError, match="secure aggregation"):
        FederationConfig.from_plain(raw)
    assert FederationConfig.from_plain(_plain(PRIVATE)) == PRIVATE
    without = {name: value for name, value in _plain(PRIVATE).items() if name != "secure"}
    assert FederationConfig.from_plain(without).secure == OPEN


def _plain(config: FederationConfig) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config)
