"""Forms of the wire in whole rounds: the same adapter however users are spread, and never more than C from one user."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from ownlet.device.client import answer, make_client_app
from ownlet.device.sending import MemoryResiduals, send
from ownlet.server.cohorts import draw_cohort
from ownlet.shared.coding import coded_bytes, decode, encode, places_of_round
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import FederationError
from ownlet.shared.noise import AesNoise, SimulatedNoise
from ownlet.shared.server_config import AdaptiveClip
from ownlet.shared.wire import TrainRequest, array_bytes, reply_to_records
from ownlet.shared.wire_config import FLOAT32, WireConfig

FORMS = [
    WireConfig(name="float16"),
    WireConfig(name="int8"),
    WireConfig(name="sparse", keep=0.5),
    WireConfig(name="float16", error_feedback=True),
    WireConfig(name="int8", error_feedback=True),
    WireConfig(name="sparse", keep=0.5, error_feedback=True),
]
EACH = pytest.mark.parametrize("wire", FORMS, ids=lambda wire: wire.name + ("-feedback" if wire.error_feedback else ""))


def _request(world: Any, wire: WireConfig, users: tuple[int, ...], number: int = 1, **other: Any) -> TrainRequest:
    return TrainRequest(
        vector=world.start,
        round=number,
        version=0,
        base_hash=world.spec.base_hash,
        plan=Plan(),
        unit="user",
        clip_norm=0.15,
        users=users,
        seed=1,
        wire=wire,
        **other,
    )


def _grid(world: Any, num_nodes: int) -> Any:
    grid = world.grid(num_nodes)
    shard, kept = world.shard(), MemoryResiduals()
    grid._client_app = make_client_app(lambda context: shard, simulated=True, residuals=kept)
    return grid


@EACH
def test_the_result_does_not_depend_on_whether_a_node_has_one_user_or_many(world: Any, wire: WireConfig) -> None:
    config = FederationConfig(rounds=4, cohort_rate=0.6, clip_norm=0.15, noise_multiplier=1.0, seed=3, wire=wire)
    one, five, each = (world.run(config, grid=_grid(world, nodes)) for nodes in (1, 5, 20))
    assert not np.array_equal(one.vector, world.run(replace(config, wire=FLOAT32)).vector)
    np.testing.assert_allclose(five.vector, one.vector, atol=1e-6)
    np.testing.assert_allclose(each.vector, one.vector, atol=1e-6)
    assert each.epsilon == one.epsilon == world.run(replace(config, wire=FLOAT32)).epsilon
    assert all(not record.rejected and not record.void for record in each.rounds)


def test_int8_is_the_sum_of_what_each_device_codes(world: Any, noiseless: FederationConfig) -> None:
    wire, points = WireConfig(name="int8"), world.clipped_deltas(0.15)
    result = world.run(replace(noiseless, wire=wire), num_nodes=20)
    expected = world.start.astype(np.float64)
    for user, delta in enumerate(points):
        coded = encode(delta, wire, 0.15, SimulatedNoise(1, 1, user))
        expected[world.spec.trainable] += decode(coded, wire, math.inf) / 20
    np.testing.assert_allclose(result.vector, expected, atol=1e-6)


def test_sparse_moves_and_noises_only_what_everybody_sends(world: Any) -> None:
    wire = WireConfig(name="sparse", keep=0.25)
    config = FederationConfig(rounds=1, cohort_rate=0.5, clip_norm=0.15, noise_multiplier=1.0, seed=3, wire=wire)
    moved = (world.run(config, 3).vector - world.start)[world.spec.trainable]
    assert np.flatnonzero(moved).tolist() == places_of_round(wire, 1, 8).tolist()
    quiet = (world.run(replace(config, noise_multiplier=0.0), 3).vector - world.start)[world.spec.trainable]
    expected = np.zeros(8)
    for user in draw_cohort(config, 20, 1).tolist():
        left = np.where(np.isin(np.arange(8), places_of_round(wire, 1, 8)), 4 * world.clipped_deltas(0.15)[user], 0)
        expected += left * min(1.0, 0.15 / np.linalg.norm(left)) / 10
    np.testing.assert_allclose(quiet, expected, atol=1e-6)


@EACH
def test_one_user_moves_the_sum_by_at_most_the_clip_norm_in_every_round(world: Any, wire: WireConfig) -> None:
    """With the user and without, the same coins for all others: that is all that the noise has to cover."""
    shard, others = world.shard(), (3, 5, 11)
    with_user, without = MemoryResiduals(), MemoryResiduals()
    largest = 0.0
    for number in range(1, 9):
        full = answer(_request(world, wire, (*others, 7), number), shard, residuals=with_user).total
        rest = answer(_request(world, wire, others, number), shard, residuals=without).total
        largest = max(largest, float(np.linalg.norm(full.astype(np.float64) - rest)))
        assert largest <= 0.15 * (1 + 1e-5)  # sums travel in float32
    assert largest > 0.05


def test_what_error_feedback_keeps_is_what_was_left_out(world: Any) -> None:
    wire, kept = WireConfig(name="int8", error_feedback=True), MemoryResiduals()
    total, size = np.zeros(8), world.spec.num_trainable
    delta = np.full((1, size), 0.001, np.float32)
    delta[0, 0] = 0.12  # coarse steps: what is small is mostly rounded away or up
    for number in range(1, 41):
        request = _request(world, wire, (4,), number)
        sent = send(delta, (4,), request, [SimulatedNoise(1, number, 4)], kept)
        total += sent.deltas[0]
        rest = kept.of(4, world.spec.base_hash)
        assert rest is not None
        np.testing.assert_allclose(total + rest, number * delta[0], atol=1e-5)  # nothing is ever lost
    assert kept.of(4, "another base") is None
    assert kept.of(5, world.spec.base_hash) is None


def test_sparse_error_feedback_sends_in_the_end_all_of_a_small_delta(world: Any) -> None:
    wire, kept, total = WireConfig(name="sparse", keep=0.25, error_feedback=True), MemoryResiduals(), np.zeros(8)
    delta = np.linspace(-0.01, 0.01, 8, dtype=np.float32)[None]
    for number in range(1, 31):
        total += send(delta, (4,), _request(world, wire, (4,), number), [], kept).deltas[0]
    rest = kept.of(4, world.spec.base_hash)
    assert rest is not None
    np.testing.assert_allclose(total + rest, 30 * delta[0], atol=1e-6)


def test_error_feedback_without_a_place_to_keep_anything_is_refused(world: Any) -> None:
    with pytest.raises(FederationError, match="place to keep residuals"):
        answer(_request(world, WireConfig(name="int8", error_feedback=True), (1,)), world.shard())


@pytest.mark.parametrize("wire", [FLOAT32, *FORMS[:3]], ids=lambda wire: wire.name)
def test_the_bytes_of_a_round_are_counted_and_are_those_of_the_form(world: Any, wire: WireConfig) -> None:
    config = FederationConfig(rounds=1, cohort_rate=1.0, clip_norm=0.15, seed=3, wire=wire)
    (record,) = world.run(config, num_nodes=20).rounds
    header = 128  # of the .npy format, 64 or 128
    reply = answer(_request(world, wire, (1,)), world.shard())
    assert array_bytes(reply_to_records(reply)) == header + coded_bytes(wire, 8)
    assert record.bytes_up == 20 * (header + coded_bytes(wire, 8))
    assert record.bytes_down == 20 * (header + 4 * world.spec.size)


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_the_count_of_an_adaptive_clip_travels_behind_a_code(world: Any, name: Any) -> None:
    clip = AdaptiveClip(quantile=0.5, count_noise=0.2)
    config = FederationConfig(rounds=2, cohort_rate=1.0, clip_norm=0.25, seed=3, adaptive_clip=clip)
    coded = replace(config, wire=WireConfig(name=name))
    plain = [record.clip_norm for record in world.run(config, num_nodes=20).rounds]
    assert plain[1] != plain[0]
    assert [record.clip_norm for record in world.run(coded, num_nodes=20).rounds] == plain


def _changed(change: Any) -> Any:
    def tamper(replies: list[Message]) -> list[Message]:
        for reply in replies:
            if reply.metadata.src_node_id == 1000:
                data = change(reply.content["delta"]["total"].numpy().copy())
                reply.content["delta"] = ArrayRecord({"total": Array(data)})
        return replies

    return tamper


def _scaled(data: Any) -> Any:
    data[:4] = np.frombuffer(np.float32(0.149).tobytes(), np.uint8)
    data[4:] = 127
    return data


BAD = {
    "float32 in place of a code": lambda data: np.zeros(8, np.float32),
    "signed bytes": lambda data: data.view(np.int8),
    "a byte less": lambda data: data[:-1],
    "a byte more": lambda data: np.append(data, np.uint8(0)),
    "minus 128": lambda data: np.append(data[:-1], np.uint8(128)),
    "longer than the clip norm": _scaled,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_code_is_refused(world: Any, noiseless: FederationConfig, name: str) -> None:
    grid = world.grid(20)
    grid.tamper = _changed(BAD[name])
    (record,) = world.run(replace(noiseless, wire=WireConfig(name="int8")), grid=grid).rounds
    assert (record.num_admitted, len(record.rejected)) == (19, 1)
    assert "partition 0" in record.rejected[0]


def test_a_node_of_several_users_may_not_send_a_code_in_place_of_their_sum(
    world: Any, noiseless: FederationConfig
) -> None:
    wire = WireConfig(name="int8")
    grid = world.grid(2)
    grid.tamper = _changed(lambda data: encode(data * np.float32(0.1), wire, 0.15, AesNoise()))
    (record,) = world.run(replace(noiseless, wire=wire), grid=grid).rounds
    assert (record.num_admitted, len(record.rejected)) == (1, 1)
