"""What a round asks of the nodes, and what came of it: single sums that the server adds up, or only their sum.

Both ways end with the same value (``Answers``), so nothing after it knows how the replies were added up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from ownlet.server.admit import Expected, admit
from ownlet.server.checkpoint import ServerState
from ownlet.server.collect import collect
from ownlet.server.combine import Combiner
from ownlet.server.nodes import Nodes, split_cohort
from ownlet.server.replies import Mailbox, is_gone, node_name
from ownlet.server.robust import make_combiner
from ownlet.server.secure_rounds import ask_securely
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.alternate import Part, part_of_round, places_of_part, spec_of_part
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ReplyRejectedError
from ownlet.shared.wire import TrainRequest, array_bytes, requests_to_records

__all__ = ["Answers", "ask", "expected_replies", "train_request", "unanswered"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What came of asking.

    Args:
        asked: partition -> users asked.
        total: the sum of what was admitted, (num_trainable,) of the round's part or, where replies count, one more;
            None where there is nothing that may be released.
        num_admitted: nodes whose sum is in it.
        rejected: why other answers are not.
        num_missing: nodes that were not connected, did not answer in time, or went away meanwhile.
        noise_multiplier: under secure aggregation, of the nodes' noise that is in the total.
        bytes_up, bytes_down: of the arrays in admitted replies and in requests; not counted under secure aggregation.
        admitted: partitions whose sum is in the total, in order, where the server sees single sums.
        num_late: replies to earlier rounds, which are refused; not counted there, too.
    """

    asked: Mapping[int, tuple[int, ...]]
    total: NDArray[np.float64] | None
    num_admitted: int
    rejected: tuple[str, ...]
    num_missing: int
    noise_multiplier: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    num_late: int = 0
    admitted: tuple[int, ...] = ()


def promised_noise(config: FederationConfig) -> float:
    """Return the noise multiplier that a round's sum has by itself; correlated noise promises none for a round."""
    return config.noise_multiplier if config.unit == "user" and not config.correlated else 0.0


def train_request(
    config: FederationConfig,
    spec: AdapterSpec,
    state: ServerState,
    users: tuple[int, ...],
    number: int,
    clip_norm: float,
    part: Part = "all",
) -> TrainRequest:
    """Return what a node is asked that hosts these users.

    Args:
        config: of the run.
        spec: of the adapter.
        state: with the adapter that the node gets.
        users: of the node, in order.
        number: of the round, from 1.
        clip_norm: bound on each user's delta.
        part: of the adapter that the round trains.
    """
    return TrainRequest(
        vector=state.vector,
        round=number,
        version=state.version,
        base_hash=spec.base_hash,
        plan=config.plan,
        unit=config.unit,
        clip_norm=clip_norm,
        users=users,
        seed=config.seed,
        counts=config.counts,
        wire=config.wire,
        noise_multiplier=promised_noise(config),
        part=part,
    )


def expected_replies(
    config: FederationConfig,
    spec: AdapterSpec,
    requests: Mapping[int, TrainRequest],
    partition_of_node: Mapping[int, int],
) -> Expected:
    """Return what replies to requests of one round must be like.

    Args:
        config: of the run.
        spec: of what the round trains.
        requests: node id -> what it is asked; at least one.
        partition_of_node: of these and others.
    """
    first = next(iter(requests.values()))
    return Expected(
        round=first.round,
        version=first.version,
        base_hash=first.base_hash,
        num_trainable=spec.num_trainable,
        clip_norm=first.clip_norm,
        users_by_node={node: len(request.users) for node, request in requests.items()},
        counts=config.counts,
        wire=config.wire,
        partition_of_node=partition_of_node,
    )


def unanswered(cohort: NDArray[np.int64]) -> Answers:
    """Return what came of a round whose answers died with the server that asked: nothing that may be released."""
    asked = {0: tuple(cohort.tolist())} if len(cohort) else {}
    return Answers(asked=asked, total=None, num_admitted=0, rejected=(), num_missing=len(asked))


