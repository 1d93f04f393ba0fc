"""Send requests, and take replies as they come.

Flower's ``send_and_receive`` returns all replies of a round at once: for a thousand nodes that is a thousand adapters
in memory. Here replies are pulled in small batches, and nobody keeps them.

A reply that comes after its round has ended is looked for in the rounds that follow, until its message has expired, and
handed out apart from theirs: it is for them to refuse and to count.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice

from flwr.app import Message
from flwr.serverapp import Grid

from ownlet.server.clock import SYSTEM_CLOCK, Clock

__all__ = ["Mailbox"]

_AT_ONCE = 16
_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 1.0


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
        deadline, pause = started + timeout_seconds, _POLL_SECONDS
        try:
            while waiting:
                is_last, found = self._clock.now() >= deadline, False
                for ids in _batches(list(waiting)):
                    for reply in self._grid.pull_messages(ids):
                        found = True
                        waiting.pop(reply.metadata.reply_to_message_id, None)
                        yield reply
                if is_last:
                    return
                pause = _POLL_SECONDS if found else min(2 * pause, _LONGEST_POLL_SECONDS)
                if not found:
                    self._clock.sleep(max(0.0, min(pause, deadline - self._clock.now())))
        finally:
            self._late |= dict.fromkeys(waiting, started + ttl_seconds)

    def late(self) -> Iterator[Message]:
        """Yield replies to messages of rounds that have ended, each once."""
        for ids in _batches(list(self._late)):
            for reply in self._grid.pull_messages(ids):
                self._late.pop(reply.metadata.reply_to_message_id, None)
                yield reply
        now = self._clock.now()
        self._late = {message_id: expires for message_id, expires in self._late.items() if expires > now}


def _batches(ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
