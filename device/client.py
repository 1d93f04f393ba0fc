"""The Flower side of a node: train the users it hosts, answer with one sum.

``answer`` is a plain function of values; ``make_client_app`` is a thin shell over it. A node is one device in a
deployment, and many users in a simulation: the sum of the users' clipped deltas is all that the server ever needs, so
the result does not depend on how users are spread over nodes.

Under the unit ``user`` a single user must move the sum by at most C. So a user whose training does not end in finite
numbers contributes zero: were the whole node's reply spoiled instead, that one user would decide about all the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from ownlet.device.account import Account, Paid
from ownlet.device.agreed_sum import AgreedSum
from ownlet.device.release import charge_of
from ownlet.device.secure_app import add_secure_sum
from ownlet.device.sending import Residuals, send, with_count
from ownlet.device.shard import Shard, SomeUsers
from ownlet.device.train import Engine, TrainsParts, local_deltas
from ownlet.shared.alternate import part_of_round
from ownlet.shared.coding import places_of_round
from ownlet.shared.delta import clip_to_norm, count_within
from ownlet.shared.errors import FederationError
from ownlet.shared.noise import AesNoise, SimulatedNoise
from ownlet.shared.secure_sum.coding import quantise
from ownlet.shared.secure_sum.discrete_gaussian import discrete_gaussian
from ownlet.shared.secure_sum.vouching import Vouching
from ownlet.shared.windows import Windows
from ownlet.shared.wire import (
    PLACE_ACTION,
    Place,
    TrainReply,
    TrainRequest,
    place_to_records,
    records_from_bytes,
    records_to_bytes,
    reply_to_records,
    request_from_records,
)

__all__ = ["OnUsers", "Shard", "add_place", "answer", "coded_sum", "device_noise", "make_client_app", "place_of"]

_log = logging.getLogger(__name__)

OnUsers = Callable[[int, int], None]
"""Told how many users have just been trained, and how many the request asks for."""

_MEMORY_BYTES = 256 * 2**20  # for adapters: an engine returns a whole one per user
_COPIES = 4  # of each user's adapter: the engine's, its trained one, the delta, the clipped delta


def answer(
    request: TrainRequest,
    shard: Shard,
    *,
    memory_bytes: int = _MEMORY_BYTES,
    on_users: OnUsers | None = None,
    residuals: Residuals | None = None,
) -> TrainReply:
    """Train every user of the request, code their clipped deltas as each device would, and sum what that decodes to.

    So the sum does not depend on how users are spread over nodes, and one user moves it by what one message may hold.
    Were the sum of many coded instead, its coarser steps would let one user move it by more than C.

    Args:
        request: what the server asks.
        shard: the users and the engine.
        memory_bytes: users are handed to the engine in groups whose adapters take about this much, one at the least.
        on_users: called after each of these groups.
        residuals: where devices keep what their messages leave out; needed where the request's wire has error feedback.

    Returns:
        The sum over users, added up in float64, sent in float32; behind it their count, where the request counts. Of
        one user whose delta is coded, that code, too.

    Raises:
        AdapterError: the vector does not fit the node's adapter.
        FederationError: another base, a user twice, a user that the node does not host, no place for residuals, or a
            part of the adapter that it is not the turn of or that the engine cannot train alone.
    """
    engine = _engine_for(request, shard)
    total, count, coded = np.zeros(engine.spec.num_trainable, dtype=np.float64), 0.0, None
    for clipped, within, users in _clipped_groups(request, shard, engine, memory_bytes, on_users):
        coins = [device_noise(request.seed, request.round, user) for user in users] if request.wire.is_coded else []
        sent = send(clipped, users, request, coins, residuals)
        total += sent.deltas.sum(axis=0, dtype=np.float64)
        count += within
        coded = sent.coded if len(request.users) == 1 else None
    total = total[places_of_round(request.wire, request.round, len(total))]
    if request.counts:
        total, coded = with_count(total, coded, count)
    return TrainReply(
        total=total.astype(np.float32),
        coded=coded,
        round=request.round,
        version=request.version,
        base_hash=shard.base_hash,
        num_users=len(request.users),
    )


def coded_sum(
    request: TrainRequest, shard: Shard, agreed: AgreedSum, source: AesNoise, *, on_users: OnUsers | None = None
) -> NDArray[np.int64]:
    """Train every user of the request; return the sum of their coded deltas with this node's share of the noise.

    Each user's delta is clipped and coded by itself, so the bound that noise is measured by holds for every one.

    Args:
        request: what the server asks.
        shard: the users and the engine.
        agreed: what all nodes agreed on; the request must be for that.
        source: of the randomness of rounding and noise.
        on_users: called after each group of users.

    Returns:
        (num_trainable,) whole numbers.

    Raises:
        AdapterError, FederationError: as ``answer``; or the request is not what was agreed on.
    """
    engine, coding = _engine_for(request, shard), agreed.purpose.coding
    agreed.check(request, engine.spec.num_trainable)
    total = discrete_gaussian(source, engine.spec.num_trainable, coding.variance)
    for clipped, _, _ in _clipped_groups(request, shard, engine, _MEMORY_BYTES, on_users):
        total += quantise(clipped, request.clip_norm, coding, source).sum(axis=0)
    return total


def _clipped_groups(
    request: TrainRequest, shard: Shard, engine: Engine, memory_bytes: int, on_users: OnUsers | None
) -> Iterator[tuple[NDArray[np.float32], float, Sequence[int]]]:
    """Yield some users after others: clipped deltas (users, num_trainable), their count within the clip, who it is."""
    _check(request, shard)
    spec = engine.spec
    users_at_once = max(1, memory_bytes // (_COPIES * 4 * spec.size))
    for start in range(0, len(request.users), users_at_once):
        users = request.users[start : start + users_at_once]
        windows = _windows_of(shard, users, request.round)
        noises = [device_noise(request.seed, request.round, user) for user in users]
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is zeroed on the next line
            deltas = local_deltas(engine, request.vector, windows, request.plan, noises)
            within = count_within(deltas, request.clip_norm)
            clipped = clip_to_norm(deltas, request.clip_norm)
        yield _finite_or_zero(clipped), within, users
        if on_users is not None:
            on_users(len(users), len(request.users))


def _engine_for(request: TrainRequest, shard: Shard) -> Engine:
    """Return the engine that trains the part that the request asks for, and nothing else."""
    if request.part == "all":
        return shard.engine
    if request.part != part_of_round(True, request.round):
        raise FederationError(f"part must be the one whose turn it is, got {request.part!r} in round {request.round}")
    if request.wire.error_feedback:
        raise FederationError(f"error feedback must not go with rounds that alternate, got it in round {request.round}")
    if not isinstance(shard.engine, TrainsParts):
        kind = type(shard.engine).__name__
        raise FederationError(f"engine must be one that can train A or B alone where rounds alternate, got {kind}")
    return shard.engine.of_part(request.part)


def device_noise(seed: int | None, round_number: int, user: int) -> AesNoise | SimulatedNoise:
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
    _engine_for(request, shard)  # before anything is charged


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


def make_client_app(
    load_shard: Callable[[Context], Shard],
    *,
    simulated: bool | Callable[[Context], bool] = False,
    on_users: OnUsers | None = None,
    residuals: Residuals | None = None,
    load_account: Callable[[Context], Account] | None = None,
    vouching: Vouching | None = None,
) -> ClientApp:
    """Return the Flower app of a node.

    It answers ``train`` with the sum of its users' deltas, the five messages of a secure sum with that sum masked, and
    ``query.place`` with the partition of the population that it hosts, from the node's configuration
    (``partition-id``, ``num-partitions``).

    Args:
        load_shard: gives the node's users and engine; called for every message, so it should cache.
        simulated: the users are simulated, so the server may choose the seed of their masks and noise. A node of real
            users refuses one: who knows the seed can take the noise away again. A node may say so by its own context.
        on_users: for progress where the app runs in the watcher's process; see ``answer``.
        residuals: where devices without an account keep what their messages leave out; without either a node refuses
            error feedback.
        load_account: gives the users' privacy account; every user is then charged before training, one whose budget
            is spent contributes zero, and the same request is answered with the same reply; in a secure sum, once.
            What messages leave out is kept in its folder.
        vouching: the node's key for secure sums. With ``peers`` it takes part in secure sums among these only, and in
            nothing else: else a server that wants to see the node's own sum would ask for it without masks.
    """
    app = ClientApp()

    def asked(message: Message, context: Context, shard: Shard) -> TrainRequest:
        request = request_from_records(message.content, shard.engine.spec.size)
        may_seed = simulated(context) if callable(simulated) else simulated
        if request.seed is not None and not may_seed:
            raise FederationError(f"seed must not come from the server of real users, got one in round {request.round}")
        if request.unit == "window" and context.run_config.get("windows.context-length", 0):
            raise FederationError(f"windows must share no events under unit window, got round={request.round}")
        return request

    def coded(message: Message, context: Context, agreed: AgreedSum) -> NDArray[np.int64]:
        shard = load_shard(context)
        request = asked(message, context, shard)
        seeded = (request.seed, "secure", request.round, place_of(context).partition)
        source = AesNoise() if request.seed is None else AesNoise.seeded(*seeded)
        if load_account is None:
            return coded_sum(request, shard, agreed, source, on_users=on_users)
        account = load_account(context)
        paid = _charged(account, request, shard, agreed)
        total = coded_sum(request, SomeUsers(shard, paid.users), agreed, source, on_users=on_users)
        account.commit(paid, total.tobytes())
        _tell(request, paid, "a masked sum")
        return total

    add_secure_sum(app, coded, vouching)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if vouching is not None and vouching.peers is not None:
            raise FederationError("rounds must be secure sums for a node that knows its peers, got one without masks")
        shard = load_shard(context)
        request = asked(message, context, shard)
        if load_account is None:
            reply = answer(request, shard, on_users=on_users, residuals=residuals)
            return Message(reply_to_records(reply), reply_to=message)
        account, content = load_account(context), records_to_bytes(message.content)
        kept = account.kept(content)
        if kept is None:
            paid = _charged(account, request, shard)
            some = SomeUsers(shard, paid.users)
            left = account.residuals.of_round(request, shard.engine.spec, run=context.run_id, users=paid.users)
            kept = records_to_bytes(reply_to_records(answer(request, some, on_users=on_users, residuals=left)))
            account.keep(content, kept, paid)
            _tell(request, paid, "the sum")
        else:
            _log.info("round %d: the same request as before, answered with the reply that is on disk", request.round)
        return Message(records_from_bytes(kept), reply_to=message)

    add_place(app)
    return app


def add_place(app: ClientApp) -> None:
    """Let a node's app say which partition it hosts, to who asks ``query.place``."""

    @app.query(PLACE_ACTION)
    def place(message: Message, context: Context) -> Message:
        return Message(place_to_records(place_of(context)), reply_to=message)


