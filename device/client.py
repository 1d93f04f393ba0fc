"""The Flower side of a node: train the users it hosts, answer with one sum.

``answer`` is a plain function of values; ``make_client_app`` is a thin shell over it. A node is one device in a
deployment, and many users in a simulation: the sum of the users' clipped deltas is all that the server ever needs, so
the result does not depend on how users are spread over nodes.

Under the unit ``user`` a single user must move the sum by at most C. So a user whose training does not end in finite
numbers contributes zero: were the whole node's reply spoiled instead, that one user would decide about all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from ownlet.device.train import Engine, local_deltas
from ownlet.shared.delta import clip_to_norm, count_within
from ownlet.shared.errors import FederationError
from ownlet.shared.noise import AesNoise, NoiseSource, SimulatedNoise
from ownlet.shared.windows import Windows
from ownlet.shared.wire import (
    PLACE_ACTION,
    Place,
    TrainReply,
    TrainRequest,
    place_to_records,
    reply_to_records,
    request_from_records,
)

__all__ = ["OnUsers", "Shard", "answer", "device_noise", "make_client_app", "place_of"]

OnUsers = Callable[[int, int], None]
"""Told how many users have just been trained, and how many the request asks for."""

_MEMORY_BYTES = 256 * 2**20  # for adapters: an engine returns a whole one per user
_COPIES = 4  # of each user's adapter: the engine's, its trained one, the delta, the clipped delta


class Shard(Protocol):
    """What a node hosts."""

    @property
    def engine(self) -> Engine:
        """The engine that trains, holding the node's copy of the frozen base."""
        ...

    @property
    def base_hash(self) -> str:
        """The hash of that base."""
        ...

    def windows(self, users: Sequence[int]) -> Sequence[Windows]:
        """Return each user's windows, possibly none.

        Raises:
            KeyError: the node does not host one of them.
        """
        ...


def answer(
    request: TrainRequest, shard: Shard, *, memory_bytes: int = _MEMORY_BYTES, on_users: OnUsers | None = None
) -> TrainReply:
    """Train every user of the request and sum their clipped deltas.

    Args:
        request: what the server asks.
        shard: the users and the engine.
        memory_bytes: users are handed to the engine in groups whose adapters take about this much, one at the least.
        on_users: called after each of these groups.

    Returns:
        The sum over users, added up in float64, sent in float32; behind it their count, where the request counts.

    Raises:
        AdapterError: the vector does not fit the node's adapter.
        FederationError: another base, a user twice, or a user that the node does not host.
    """
    _check(request, shard)
    spec = shard.engine.spec
    total, count = np.zeros(spec.num_trainable, dtype=np.float64), 0.0
    users_at_once = max(1, memory_bytes // (_COPIES * 4 * spec.size))
    for start in range(0, len(request.users), users_at_once):
        users = request.users[start : start + users_at_once]
        windows = _windows_of(shard, users, request.round)
        noises = [device_noise(request.seed, request.round, user) for user in users]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is zeroed on the next line
            deltas = local_deltas(shard.engine, request.vector, windows, request.plan, noises)
            count += count_within(deltas, request.clip_norm)
            clipped = clip_to_norm(deltas, request.clip_norm)
        total += _finite_or_zero(clipped).sum(axis=0, dtype=np.float64)
        if on_users is not None:
            on_users(len(users), len(request.users))
    return TrainReply(
        total=(np.append(total, count) if request.counts else total).astype(np.float32),
        round=request.round,
        version=request.version,
        base_hash=shard.base_hash,
        num_users=len(request.users),
    )


def device_noise(seed: int | None, round_number: int, user: int) -> NoiseSource:
    """Return a user's source of masks and noise: from the operating system, or from a seed in a simulation."""
    return AesNoise() if seed is None else SimulatedNoise(seed, round_number, user)


def _check(request: TrainRequest, shard: Shard) -> None:
    if request.base_hash != shard.base_hash:
        raise FederationError(f"base must be {shard.base_hash[:12]}, got {request.base_hash[:12]}")
    if len(set(request.users)) != len(request.users):
        raise FederationError(f"users must not repeat, got {len(request.users)} with repeats in round {request.round}")
    if request.unit == "window" and request.plan.noise_multiplier == 0:
        raise FederationError(f"a plan without noise must not be run under unit window, got round={request.round}")
    shard.engine.spec.check(request.vector, what="global adapter")


def _windows_of(shard: Shard, users: Sequence[int], round_number: int) -> Sequence[Windows]:
    try:
        return shard.windows(users)
    except KeyError:
        raise FederationError(f"users must be hosted by this node, got another in round {round_number}") from None


def _finite_or_zero(deltas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return deltas (users, n) with zero in every row that holds a number that is not finite."""
    if np.isfinite(deltas).all():
        return deltas
    finite = np.isfinite(deltas).all(axis=1, keepdims=True)  # (users, 1)
    return np.where(finite, deltas, np.float32(0))


def make_client_app(load_shard: Callable[[Context], Shard], *, on_users: OnUsers | None = None) -> ClientApp:
    """Return the Flower app of a node.

    It answers ``train`` with the sum of its users' deltas, and ``query.place`` with the partition of the population
    that it hosts, from the node's configuration (``partition-id``, ``num-partitions``).

    Args:
        load_shard: gives the node's users and engine; called for every message, so it should cache.
        on_users: for progress where the app runs in the watcher's process; see ``answer``.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        shard = load_shard(context)
        request = request_from_records(message.content, shard.engine.spec.size)
        return Message(reply_to_records(answer(request, shard, on_users=on_users)), reply_to=message)

    @app.query(PLACE_ACTION)
    def place(message: Message, context: Context) -> Message:
        return Message(place_to_records(place_of(context)), reply_to=message)

    return app


def place_of(context: Context) -> Place:
    """Return the partition that a node's configuration gives it; a node without one hosts everybody.

    Raises:
        FederationError: the configured values are not a place.
    """
    partition, count = context.node_config.get("partition-id", 0), context.node_config.get("num-partitions", 1)
    if type(partition) is not int or type(count) is not int or not 0 <= partition < count:
        raise FederationError(f"partition-id must be below num-partitions, got {partition!r} and {count!r}")
    return Place(partition=partition, num_partitions=count)
