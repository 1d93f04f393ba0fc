"""Whatever a node does, the adapter becomes what it would be without that node's users, or stays what it was."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from ownlet.shared.config import FederationConfig

Tamper = Callable[[list[Message]], list[Message]]


def _reply(changed: Callable[[Message], Any]) -> Tamper:
    """Change the reply of node 1000 in place, or replace it where ``changed`` returns a message."""

    def tamper(replies: list[Message]) -> list[Message]:
        return [
            (changed(reply) or reply) if reply.metadata.src_node_id == 1000 else reply
            for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        ]

    return tamper


def _total(reply: Message) -> Any:
    return reply.content["delta"]["total"].numpy()


def _array(change: Callable[[Any], Any]) -> Tamper:
    def changed(reply: Message) -> None:
        reply.content["delta"] = ArrayRecord({"total": Array(change(_total(reply)))})

    return _reply(changed)


def _field(name: str, value: Any) -> Tamper:
    return _reply(lambda reply: reply.content["reply"].__setitem__(name, value))


def _first_is(value: float) -> Tamper:
    def change(total: Any) -> Any:
        total = total.copy()
        total[0] = value
        return total

    return _array(change)


def _false_header(reply: Message) -> None:
    """Claim a shape of 2^40 numbers in the .npy header, where the true array has eight."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    data = stream.getvalue() + _total(reply).tobytes()
    reply.content["delta"] = ArrayRecord({"total": Array("float32", (8,), "numpy.ndarray", data)})


def _false_claim(reply: Message) -> None:
    """Send three numbers and claim eight in the message."""
    array = Array(_total(reply)[:3])
    reply.content["delta"] = ArrayRecord({"total": Array("float32", (8,), "numpy.ndarray", array.data)})


def _resized(change: Callable[[bytes], bytes]) -> Tamper:
    """Change the array's bytes behind a header that stays as it was."""

    def changed(reply: Message) -> None:
        data = change(reply.content["delta"]["total"].data)
        reply.content["delta"] = ArrayRecord({"total": Array("float32", (8,), "numpy.ndarray", data)})

    return _reply(changed)


def _failed(reply: Message) -> Message:
    asked = Message(RecordDict(), dst_node_id=reply.metadata.src_node_id, message_type="train")
    return Message(Error(2, "secret history: 4, 8, 15"), reply_to=asked)


def _from_stranger(reply: Message) -> Message:
    asked = Message(RecordDict(), dst_node_id=99, message_type="train")
    return Message(reply.content, reply_to=asked)


