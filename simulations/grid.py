"""Flower's ``Grid`` without SuperLink or ports: N nodes, each a ClientApp that is called directly.

The same ServerApp and ClientApp run here as in a deployment, at about a millisecond per message. Message content goes
through Flower's own serialisation both ways, so nothing is shared between nodes, and what could not be sent over a
network cannot be sent here either. What a node raises is logged where the node's data is, and the server sees only an
error code.

``InProcessGrid`` calls one node after the other, so a slow node never misses a time-out; the nodes of the grid in
``simulations/ray_grid.py`` are processes.
"""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ownlet.shared.errors import require
from ownlet.shared.wire import records_from_bytes, records_to_bytes

__all__ = [
    "FIRST_NODE_ID",
    "Answer",
    "Call",
    "InProcessGrid",
    "LocalGrid",
    "NumberedGrid",
    "answer_call",
    "node_context",
    "run_apps",
    "take_identity",
]

FIRST_NODE_ID = 1000
"""Of partition 0. Flower keeps 1 for the SuperLink."""

_RUN_ID = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A message on its way to a node, as bytes."""

    node: int
    message_id: str
    message_type: str
    group_id: str
    ttl: float
    content: bytes

    @classmethod
    def of(cls, message: Message, message_id: str) -> Call:
        """Write a message down."""
        return cls(
            node=message.metadata.dst_node_id,
            message_id=message_id,
            message_type=message.metadata.message_type,
            group_id=message.metadata.group_id,
            ttl=message.metadata.ttl,
            content=records_to_bytes(message.content),
        )

    def message(self) -> Message:
        """Read the message."""
        message = Message(
            records_from_bytes(self.content), self.node, self.message_type, group_id=self.group_id, ttl=self.ttl
        )
        message.metadata.__dict__["_message_id"] = self.message_id
        return message


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a node returned: content as bytes, or an error."""

    content: bytes = b""
    error_code: int | None = None
    reason: str = ""

    def message(self, call: Call) -> Message:
        """Return the reply to a call."""
        if self.error_code is not None:
            return Message(Error(self.error_code, self.reason), reply_to=call.message())
        return Message(records_from_bytes(self.content), reply_to=call.message())


def answer_call(client_app: ClientApp, context: Context, call: Call) -> Answer:
    """Be the node: call its app. Whatever that raises becomes an error reply, as in Flower."""
    try:
        reply = client_app(call.message(), context)
    except Exception as error:  # a grid that let it through would end the run
        _log.warning("node %d raised", call.node, exc_info=error)
        return Answer(error_code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=repr(error))
    if not reply.has_content():
        return Answer(error_code=reply.error.code, reason=reply.error.reason or "")
    return Answer(content=records_to_bytes(reply.content))


def node_context(partition: int, num_nodes: int, run_config: Mapping[str, UserConfigValue] | None = None) -> Context:
    """Return the context of the node that hosts a partition."""
    return Context(
        run_id=_RUN_ID,
        node_id=FIRST_NODE_ID + partition,
        node_config={"partition-id": partition, "num-partitions": num_nodes},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )


def take_identity() -> None:
    """Say who this process is: Flower's messages take their sender from it, as in its own simulation."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, SUPERLINK_NODE_ID


class NumberedGrid(Grid):
    """A grid whose nodes are known by number; partition i lives on the node with id 1000 + i."""

    def __init__(self, num_nodes: int) -> None:
        """Name the nodes.

        Args:
            num_nodes: how many.
        """
        require(num_nodes >= 1, "num_nodes must be at least 1", num_nodes=num_nodes)
        take_identity()
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._nodes = range(FIRST_NODE_ID, FIRST_NODE_ID + num_nodes)
        self._message_ids = map(str, itertools.count(1))

    def set_run(self, run: Run) -> None:
        """Set the run that this grid belongs to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid belongs to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self._nodes)


class LocalGrid(NumberedGrid):
    """What grids on one machine or cluster share: they deliver calls, and collect answers."""

    def __init__(self, num_nodes: int) -> None:
        """Name the nodes.

        Args:
            num_nodes: how many.
        """
        super().__init__(num_nodes)
        self._calls: dict[str, Call] = {}

    @abstractmethod
    def _send(self, partition: int, call: Call) -> None:
        """Deliver a call to the node of a partition."""

    @abstractmethod
    def _collect(self, message_ids: list[str], wait_seconds: float | None) -> dict[str, Answer]:
        """Return the answers that are there, each once, after waiting for the others: None is without end."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages and return their ids."""
        sent = []
        for message in messages:
            call = Call.of(message, next(self._message_ids))
            self._calls[call.message_id] = call
            sent.append(call.message_id)
            if call.node in self._nodes:
                self._send(call.node - FIRST_NODE_ID, call)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out the replies that are there, each once."""
        return self._replies(list(message_ids), 0.0)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies that come in time."""
        return self._replies(self.push_messages(messages), timeout)

    def _replies(self, message_ids: list[str], wait_seconds: float | None) -> list[Message]:
        known = [message_id for message_id in message_ids if message_id in self._calls]
        lost = [message_id for message_id in known if self._calls[message_id].node not in self._nodes]
        answers = self._collect([message_id for message_id in known if message_id not in lost], wait_seconds)
        answers |= {at: Answer(error_code=ErrorCode.NODE_UNAVAILABLE, reason="no such node") for at in lost}
        return [answers[at].message(self._calls.pop(at)) for at in known if at in answers]


class InProcessGrid(LocalGrid):
    """Nodes in this process; each answers when its reply is asked for, and before the next is called."""

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, UserConfigValue] | None = None
    ) -> None:
        """Start the nodes.

        Args:
            client_app: the app of every node.
            num_nodes: how many.
            run_config: what each node's ``context.run_config`` holds.
        """
        super().__init__(num_nodes)
        self._client_app = client_app
        self._contexts = [node_context(partition, num_nodes, run_config) for partition in range(num_nodes)]
        self._waiting: dict[str, tuple[int, Call]] = {}

    def _send(self, partition: int, call: Call) -> None:
        self._waiting[call.message_id] = (partition, call)

    def _collect(self, message_ids: list[str], wait_seconds: float | None) -> dict[str, Answer]:
        return {at: self._answer(*self._waiting.pop(at)) for at in message_ids}

    def _answer(self, partition: int, call: Call) -> Answer:
        return answer_call(self._client_app, self._contexts[partition], call)


def run_apps(server_app: ServerApp, grid: Grid, run_config: Mapping[str, UserConfigValue] | None = None) -> None:
    """Run a ServerApp against a grid until it returns.

    Args:
        server_app: as ``make_server_app`` gives it.
        grid: the nodes.
        run_config: what the server's ``context.run_config`` holds.

    Raises:
        OwnletError: what the server app raises.
    """
    context = Context(
        run_id=_RUN_ID, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config or {})
    )
    server_app(grid, context)