def ask(
    nodes: Nodes,
    config: FederationConfig,
    spec: AdapterSpec,
    state: ServerState,
    cohort: NDArray[np.int64],
    number: int,
    num_users: int,
    mailbox: Mailbox | None = None,
) -> Answers:
    """Ask the nodes to train the users of a cohort.

    Args:
        nodes: the way to them.
        config: of the run.
        spec: of the adapter.
        state: with the adapter and the clip norm of this round.
        cohort: the users, in order.
        number: of the round, from 1.
        num_users: N, the public size of the population.
        mailbox: of the run; by default a fresh one, which knows of no earlier round.

    Raises:
        FederationError: no node connects in time.
    """
    if len(cohort) == 0 and config.secure.enabled:  # there is nobody who would add noise to nothing
        return Answers(asked={}, total=None, num_admitted=0, rejected=(), num_missing=0)
    part = part_of_round(config.alternate, number)
    optimizer, spec = state.optimizer.of(places_of_part(spec, part)), spec_of_part(spec, part)
    clip_norm = config.delta_bound(spec.num_trainable, state.clip_norm)
    if len(cohort) == 0 and config.robust.name != "norm-bound":
        nothing = np.zeros(spec.num_trainable + config.counts)
        return Answers(asked={}, total=nothing, num_admitted=0, rejected=(), num_missing=0)
    node_of, num_partitions = nodes.connected()
    partition_of_node = {node: partition for partition, node in node_of.items()}
    asked = split_cohort(cohort, num_partitions)
    requests = {
        node_of[partition]: train_request(config, spec, state, users, number, clip_norm, part)
        for partition, users in asked.items()
        if partition in node_of
    }
    if config.secure.enabled:
        answers = _ask_for_sum(nodes, config, spec, asked, requests, partition_of_node)
    else:
        combiner = make_combiner(
            config,
            optimizer,
            size=spec.num_trainable + config.counts,
            bound=clip_norm,
            num_users=num_users,
            num_asked=len(cohort),
            num_partitions=num_partitions,
        )
        if len(cohort) == 0:  # what nobody's zeros come to
            return Answers(asked={}, total=combiner.result(), num_admitted=0, rejected=(), num_missing=0)
        enough = math.ceil(config.cohort_rate * num_users) if config.stragglers.take_first else math.inf
        post = mailbox or Mailbox(nodes.grid)
        answers = _ask_each(post, config, spec, asked, requests, combiner, partition_of_node, enough)
    for reason in answers.rejected:
        _log.warning("rejected: %s", reason)
    return answers


def _ask_each(
    mailbox: Mailbox,
    config: FederationConfig,
    spec: AdapterSpec,
    asked: Mapping[int, tuple[int, ...]],
    requests: Mapping[int, TrainRequest],
    combiner: Combiner,
    partition_of_node: Mapping[int, int],
    enough: float,
) -> Answers:
    """Ask every node for its sum, see it, combine it and forget it."""
    if not requests:
        return Answers(asked=asked, total=None, num_admitted=0, rejected=(), num_missing=len(asked))
    ttl, first = config.reply_timeout_seconds, next(iter(requests.values()))
    bytes_down = len(requests) * array_bytes(next(requests_to_records([first])))
    messages = (
        Message(records, node, "train", group_id=str(first.round), ttl=ttl)
        for node, records in zip(requests, requests_to_records(requests.values()), strict=True)
    )
    expected = expected_replies(config, spec, requests, partition_of_node)
    late = [_why_late(reply, expected) for reply in mailbox.late() if not is_gone(reply)]
    replies = mailbox.replies_to(messages, config.deadline_seconds, ttl)
    found = collect(replies, expected, combiner, enough=enough)
    replies.close()  # where enough have come, the others are late from here on
    return Answers(
        asked=asked,
        total=found.total,
        num_admitted=len(found.admitted),
        admitted=tuple(sorted(partition_of_node[node] for node in found.admitted)),
        rejected=tuple(sorted((*found.rejected, *late))),
        num_missing=len(asked) - len(found.heard),
        num_late=len(late),
        bytes_up=found.num_bytes,
        bytes_down=bytes_down,
    )


def _why_late(reply: Message, expected: Expected) -> str:
    """Return why a reply to an earlier round may not enter this one: its round and version say so."""
    try:
        admit(reply, expected)
    except ReplyRejectedError as error:
        return f"late: {error}"
    name = node_name(reply.metadata.src_node_id, expected.partition_of_node)  # a lie: it names this round
    return f"late: round {expected.round}, admit, {name}: the reply must answer a request of this round"


def _ask_for_sum(
    nodes: Nodes,
    config: FederationConfig,
    spec: AdapterSpec,
    asked: Mapping[int, tuple[int, ...]],
    requests: Mapping[int, TrainRequest],
    partition_of_node: Mapping[int, int],
) -> Answers:
    """Ask all nodes together for the sum of their sums, and see nothing else."""
    if not requests:
        return Answers(asked=asked, total=None, num_admitted=0, rejected=(), num_missing=len(asked))
    done = ask_securely(nodes.grid, config, requests, spec.num_trainable, partition_of_node)
    return Answers(
        asked=asked,
        total=done.total,
        num_admitted=done.num_admitted,
        rejected=done.refused,
        num_missing=len(asked) - len(requests) + done.num_missing,
        noise_multiplier=done.noise_multiplier,
    )