BAD: dict[str, Tamper] = {
    "error": _reply(_failed),
    "nan": _first_is(float("nan")),
    "infinite": _first_is(float("inf")),
    "shape": _array(lambda total: total.reshape(2, 4)),
    "too short": _array(lambda total: total[:-1]),
    "too long": _array(lambda total: np.concatenate([total, total])),
    "float64": _array(lambda total: total.astype(np.float64)),
    "float16": _array(lambda total: total.astype(np.float16)),
    "big-endian": _array(lambda total: total.astype(">f4")),
    "too large": _array(lambda total: total / np.linalg.norm(total) * np.float32(10 * 0.15 * 1.001)),
    "false header": _reply(_false_header),
    "false claim": _reply(_false_claim),
    "truncated": _resized(lambda data: data[:-4]),
    "trailing bytes": _resized(lambda data: data + bytes(4)),
    "more arrays": _reply(lambda reply: reply.content["delta"].__setitem__("a", Array(np.zeros(8, np.float32)))),
    "no array": _reply(lambda reply: reply.content.__setitem__("delta", ArrayRecord())),
    "not an array": _reply(lambda reply: reply.content.__setitem__("delta", MetricRecord({"total": 1.0}))),
    "not npy": _reply(
        lambda reply: reply.content.__setitem__(
            "delta", ArrayRecord({"total": Array("float32", (8,), "numpy.ndarray", b"PK\x03\x04")})
        )
    ),
    "another key": _reply(
        lambda reply: reply.content.__setitem__("delta", ArrayRecord({"sum": reply.content["delta"]["total"]}))
    ),
    "more records": _reply(lambda reply: reply.content.__setitem__("loss", MetricRecord({"loss": 1.0}))),
    "no header": _reply(lambda reply: reply.content.__delitem__("reply")),
    "empty header": _reply(lambda reply: reply.content.__setitem__("reply", ConfigRecord())),
    "more in header": _field("num-examples", 7),
    "another base": _field("base-hash", "c" * 64),
    "old version": _field("version", -1),
    "another round": _field("round", 0),
    "wrong count": _field("num-users", 9),
    "huge count": _field("num-users", 2**60),
    "count is a float": _field("num-users", 10.0),
    "count is true": _field("num-users", True),
    "stranger": _reply(_from_stranger),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_leaves_the_round_as_if_its_users_were_not_there(
    world: Any, noiseless: FederationConfig, name: str
) -> None:
    grid = world.grid(2)
    grid.tamper = BAD[name]
    result = world.run(noiseless, grid=grid)
    odd_users = range(1, 20, 2)  # node 1001 hosts partition 1
    np.testing.assert_allclose(result.vector, world.expected_step(noiseless, odd_users), atol=1e-6)
    (record,) = result.rounds
    assert (record.num_admitted, record.num_nodes, len(record.rejected)) == (1, 2, 1)


@pytest.mark.parametrize("name", ["error", "nan", "another base"])
def test_a_bad_reply_below_the_quorum_changes_nothing(world: Any, noiseless: FederationConfig, name: str) -> None:
    grid = world.grid(2)
    grid.tamper = BAD[name]
    result = world.run(replace(noiseless, quorum=0.6), grid=grid)
    assert np.array_equal(result.vector, world.start)
    assert (result.rounds[0].void, result.version) == (True, 0)


def test_the_reason_names_round_stage_and_node_and_no_data(world: Any, noiseless: FederationConfig) -> None:
    reasons = {}
    for name in ("error", "nan", "too large", "float64"):
        grid = world.grid(2)
        grid.tamper = BAD[name]
        (reasons[name],) = world.run(noiseless, grid=grid).rounds[0].rejected
    assert reasons["error"] == "round 1, train, partition 0: the node must answer without an error, got error code 2"
    assert reasons["nan"] == "round 1, admit, partition 0: the sum must be finite"
    assert (
        reasons["too large"]
        == "round 1, admit, partition 0: the norm of the sum must be at most users * clip_norm, 1.5"
    )
    assert reasons["float64"] == "round 1, decode, partition 0: array must be float32, got dtype=float64"


@pytest.mark.parametrize(("code", "missing"), [(3, 1), (4, 1), (5, 1), (2, 0), (8, 0)])
def test_a_node_that_flower_says_has_gone_is_missing_and_one_whose_app_fails_is_rejected(
    world: Any, noiseless: FederationConfig, code: int, missing: int
) -> None:
    def failed(reply: Message) -> Message:
        sender = 1 if missing else reply.metadata.src_node_id  # SuperLink's own number, where it speaks for a node
        return Message(Error(code), reply_to=Message(RecordDict(), dst_node_id=sender, message_type="train"))

    grid = world.grid(2)
    grid.tamper = _reply(failed)
    (record,) = world.run(noiseless, grid=grid).rounds
    assert (record.num_nodes, record.num_admitted, record.num_missing) == (2, 1, missing)
    assert len(record.rejected) == 1 - missing


def test_a_reply_that_comes_twice_counts_once(world: Any, noiseless: FederationConfig) -> None:
    grid = world.grid(2)
    grid.tamper = lambda replies: [*replies, replies[0]]
    result = world.run(noiseless, grid=grid)
    np.testing.assert_allclose(result.vector, world.expected_step(noiseless, range(20)), atol=1e-6)
    assert result.rounds[0].rejected == ("round 1, admit, partition 0: the node must answer once",)


def test_a_missing_reply_is_counted_and_leaves_the_others(world: Any, noiseless: FederationConfig) -> None:
    grid = world.grid(4)
    grid.tamper = lambda replies: [reply for reply in replies if reply.metadata.src_node_id != 1002]
    result = world.run(noiseless, grid=grid)
    others = [user for user in range(20) if user % 4 != 2]
    np.testing.assert_allclose(result.vector, world.expected_step(noiseless, others), atol=1e-6)
    assert (result.rounds[0].num_missing, result.rounds[0].rejected) == (1, ())


def test_a_user_whose_training_fails_counts_as_zero_and_does_not_spoil_the_node(
    world: Any, noiseless: FederationConfig, broken_shard: Any
) -> None:
    result = world.run(noiseless, grid=world.grid(2, broken_shard([4, 7])))
    others = [user for user in range(20) if user not in (4, 7)]
    np.testing.assert_allclose(result.vector, world.expected_step(noiseless, others), atol=1e-6)
    assert result.rounds[0].num_admitted == 2
