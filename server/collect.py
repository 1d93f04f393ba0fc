"""From replies, as they come, to one sum: each is checked, added, and forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from ownlet.server.admit import Expected, admit
from ownlet.server.combine import Combiner
from ownlet.server.replies import is_gone
from ownlet.shared.errors import ReplyRejectedError
from ownlet.shared.wire import array_bytes

__all__ = ["Collected", "collect"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """What came of the replies.

    Args:
        total: what the combiner makes of the admitted ones.
        admitted: nodes whose reply is in it.
        heard: nodes that were asked and that answered, well or not.
        rejected: why other replies are not in it.
        num_bytes: of the arrays in the admitted ones.
    """

    total: NDArray[np.float64]
    admitted: frozenset[int]
    heard: frozenset[int]
    rejected: tuple[str, ...]
    num_bytes: int = 0


def collect(
    replies: Iterable[Message], expected: Expected, combiner: Combiner, *, enough: float = math.inf
) -> Collected:
    """Check every reply on its own and combine those that may enter the adapter.

    Args:
        replies: in any order; each is asked for only when the one before has been added.
        expected: what they must be like.
        combiner: a fresh one.
        enough: no more replies are asked for once this many users are in it.
    """
    admitted: set[int] = set()
    heard: set[int] = set()
    rejected: list[str] = []
    num_bytes, num_users = 0, 0
    for reply in replies:
        if is_gone(reply):
            continue
        node = reply.metadata.src_node_id
        heard.add(node)
        try:
            total = admit(reply, expected, admitted)
        except ReplyRejectedError as error:
            rejected.append(str(error))
            continue
        admitted.add(node)
        num_bytes += array_bytes(reply.content)
        combiner.add(total, expected.users_by_node[node])
        num_users += expected.users_by_node[node]
        if num_users >= enough:
            break
    return Collected(
        total=combiner.result(),
        admitted=frozenset(admitted),
        heard=frozenset(heard & set(expected.users_by_node)),
        rejected=tuple(sorted(rejected)),
        num_bytes=num_bytes,
    )
