"""Send requests, and take replies as they come.

Flower's ``send_and_receive`` returns all replies of a round at once: for a thousand nodes that is a thousand adapters
in memory. Here replies are pulled in small batches, and nobody keeps them.

A reply that comes after its round has ended is looked for in the rounds that follow, until its message has expired, and
handed out apart from theirs: it is for them to refuse and to count.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import islice

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from ownlet.server.clock import SYSTEM_CLOCK, Clock

__all__ = ["LONGEST_POLL_SECONDS", "POLL_SECONDS", "Mailbox", "is_gone", "node_name", "pull"]

POLL_SECONDS, LONGEST_POLL_SECONDS = 0.02, 1.0
"""Pauses between two looks for replies: the first, and what it doubles to while nothing comes."""

_AT_ONCE = 16
_GONE = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE)


class Mailbox:
    """Sends messages and follows their replies; one for a whole run."""

    def __init__(self, grid: Grid, clock: Clock = SYSTEM_CLOCK) -> None:
        """Start with nothing sent."""
        self._grid, self._clock = grid, clock
        self._late: dict[str, float] = {}  # message id -> when it expires

    def replies_to(self, messages: Iterable[Message], timeout_seconds: float, ttl_seconds: float) -> Generator[Message]:
        """Send messages and yield what comes back, in any order, until all have answered or the time is over.

        Whoever stops asking for more ends the wait, too.

        Args:
            messages: made some at a time as they are sent; Flower's grid reads what it gets twice: lists.
            timeout_seconds: from when the last message is sent; replies that are there by then are still yielded.
            ttl_seconds: how long the messages live.
        """
        made, waiting = iter(messages), dict[str, None]()
        while some := list(islice(made, _AT_ONCE)):
            waiting |= dict.fromkeys(self._grid.push_messages(some))
        started = self._clock.now()
        deadline, pause = started + timeout_seconds, POLL_SECONDS
        try:
            while waiting:
                is_last, found = self._clock.now() >= deadline, False
                for reply in pull(self._grid, list(waiting)):
                    found = True
                    waiting.pop(reply.metadata.reply_to_message_id, None)
                    yield reply
                if is_last:
                    return
                pause = POLL_SECONDS if found else min(2 * pause, LONGEST_POLL_SECONDS)
                if not found:
                    self._clock.sleep(max(0.0, min(pause, deadline - self._clock.now())))
        finally:
            self._late |= dict.fromkeys(waiting, started + ttl_seconds)

    def late(self) -> Iterator[Message]:
        """Yield replies to messages of rounds that have ended, each once."""
        for reply in pull(self._grid, list(self._late)):
            self._late.pop(reply.metadata.reply_to_message_id, None)
            yield reply
        now = self._clock.now()
        self._late = {message_id: expires for message_id, expires in self._late.items() if expires > now}


def is_gone(reply: Message) -> bool:
    """Say whether a reply is Flower's own word that none will come: its node has gone, or the message has expired.

    Such a node counts as missing, as one that says nothing; an error of the node's app is an answer, and refused.
    """
    return reply.has_error() and reply.error.code in _GONE


def node_name(node: int, partition_of_node: Mapping[int, int]) -> str:
    """Return how messages call a node: by its partition where that is known, else by Flower's number."""
    return f"partition {partition_of_node[node]}" if node in partition_of_node else f"node {node}"


def pull(grid: Grid, message_ids: list[str]) -> Iterator[Message]:
    """Yield the replies to these messages that are there now, a small batch at a time."""
    for start in range(0, len(message_ids), _AT_ONCE):
        yield from grid.pull_messages(message_ids[start : start + _AT_ONCE])
