"""Buffered asynchronous rounds (FedBuff, Nguyen et al. 2022, https://arxiv.org/abs/2106.06639, algorithm 1).

There are always ``concurrency`` users training. Whoever is done makes room for another, who gets the adapter of that
moment; the server takes a step after every K updates, however old the adapters are that they are relative to. An update
that is s versions old counts ``(1 + s) ** -power``, and beyond ``max_staleness`` it is refused. The average is over K.

Privacy. Under the unit ``window`` an update carries its own noise when it is sent; when it is added, and with what
weight, is post-processing. The most asked user is charged for every time it was asked, as in synchronous rounds, and
``turns`` bounds how often that is. A user is asked again only when its last update has been taken or has expired.

Noise of the server (unit ``user``) is refused. Which updates share a buffer depends on who was there before: one user
more moves the edge of this buffer and of all that follow, and so single updates from one sum into the next. Noise made
for the clip norm would cover that only if times did not depend on data, which nobody can check.

What is under way lives in memory: after a restart of the server those users have been charged, and are asked anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ownlet.server.admit import LARGEST_NORM, Expected, admit
from ownlet.server.ask import Answers, expected_replies, train_request
from ownlet.server.checkpoint import ServerState
from ownlet.server.clock import SYSTEM_CLOCK, Clock
from ownlet.server.cohorts import round_noise
from ownlet.server.combine import ExactSum
from ownlet.server.nodes import Nodes, split_cohort
from ownlet.server.replies import LONGEST_POLL_SECONDS, POLL_SECONDS, is_gone, node_name, pull
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ReplyRejectedError
from ownlet.shared.wire import array_bytes, partition_of, requests_to_records

__all__ = ["Flight", "ask_buffered", "draw_idle", "staleness_weight"]


@dataclass(frozen=True, kw_only=True)
class _UnderWay:
    """A request that has not been answered, or whose answer has not been taken."""

    user: int
    expected: Expected
    expires: float


@dataclass
class Flight:
    """Who is training; one for a whole run.

    Args:
        grid: the way to the nodes.
        clock: that waiting is measured by.
    """

    grid: Grid
    clock: Clock = SYSTEM_CLOCK
    _asked: dict[str, _UnderWay] = field(default_factory=dict)
    _arrived: deque[Message] = field(default_factory=deque)

    def busy(self) -> NDArray[np.int64]:
        """Return the users who are training, in order."""
        return np.array(sorted(one.user for one in self._asked.values()), dtype=np.int64)

    def start(self, message_ids: list[str], under_way: list[_UnderWay]) -> None:
        """Follow messages that have been sent."""
        self._asked.update(zip(message_ids, under_way, strict=True))

    def replies(self, deadline: float) -> Iterator[tuple[Message, _UnderWay]]:
        """Yield answers as they come, with what they answer, until nothing is under way or the time is over."""
        pause = POLL_SECONDS
        while True:
            while self._arrived:
                reply = self._arrived.popleft()
                asked = self._asked.pop(reply.metadata.reply_to_message_id, None)
                if asked is not None:
                    yield reply, asked
            if self._pull():
                pause = POLL_SECONDS
                continue
            now = self.clock.now()
            if not self._asked or now >= deadline:
                return
            self.clock.sleep(min(pause, deadline - now))
            pause = min(2 * pause, LONGEST_POLL_SECONDS)

    def forget_expired(self) -> int:
        """Stop following messages that have expired; return how many."""
        now, here = self.clock.now(), {reply.metadata.reply_to_message_id for reply in self._arrived}
        expired = [at for at, one in self._asked.items() if one.expires <= now and at not in here]
        for message_id in expired:
            del self._asked[message_id]
        return len(expired)

    def _pull(self) -> bool:
        self._arrived.extend(pull(self.grid, list(self._asked)))
        return bool(self._arrived)


def draw_idle(
    config: FederationConfig,
    num_users: int,
    round_number: int,
    participations: NDArray[np.int64],
    busy: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return who is asked next, in order: at random among those who are not training, up to the concurrency.

    Args:
        config: concurrency; ``turns`` is the most often that a user is asked, 0 for no bound.
        num_users: N.
        round_number: from 1.
        participations: (N,) how often each user was asked before.
        busy: who is training.
    """
    idle = np.setdiff1d(np.arange(num_users), busy)
    if config.turns:
        idle = idle[participations[idle] < config.turns]
    order = round_noise(config, "cohort", round_number).permutation(len(idle))
    return np.sort(idle[order[: max(0, config.buffer.concurrency - len(busy))]])


def staleness_weight(staleness: int, power: float) -> float:
    """Return what an update counts that is so many versions old."""
    return float((1 + staleness) ** -power)


def ask_buffered(
    nodes: Nodes,
    flight: Flight,
    config: FederationConfig,
    spec: AdapterSpec,
    state: ServerState,
    cohort: NDArray[np.int64],
    number: int,
) -> Answers:
    """Ask the users of a cohort, one message for each, and wait for a buffer of updates from whoever was asked.

    Args:
        nodes: the way to them.
        flight: who is training.
        config: of the run.
        spec: of the adapter.
        state: with the adapter that the cohort gets.
        cohort: the users, in order.
        number: of the round, from 1.

    Raises:
        FederationError: no node connects in time.
    """
    node_of, num_partitions = nodes.connected()
    bound = config.delta_bound(spec.num_trainable)
    missing = flight.forget_expired()
    partition_of_node = {node: partition for partition, node in node_of.items()}
    users = [user for user in cohort.tolist() if partition_of(user, num_partitions) in node_of]
    requests = [train_request(config, spec, state, (user,), number, bound) for user in users]
    at = [node_of[partition_of(user, num_partitions)] for user in users]
    ttl = config.reply_timeout_seconds
    messages = [
        Message(records, node, "train", group_id=str(number), ttl=ttl)
        for node, records in zip(at, requests_to_records(requests), strict=True)
    ]
    bytes_down = sum(array_bytes(message.content) for message in messages)
    expires = flight.clock.now() + ttl
    under_way = [
        _UnderWay(
            user=user, expected=expected_replies(config, spec, {node: request}, partition_of_node), expires=expires
        )
        for user, node, request in zip(users, at, requests, strict=True)
    ]
    flight.start(list(flight.grid.push_messages(messages)), under_way)
    total = ExactSum(spec.num_trainable, config.buffer.size * max(0.5, min(bound, LARGEST_NORM)))
    admitted, late, bytes_up, rejected = 0, 0, 0, list[str]()
    for reply, asked in flight.replies(flight.clock.now() + config.deadline_seconds):
        if is_gone(reply):
            missing += 1
            continue
        staleness = state.version - asked.expected.version
        try:
            delta = admit(reply, asked.expected)
            if staleness > config.buffer.max_staleness:
                late += 1
                name = node_name(reply.metadata.src_node_id, asked.expected.partition_of_node)
                raise ReplyRejectedError(
                    f"late: round {number}, admit, {name}: the version must be at most "
                    f"{config.buffer.max_staleness} back, got {staleness}"
                )
        except ReplyRejectedError as error:
            rejected.append(str(error))
            continue
        total.add(delta * np.float64(staleness_weight(staleness, config.buffer.staleness_power)), 1)
        admitted, bytes_up = admitted + 1, bytes_up + array_bytes(reply.content)
        if admitted == config.buffer.size:
            break
    return Answers(
        asked=split_cohort(cohort, num_partitions),
        total=total.result() if admitted else None,
        num_admitted=admitted,
        rejected=tuple(sorted(rejected)),
        num_missing=missing + len(cohort) - len(users),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        num_late=late,
    )
