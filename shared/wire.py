"""What server and nodes say to each other: one request, one reply, one flat float32 array in each.

A node hosts a shard of users: one in a deployment on devices, many in a simulation. Users are numbered 0..N-1 and user
u lives in partition ``u % num_partitions``; ``partition_of`` is the only place that says so. Arrays are decoded here
and not by Flower, which believes the shape that the sender claims and would allocate it.

Flower's cost per array is far above its cost per byte, hence one array per message.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from numpy.typing import NDArray

from ownlet.shared.adapter import Vector
from ownlet.shared.alternate import Part
from ownlet.shared.config import Plan
from ownlet.shared.errors import FederationError
from ownlet.shared.wire_config import FLOAT32, WireConfig

__all__ = [
    "PLACE_ACTION",
    "Place",
    "TrainReply",
    "TrainRequest",
    "array_bytes",
    "decode_bytes",
    "decode_vector",
    "partition_of",
    "place_from_records",
    "place_to_records",
    "records_from_bytes",
    "records_to_bytes",
    "reply_to_records",
    "request_from_records",
    "request_to_records",
    "requests_to_records",
]

PLACE_ACTION = "place"  # Flower message type "query.place": which partition does a node host?

_HEADER_BYTES = 4096  # more than any .npy header
_FLOAT, _BYTE = np.dtype("<f4"), np.dtype("|u1")


def partition_of(user: int, num_partitions: int) -> int:
    """Return the partition, 0 to ``num_partitions - 1``, in which a user lives."""
    return user % num_partitions


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which partition of the population a node hosts."""

    partition: int
    num_partitions: int


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the server asks of a node in a round. Every number is public.

    Args:
        vector: (P,) the global adapter.
        round: counted from 1.
        version: of the global adapter.
        base_hash: of the base that the adapter belongs to.
        plan: what each user does.
        unit: the privacy unit, ``user``, ``window`` or ``none``.
        clip_norm: C, the bound on each user's whole delta; infinity means no bound.
        users: the users that the node must train, at least one.
        seed: only in a simulation that must be reproducible; None lets every device draw from its operating system.
        counts: whether the reply's last number shall say how many deltas were within ``clip_norm`` before clipping.
        wire: the form of the reply.
        noise_multiplier: sigma of the Gaussian noise that the server promises on the round's sum under the unit
            ``user``, standard deviation divided by ``clip_norm``: what a device's ledger is charged with. 0 promises
            none that holds for a round by itself.
        part: what is trained of the adapter; the reply holds that part only.
    """

    vector: Vector
    round: int
    version: int
    base_hash: str
    plan: Plan
    unit: str
    clip_norm: float
    users: tuple[int, ...]
    seed: int | None = None
    counts: bool = False
    wire: WireConfig = FLOAT32
    noise_multiplier: float = 0.0
    part: Part = "all"


@dataclass(frozen=True, kw_only=True)
class TrainReply:
    """What a node answers. No loss, norm or count of examples is in it: those are private outputs.

    Args:
        total: (num_trainable,) the sum of the users' clipped deltas, over the part that is trained, or, where the
            request's wire is sparse, those of its numbers that travel; where the request counts, one number more
            (``delta.count_within``).
        round: of the request.
        version: of the adapter that the deltas are relative to.
        base_hash: of the base that the node trained on.
        num_users: how many users the node was asked to train, which the server knows already.
        coded: what is sent in place of ``total``: of one user whose delta is coded; the count behind it in float32.
    """

    total: Vector
    round: int
    version: int
    base_hash: str
    num_users: int
    coded: NDArray[np.uint8] | None = None


def request_to_records(request: TrainRequest) -> RecordDict:
    """Write a request as Flower records."""
    return next(requests_to_records([request]))


def requests_to_records(requests: Iterable[TrainRequest]) -> Iterator[RecordDict]:
    """Write requests one after the other; a vector that several of them share is written once."""
    vector, adapter = None, ArrayRecord()
    for request in requests:
        if request.vector is not vector:
            vector, adapter = request.vector, ArrayRecord({"vector": Array(request.vector)})
        yield RecordDict({"adapter": adapter, "request": ConfigRecord(_values_of(request))})


def _values_of(request: TrainRequest) -> dict[str, Any]:
    values: dict[str, Any] = {
        "round": request.round,
        "version": request.version,
        "base-hash": request.base_hash,
        "unit": request.unit,
        "clip-norm": float(request.clip_norm),
        "noise-multiplier": float(request.noise_multiplier),
        "users": list(request.users),
        "plan": _plan_text(request.plan),
    }
    if request.seed is not None:
        values["seed"] = request.seed
    if request.counts:
        values["counts"] = True
    if request.wire != FLOAT32:
        values["wire"] = json.dumps(asdict(request.wire))
    if request.part != "all":  # a node that knows no parts trains all, and admission refuses what it sends
        values["part"] = request.part
    return values


@lru_cache(maxsize=8)
def _plan_text(plan: Plan) -> str:
    """Write a plan as JSON: one value, since Flower's cost per value is far above its cost per byte."""
    return json.dumps(asdict(plan))


