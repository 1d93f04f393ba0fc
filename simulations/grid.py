"""Flower's ``Grid`` in one process: N nodes, each a ClientApp that is called directly.

The same ServerApp and ClientApp run here as in a deployment, without Ray, SuperLink or ports, at about a millisecond
per message. Message content goes through Flower's own serialisation both ways, so nothing is shared between nodes, and
what could not be sent over a network cannot be sent here either. Nodes answer one after the other, so a slow node never
misses a time-out. What a node raises is logged here, where the node's data is, and the server sees only an error code.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict, UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from ownlet.shared.errors import require

__all__ = ["InProcessGrid", "run_apps"]

_RUN_ID = 1
_FIRST_NODE_ID = 1000  # Flower keeps 1 for the SuperLink

_log = logging.getLogger(__name__)


class InProcessGrid(Grid):
    """A grid of ``num_nodes`` nodes; partition i lives on the node with id 1000 + i."""

    def __init__(
        self, client_app: ClientApp, num_nodes: int, run_config: Mapping[str, UserConfigValue] | None = None
    ) -> None:
        """Start the nodes.

        Args:
            client_app: the app of every node.
            num_nodes: how many.
            run_config: what each node's ``context.run_config`` holds.
        """
        require(num_nodes >= 1, "num_nodes must be at least 1", num_nodes=num_nodes)
        self._client_app = client_app
        # Flower's messages take their sender from the process, as in its own simulation.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, _RUN_ID, SUPERLINK_NODE_ID
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._contexts = {
            _FIRST_NODE_ID + partition: Context(
                run_id=_RUN_ID,
                node_id=_FIRST_NODE_ID + partition,
                node_config={"partition-id": partition, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for partition in range(num_nodes)
        }
        self._message_ids = map(str, itertools.count(1))
        self._replies: dict[str, Message] = {}

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
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages; each node answers before the next is called."""
        sent = []
        for message in messages:
            sent.append(next(self._message_ids))
            self._replies[sent[-1]] = self._deliver(message, sent[-1])
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out replies, each once."""
        return [self._replies.pop(message_id) for message_id in list(message_ids) if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Deliver messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))

    def _deliver(self, message: Message, message_id: str) -> Message:
        node = message.metadata.dst_node_id
        delivered = Message(
            _copied(message.content),
            node,
            message.metadata.message_type,
            group_id=message.metadata.group_id,
            ttl=message.metadata.ttl,
        )
        delivered.metadata.__dict__["_message_id"] = message_id
        if node not in self._contexts:
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "no such node"), reply_to=delivered)
        try:
            reply = self._client_app(delivered, self._contexts[node])
        except Exception as error:
            # Flower turns whatever a node raises into an error reply; a grid that let it through would end the run.
            _log.warning("node %d raised", node, exc_info=error)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, repr(error)), reply_to=delivered)
        if reply.has_content():
            reply.content = _copied(reply.content)
        return reply


def _copied(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def run_apps(
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int,
    run_config: Mapping[str, UserConfigValue] | None = None,
) -> None:
    """Run a ServerApp against ``num_nodes`` in-process nodes until it returns.

    Args:
        server_app: as ``make_server_app`` gives it.
        client_app: as ``make_client_app`` gives it.
        num_nodes: how many nodes the population is spread over; the result does not depend on it.
        run_config: what every ``context.run_config`` holds.

    Raises:
        OwnletError: what the server app raises.
    """
    context = Context(
        run_id=_RUN_ID, node_id=SUPERLINK_NODE_ID, node_config={}, state=RecordDict(), run_config=dict(run_config or {})
    )
    server_app(InProcessGrid(client_app, num_nodes, run_config), context)
