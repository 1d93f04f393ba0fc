"""Bytes of a run: those of one user's device on its own, and those that its nodes sent and were sent."""

from __future__ import annotations

import numpy as np
from flwr.common.serde import recorddict_to_proto

from ownlet.server.checkpoint import RoundResult
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.alternate import Part, spec_of_part
from ownlet.shared.coding import coded_bytes, sent_numbers
from ownlet.shared.config import FederationConfig
from ownlet.shared.wire import TrainReply, TrainRequest, reply_to_records, request_to_records

__all__ = ["traffic_of", "wire_bytes"]


def wire_bytes(spec: AdapterSpec, config: FederationConfig) -> tuple[int, int]:
    """Return the bytes of one user's messages in one round, up and down, as Flower serialises them.

    Where rounds alternate, that is the mean over the two parts.
    """
    parts: tuple[Part, ...] = ("b", "a") if config.alternate else ("all",)
    found = [_bytes_of(spec_of_part(spec, part), config, part) for part in parts]
    up, down = zip(*found, strict=True)
    return round(sum(up) / len(up)), round(sum(down) / len(down))


def _bytes_of(spec: AdapterSpec, config: FederationConfig, part: Part) -> tuple[int, int]:
    request = TrainRequest(
        vector=np.zeros(spec.size, np.float32),
        round=config.rounds,
        version=config.rounds,
        base_hash=spec.base_hash,
        plan=config.plan,
        unit=config.unit,
        clip_norm=config.clip_norm,
        users=(0,),
        counts=config.counts,
        wire=config.wire,
        part=part,
    )
    num_coded = coded_bytes(config.wire, spec.num_trainable) + 4 * config.counts
    reply = TrainReply(
        total=np.zeros(sent_numbers(config.wire, spec.num_trainable) + config.counts, np.float32),
        round=config.rounds,
        version=config.rounds,
        base_hash=spec.base_hash,
        num_users=1,
        coded=np.zeros(num_coded, np.uint8) if config.wire.is_coded else None,
    )
    up, down = reply_to_records(reply), request_to_records(request)
    return recorddict_to_proto(up).ByteSize(), recorddict_to_proto(down).ByteSize()


def traffic_of(spec: AdapterSpec, config: FederationConfig, rounds: tuple[RoundResult, ...]) -> dict[str, int]:
    """Return what a run's summary tells: bytes of a user's device in a round, and, where counted, arrays of a node."""
    up, down = wire_bytes(spec, config)
    told = {"bytes_up_per_user_round": up, "bytes_down_per_user_round": down}
    ups = [(record.bytes_up, record.num_admitted) for record in rounds if record.bytes_up is not None]
    downs = [(record.bytes_down, record.num_nodes) for record in rounds if record.bytes_down is not None]
    for name, counted in (("up", ups), ("down", downs)):
        num_messages = sum(messages for _, messages in counted)
        if num_messages:
            told[f"bytes_{name}_per_node_round"] = round(sum(size for size, _ in counted) / num_messages)
    return told