def _charged(account: Account, request: TrainRequest, shard: Shard, agreed: AgreedSum | None = None) -> Paid:
    """Charge the users of a request that will be answered, and say who may train; for one secure sum only once."""
    _check(request, shard)
    if agreed is not None:
        agreed.check(request, _engine_for(request, shard).spec.num_trainable)
        account.begin(agreed.transcript)
    charge = charge_of(
        request.unit,
        request.plan,
        request.noise_multiplier,
        base_hash=request.base_hash,
        adapter_version=request.version,
        round_number=request.round,
    )
    return account.charge(request.users, charge)


def _tell(request: TrainRequest, paid: Paid, what: str) -> None:
    """Say in one line what a round took from this node's users."""
    asked, refused = len(request.users), len(request.users) - len(paid.users)
    spent = f"; {refused} have no budget left" if refused else ""
    _log.info(
        "round %d: asked for %d users, answers with %s of %d%s", request.round, asked, what, asked - refused, spent
    )


def place_of(context: Context) -> Place:
    """Return the partition that a node's configuration gives it; a node without one hosts everybody.

    Raises:
        FederationError: the configured values are not a place.
    """
    partition, count = context.node_config.get("partition-id", 0), context.node_config.get("num-partitions", 1)
    if type(partition) is not int or type(count) is not int or not 0 <= partition < count:
        raise FederationError(f"partition-id must be below num-partitions, got {partition!r} and {count!r}")
    return Place(partition=partition, num_partitions=count)