def request_from_records(records: RecordDict, size: int) -> TrainRequest:
    """Read what ``request_to_records`` wrote.

    Args:
        records: the content of a message.
        size: P, the length of the node's adapter.

    Raises:
        FederationError: a record is missing, or the vector is not a float32 array (P,).
        ConfigError: the plan breaks a rule.
    """
    values = _config(records, "request")
    try:
        return TrainRequest(
            vector=decode_vector(records, "adapter", "vector", size),
            round=values["round"],
            version=values["version"],
            base_hash=values["base-hash"],
            plan=Plan(**json.loads(values["plan"])),
            unit=values["unit"],
            clip_norm=values["clip-norm"],
            users=tuple(values["users"]),
            seed=values.get("seed"),
            counts=values.get("counts", False),
            wire=WireConfig(**json.loads(values.get("wire", "{}"))),
            noise_multiplier=values.get("noise-multiplier", 0.0),
            part=values.get("part", "all"),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FederationError(f"request must have every field, got {error}") from error


def reply_to_records(reply: TrainReply) -> RecordDict:
    """Write a reply as Flower records."""
    values: dict[str, Any] = {
        "round": reply.round,
        "version": reply.version,
        "base-hash": reply.base_hash,
        "num-users": reply.num_users,
    }
    arrays = ArrayRecord({"total": Array(reply.total if reply.coded is None else reply.coded)})
    return RecordDict({"delta": arrays, "reply": ConfigRecord(values)})


def records_to_bytes(records: RecordDict) -> bytes:
    """Write the content of a message as bytes; equal content gives equal bytes."""
    content: bytes = recorddict_to_proto(records).SerializeToString(deterministic=True)
    return content


def records_from_bytes(content: bytes) -> RecordDict:
    """Read what ``records_to_bytes`` wrote."""
    return recorddict_from_proto(RecordDictProto.FromString(content))


def place_to_records(place: Place) -> RecordDict:
    """Write a place as Flower records."""
    values: dict[str, Any] = {"partition": place.partition, "num-partitions": place.num_partitions}
    return RecordDict({"place": ConfigRecord(values)})


def place_from_records(records: RecordDict) -> Place:
    """Read what ``place_to_records`` wrote.

    Raises:
        FederationError: not two integers with 0 <= partition < num_partitions.
    """
    values = _config(records, "place")
    partition, count = values.get("partition"), values.get("num-partitions")
    if type(partition) is not int or type(count) is not int or not 0 <= partition < count:
        raise FederationError(f"place must be a partition below num-partitions, got {partition!r} and {count!r}")
    return Place(partition=partition, num_partitions=count)


def array_bytes(records: RecordDict) -> int:
    """Return how many bytes the arrays of a message take, their own headers included, all else not."""
    return sum(len(array.data) for record in records.array_records.values() for array in record.values())


def decode_vector(records: RecordDict, record: str, name: str, size: int) -> Vector:
    """Return the one array of a record, decoded by its own bytes and not by what the message claims.

    See ``decode_bytes``; this one wants float32 and returns it, finite or not.
    """
    return _decode(records, record, name, size, _FLOAT).astype(np.float32)


def decode_bytes(records: RecordDict, record: str, name: str, size: int) -> NDArray[np.uint8]:
    """Return the one array of a record, decoded by its own bytes and not by what the message claims.

    Args:
        records: the content of a message.
        record: which record; it must be an array record.
        name: the only key that the record may have.
        size: the length that the array must have.

    Returns:
        (size,) bytes.

    Raises:
        FederationError: missing, another key, dtype, shape or length of data.
    """
    return _decode(records, record, name, size, _BYTE)


def _decode(records: RecordDict, record: str, name: str, size: int, wanted: np.dtype[Any]) -> NDArray[Any]:
    arrays = records.get(record)
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {name}:
        raise FederationError(f"array record {record} must have exactly the key {name}")
    data = arrays[name].data
    if len(data) > wanted.itemsize * size + _HEADER_BYTES:
        raise FederationError(f"array must have {size} numbers, got {len(data)} bytes")
    if data.startswith(usual := _usual_header(size, wanted)) and len(data) == len(usual) + wanted.itemsize * size:
        return np.frombuffer(data, dtype=wanted, offset=len(usual))
    dtype, shape, start = _npy_header(data)
    if dtype != wanted:
        raise FederationError(f"array must be {wanted}, got dtype={dtype}")
    if shape != (size,):
        raise FederationError(f"array must have shape ({size},), got shape={shape}")
    if len(data) != start + wanted.itemsize * math.prod(shape):
        raise FederationError(f"array must have {wanted.itemsize * size} bytes of data, got {len(data) - start}")
    return np.frombuffer(data, dtype=wanted, offset=start)


@lru_cache(maxsize=16)
def _usual_header(size: int, dtype: np.dtype[Any]) -> bytes:
    """Return the header that NumPy writes for an array (size,); to compare with it is far quicker than to parse it."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": dtype.str, "fortran_order": False, "shape": (size,)})
    return stream.getvalue()


def _npy_header(data: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("only version 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise FederationError("array must be in NumPy's .npy format 1.0") from error
    return dtype, shape, stream.tell()


def _config(records: RecordDict, name: str) -> Mapping[str, Any]:
    config = records.get(name)
    if not isinstance(config, ConfigRecord):
        raise FederationError(f"config record {name} must be in the message, got records {sorted(records)}")
    return config
