"""A round in which the server learns the sum of the nodes' replies and none of them: the Flower shell of ``SecureSum``.

Five questions to the nodes in place of one. A node that does not answer one of them, or answers with an error or with
something else, has dropped out; where too many have, the round is void and nothing was learnt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ownlet.server.replies import is_gone, node_name
from ownlet.server.secure_sum import SecureSum, SumResult
from ownlet.shared.config import FederationConfig
from ownlet.shared.distributed_noise import realised_noise_multiplier
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.secure_sum.coding import Coding, choose_coding, decode
from ownlet.shared.secure_sum.messages import Advert, Confirmation, Masked, Reveal, Shares
from ownlet.shared.secure_sum.purpose import Purpose
from ownlet.shared.secure_sum.terms import SumTerms, choose_terms
from ownlet.shared.secure_wire import SECURE_STAGES, from_records, message_type, to_records
from ownlet.shared.wire import TrainRequest, request_to_records

__all__ = ["SecureRound", "ask_securely"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class SecureRound:
    """What a secure round ends with.

    Args:
        total: (num_trainable,) the noised sum, or None where the round must be void.
        num_admitted: nodes whose sums are in it.
        noise_multiplier: sigma that the total really has, without the noise of nodes that may collude; 0 where the
            nodes add none. Where the round is void, the one that it was meant to have at the least.
        refused: why answers did not count, or the round is void.
        num_missing: nodes without any answer, or that went away before their sum had come.
    """

    total: NDArray[np.float64] | None
    num_admitted: int
    noise_multiplier: float
    refused: tuple[str, ...]
    num_missing: int


def ask_securely(
    grid: Grid,
    config: FederationConfig,
    requests: Mapping[int, TrainRequest],
    num_trainable: int,
    partition_of_node: Mapping[int, int] | None = None,
) -> SecureRound:
    """Run one secure sum.

    Args:
        grid: the way to the nodes.
        config: noise, tolerances, time-out.
        requests: node id -> what it is asked to train, of at least one node.
        num_trainable: numbers in a delta.
        partition_of_node: for messages, where it is known.
    """
    noise = config.noise_multiplier if config.unit == "user" else 0.0
    talk = _Talk(grid, config, requests, partition_of_node or {})
    try:
        result, terms, coding = _sum_of(talk, config, noise, num_trainable)
    except (FederationError, ConfigError) as error:
        return _ended(talk, f"secure sum: {error}", noise)
    realised = realised_noise_multiplier(coding.share_noise, len(result.survivors), terms.num_colluding)
    total, round_number = decode(result.total, coding), next(iter(requests.values())).round
    clip_norm = next(iter(requests.values())).clip_norm
    if problem := _problem_of(total, coding, terms, clip_norm, sum(len(r.users) for r in requests.values())):
        return _ended(talk, f"round {round_number}, secure sum: {problem}", noise)
    return SecureRound(
        total=total,
        num_admitted=len(result.survivors),
        noise_multiplier=realised,
        refused=tuple(talk.refused),
        num_missing=len(set(requests) - talk.heard),
    )


def _sum_of(
    talk: _Talk, config: FederationConfig, noise: float, num_trainable: int
) -> tuple[SumResult, SumTerms, Coding]:
    """Ask the five questions; the main function of this file."""
    secure, first = config.secure, next(iter(talk.requests.values()))
    num_users = sum(len(request.users) for request in talk.requests.values())
    agreed: list[tuple[SumTerms, Coding]] = []

    def make_terms(num_clients: int) -> tuple[SumTerms, bytes]:
        terms = choose_terms(
            num_clients, dropout=secure.dropout, colluding=secure.colluding, size=num_trainable, bits=secure.bits
        )
        coding = choose_coding(terms, first.clip_norm, noise, num_users)
        agreed.append((terms, coding))
        about = Purpose(
            round=first.round,
            version=first.version,
            base_hash=first.base_hash,
            clip_norm=first.clip_norm,
            coding=coding,
        )
        return terms, about.to_bytes()

    server = SecureSum(make_terms)
    advert, shares, masked, confirm, reveal = SECURE_STAGES
    try:
        rosters = server.rosters(talk.ask(advert, dict.fromkeys(talk.requests, server.invite()), Advert))
        node_of = {roster.index: node for node, roster in rosters.items()}

        def ask(stage: str, questions: Mapping[int, Any], kind: type[T]) -> dict[int, T]:
            answers = talk.ask(stage, {node_of[index]: question for index, question in questions.items()}, kind)
            return {rosters[node].index: answer for node, answer in answers.items()}

        dealt = ask(shares, {roster.index: roster for roster in rosters.values()}, Shares)
        sent = ask(masked, server.inboxes(dealt), Masked)
        signed = ask(confirm, server.survivors(sent), Confirmation)
        told = ask(reveal, server.agreement(signed), Reveal)
        result = server.unmask(told)
    finally:
        talk.refused += server.refused
    return result, *agreed[0]


def _problem_of(
    total: NDArray[np.float64], coding: Coding, terms: SumTerms, clip_norm: float, num_users: int
) -> str | None:
    """Return why a sum cannot be one of honest nodes: longer than all its users and the noise together can be."""
    noise = math.sqrt(terms.num_clients * coding.variance) * (math.sqrt(terms.size) + 12)
    bound = num_users * math.sqrt(coding.bound) + noise
    if float(np.linalg.norm(total)) > bound * 2.0**-coding.scale:
        return f"its norm must be at most that of users * clip_norm and noise, with clip_norm={clip_norm:g}"
    return None


def _ended(talk: _Talk, reason: str, noise: float) -> SecureRound:
    return SecureRound(
        total=None,
        num_admitted=0,
        noise_multiplier=noise,
        refused=(*talk.refused, reason),
        num_missing=len(set(talk.requests) - talk.heard),
    )


class _Talk:
    """Asks nodes through Flower; remembers who ever answered, and why answers were refused."""

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        requests: Mapping[int, TrainRequest],
        partition_of_node: Mapping[int, int],
    ) -> None:
        self.requests, self.heard, self.refused = requests, set[int](), list[str]()
        self._partition_of_node = partition_of_node
        self._grid, self._seconds = grid, config.reply_timeout_seconds
        self._round = next(iter(requests.values())).round

    def ask(self, stage: str, questions: Mapping[int, Any], kind: type[T]) -> dict[int, T]:
        """Return node -> answer, of the nodes that gave one of the right kind."""
        sent = [self._message(stage, node, question) for node, question in questions.items()]
        answers, silent = dict[int, T](), set(questions)
        for reply in self._grid.send_and_receive(sent, timeout=self._seconds):
            if is_gone(reply):  # as one that says nothing
                continue
            node = reply.metadata.src_node_id
            reason = None
            if reply.has_error():  # the reason may quote the node's data, the code cannot
                reason = f"the node must answer without an error, got error code {reply.error.code}"
            elif node not in questions or node in answers:
                reason = "the node must have been asked, and must answer once"
            else:
                try:
                    answers[node] = from_records(kind, reply.content)
                except FederationError as error:
                    reason = str(error)
            silent.discard(node)
            self.heard |= {node} & set(self.requests)
            if reason is not None:
                name = node_name(node, self._partition_of_node)
                self.refused.append(f"round {self._round}, {stage}, {name}: {reason}")
        if stage in SECURE_STAGES[:3]:  # whoever goes before its sum has come is missing; after that it is in the sum
            self.heard -= silent
        return answers

    def _message(self, stage: str, node: int, question: Any) -> Message:
        content: RecordDict = to_records(question)
        if stage == "secure_masked":
            content = RecordDict({**content, **request_to_records(self.requests[node])})
        return Message(content, node, message_type(stage), group_id=str(self._round), ttl=self._seconds)
