"""Whether one node's reply may enter the adapter. Flower's own strategies check almost nothing of this.

Under the unit ``user`` the privacy guarantee needs each user to move the sum by at most C. The node clips, and the norm
of its sum is bounded here by users * C, which a node that clips cannot exceed; what a dishonest node does within that
bound is its own users' loss.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message

from ownlet.server.replies import node_name
from ownlet.shared.adapter import Vector
from ownlet.shared.coding import coded_bytes, decode, places_of_round, sent_numbers
from ownlet.shared.errors import FederationError, ReplyRejectedError
from ownlet.shared.wire import decode_bytes, decode_vector
from ownlet.shared.wire_config import FLOAT32, WireConfig

__all__ = ["LARGEST_NORM", "Expected", "admit"]

LARGEST_NORM = 2.0**10
"""Of a user's delta where nothing else bounds it: no adapter in use comes near that."""

_TOLERANCE = 1e-4  # rounding of float32 sums
_REPLY_TYPES = {"round": int, "version": int, "base-hash": str, "num-users": int}


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an admitted reply of this round must be like.

    Args:
        round: counted from 1.
        version: of the global adapter that was sent.
        base_hash: of the base.
        num_trainable: the length of a delta.
        clip_norm: C; infinity means none but ``LARGEST_NORM``.
        users_by_node: node id -> how many users it was asked to train.
        counts: whether a number of users within the clip norm follows the delta.
        wire: the form of a delta. A node of several users sends their sum in float32 where a single one codes its own.
        partition_of_node: of all nodes that are known, for messages.
    """

    round: int
    version: int
    base_hash: str
    num_trainable: int
    clip_norm: float
    users_by_node: Mapping[int, int]
    counts: bool = False
    wire: WireConfig = FLOAT32
    partition_of_node: Mapping[int, int] = field(default_factory=dict)


def admit(reply: Message, expected: Expected, already: Collection[int] = ()) -> Vector:
    """Return the sum in a reply if it may enter the adapter.

    Args:
        reply: what came from a node.
        expected: what it must be like.
        already: nodes whose reply has been admitted in this round.

    Returns:
        (num_trainable,) float32, finite, of norm at most users * C; where replies count, one number more, at most
        half the users.

    Raises:
        ReplyRejectedError: names the round, the stage and the node, never its data.
    """
    node = reply.metadata.src_node_id
    name = node_name(node, expected.partition_of_node)

    def reject(stage: str, reason: str) -> ReplyRejectedError:
        return ReplyRejectedError(f"round {expected.round}, {stage}, {name}: {reason}")

    if reply.has_error():  # the reason may quote the node's data, the code cannot
        raise reject("train", f"the node must answer without an error, got error code {reply.error.code}")
    if node not in expected.users_by_node:
        raise reject("admit", "the node must have been asked in this round")
    if node in already:
        raise reject("admit", "the node must answer once")
    if set(reply.content) != {"delta", "reply"}:
        raise reject("admit", f"records must be delta and reply, got {sorted(reply.content)}")
    if problem := _problem_of_header(reply.content["reply"], expected, expected.users_by_node[node]):
        raise reject("admit", problem)
    try:
        total = _decoded(reply, expected, expected.users_by_node[node])
    except FederationError as error:
        raise reject("decode", str(error)) from error
    if not np.isfinite(total).all():
        raise reject("admit", "the sum must be finite")
    users = expected.users_by_node[node]
    bound = users * min(expected.clip_norm, LARGEST_NORM)
    if float(np.linalg.norm(total[: expected.num_trainable].astype(np.float64))) > bound * (1 + _TOLERANCE):
        raise reject("admit", f"the norm of the sum must be at most users * clip_norm, {bound:g}")
    if expected.counts and abs(float(total[-1])) > users / 2:
        raise reject("admit", f"the count must be at most half the users, {users / 2:g}")
    return total


def _decoded(reply: Message, expected: Expected, num_users: int) -> Vector:
    """Return the sum, and the count behind it, that a reply of any form says."""
    wire, size = expected.wire, expected.num_trainable
    if wire.is_coded and num_users == 1:
        length = coded_bytes(wire, size)
        data = decode_bytes(reply.content, "delta", "total", length + 4 * expected.counts)
        delta = decode(data[:length], wire, min(expected.clip_norm, LARGEST_NORM) * (1 + _TOLERANCE))
        return np.concatenate([delta, np.frombuffer(data[length:].tobytes(), "<f4")])
    sent = decode_vector(reply.content, "delta", "total", sent_numbers(wire, size) + expected.counts)
    if wire.name != "sparse":
        return sent
    total = np.zeros(size, np.float32)
    total[places_of_round(wire, expected.round, size)] = sent
    return total


def _problem_of_header(header: object, expected: Expected, num_users: int) -> str | None:
    if not isinstance(header, ConfigRecord) or {name: type(v) for name, v in header.items()} != _REPLY_TYPES:
        return f"record reply must be a config record of {_REPLY_TYPES}"
    wanted = (expected.round, expected.version, expected.base_hash, num_users)
    for (name, value), want in zip(((n, header[n]) for n in _REPLY_TYPES), wanted, strict=True):
        if value != want:
            return f"{name} must be {want!r}, got another"
    return None
