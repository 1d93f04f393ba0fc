"""Many devices in one other process, behind a socket: what a load test of the server talks to.

Messages are Flower's own protocol buffers, whole, in frames of a length and so many bytes. What the two sides say:

* ``P`` and a message: a request for a node, which answers at once; the reply is kept until it is asked for.
* ``G`` and message ids: the replies to these, one frame each.

The devices train nothing: each sends one of some vectors of nearly the largest admitted norm, drawn at the start. The
server therefore pays for sockets, serialisation and parsing as it does for devices that exist.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import IOBase
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto

from ownlet.shared.adapter import Vector
from ownlet.shared.errors import FederationError
from ownlet.shared.wire import PLACE_ACTION, Place, TrainReply, place_to_records, reply_to_records
from ownlet.simulations.grid import FIRST_NODE_ID, NumberedGrid, take_identity

__all__ = ["SocketGrid", "made_up_deltas", "other_process", "serve_nodes"]

_LENGTH = struct.Struct(">I")
_DISTINCT = 64  # deltas that devices take turns with
_BUFFER = 1 << 20
_START_SECONDS = 120


class SocketGrid(NumberedGrid):
    """Flower's grid over one socket, behind which are all the nodes."""

    def __init__(self, connection: socket.socket, num_nodes: int) -> None:
        """Take a connection to ``serve_nodes``.

        Args:
            connection: closed by its owner.
            num_nodes: how many; node ``1000 + i`` hosts user i.
        """
        super().__init__(num_nodes)
        self._socket, self._file = connection, connection.makefile("rb", buffering=_BUFFER)
        self.bytes_received = 0

    def close(self) -> None:
        """Stop reading; the connection is its owner's."""
        self._file.close()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids."""
        sent = []
        for message in messages:
            sent.append(next(self._message_ids))
            message.metadata.__dict__["_message_id"] = sent[-1]
            _send(self._socket, b"P" + message_to_proto(message).SerializeToString())
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Ask for the replies to some messages."""
        wanted = list(message_ids)
        _send(self._socket, b"G" + json.dumps(wanted).encode())
        return [self._receive() for _ in wanted]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    def _receive(self) -> Message:
        data = _read(self._file)
        if data is None:
            raise FederationError("the process of the nodes must answer, got the end of its connection")
        self.bytes_received += len(data)
        return message_from_proto(MessageProto.FromString(data))


@contextmanager
def other_process(num_nodes: int, num_trainable: int, clip_norm: float) -> Iterator[socket.socket]:
    """Start a process that is the nodes, give the connection to it, and end it when the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(_START_SECONDS)
        given = (listener.getsockname()[1], num_nodes, num_trainable, clip_norm)
        process = subprocess.Popen([sys.executable, "-m", __name__, *map(str, given)])
        connection, _ = listener.accept()
    connection.setblocking(True)
    try:
        yield connection
    finally:
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()
        process.wait(timeout=_START_SECONDS)


def made_up_deltas(num_trainable: int, clip_norm: float) -> list[Vector]:
    """Return some deltas (num_trainable,) in random directions, of nine tenths to all of the clip norm."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(_DISTINCT, num_trainable))
    lengths = clip_norm * rng.uniform(0.9, 0.9999, size=_DISTINCT)
    scaled = drawn * (lengths / np.linalg.norm(drawn, axis=1))[:, None]
    return list(scaled.astype(np.float32))


def serve_nodes(connection: socket.socket, num_nodes: int, deltas: list[Vector]) -> None:
    """Be all the nodes until the connection ends."""
    take_identity()
    replies: dict[str, bytes] = {}
    turns = itertools.cycle(deltas)
    with connection.makefile("rb", buffering=_BUFFER) as file:
        while (data := _read(file)) is not None:
            if data[:1] == b"P":
                request = message_from_proto(MessageProto.FromString(data[1:]))
                reply = Message(_answer(request, num_nodes, turns), reply_to=request)
                replies[request.metadata.message_id] = message_to_proto(reply).SerializeToString()
                continue
            for message_id in json.loads(data[1:]):
                _send(connection, replies.pop(message_id))


def _answer(request: Message, num_nodes: int, turns: Iterator[Vector]) -> RecordDict:
    if request.metadata.message_type == f"query.{PLACE_ACTION}":
        partition = request.metadata.dst_node_id - FIRST_NODE_ID
        return place_to_records(Place(partition=partition, num_partitions=num_nodes))
    asked: dict[str, Any] = dict(request.content.config_records["request"])  # what our own server sends
    return reply_to_records(
        TrainReply(
            total=next(turns),
            round=asked["round"],
            version=asked["version"],
            base_hash=asked["base-hash"],
            num_users=len(asked["users"]),
        )
    )


def _send(connection: socket.socket, data: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(data)) + data)


def _read(file: IOBase) -> bytes | None:
    """Return the next frame, None at the end."""
    head: bytes = file.read(_LENGTH.size)
    data: bytes | None = file.read(*_LENGTH.unpack(head)) if len(head) == _LENGTH.size else None
    return data


if __name__ == "__main__":
    _port, _nodes, _size, _clip = sys.argv[1:]
    serve_nodes(
        socket.create_connection(("127.0.0.1", int(_port))), int(_nodes), made_up_deltas(int(_size), float(_clip))
    )
