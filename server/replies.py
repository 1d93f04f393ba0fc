"""Send requests, and take replies as they come.

Flower's ``send_and_receive`` returns all replies of a round at once: for a thousand nodes that is a thousand adapters
in memory. Here replies are pulled in small batches, and nobody keeps them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["replies_to"]

_AT_ONCE = 16
_POLL_SECONDS = 0.02
_LONGEST_POLL_SECONDS = 1.0


def replies_to(grid: Grid, messages: Iterable[Message], timeout_seconds: float) -> Iterator[Message]:
    """Send messages and yield what comes back, in any order, until all have answered or the time is over.

    Args:
        grid: the way to the nodes.
        messages: made some at a time as they are sent; Flower's grid reads what it is given twice, so it gets lists.
        timeout_seconds: from when the last message is sent; replies that are there by then are still yielded.
    """
    made, waiting = iter(messages), list[str]()
    while some := list(islice(made, _AT_ONCE)):
        waiting += grid.push_messages(some)
    deadline, pause = time.monotonic() + timeout_seconds, _POLL_SECONDS
    while waiting:
        answered: set[str] = set()
        is_last = time.monotonic() >= deadline
        for start in range(0, len(waiting), _AT_ONCE):
            for reply in grid.pull_messages(waiting[start : start + _AT_ONCE]):
                answered.add(reply.metadata.reply_to_message_id)
                yield reply
        waiting = [message_id for message_id in waiting if message_id not in answered]
        if is_last:
            return
        if not answered:
            time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_POLL_SECONDS)
        else:
            pause = _POLL_SECONDS
