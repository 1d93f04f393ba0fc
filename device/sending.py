"""From clipped deltas to what is sent of them, and what each device keeps of the rest.

With error feedback (Seide et al. 2014; Karimireddy et al. 2019, https://arxiv.org/abs/1901.09847, algorithm 1) a device
adds what its last message left out to its next delta. What it sends then depends on earlier rounds, so the sum is
clipped *again* before it is coded, and what is decoded is within C whatever the device has kept: that, and not where a
message comes from, is what the server's noise is made for (docs/federation.md has the argument). What clipping took
away is not kept, or a user beyond C would come back round after round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import Vector
from ownlet.shared.coding import Coins, decode, encode, places_of_round, thin
from ownlet.shared.delta import clip_to_norm
from ownlet.shared.errors import FederationError

if TYPE_CHECKING:  # importing it would load Flower
    from ownlet.shared.wire import TrainRequest
    from ownlet.shared.wire_config import WireConfig

__all__ = ["MemoryResiduals", "Residuals", "Sent", "code_deltas", "send", "with_count"]


class Residuals(Protocol):
    """Where devices keep what their messages left out. It is private, like the history that it comes from."""

    def of(self, user: int, base_hash: str) -> Vector | None:
        """Return what a user's device keeps, (num_trainable,), if it is of an adapter of this base."""
        ...

    def keep(self, user: int, base_hash: str, residual: Vector) -> None:
        """Replace it."""
        ...


@dataclass
class MemoryResiduals:
    """What simulated devices keep, until the process ends: 4 bytes per number for every user who was asked."""

    _kept: dict[tuple[int, str], Vector] = field(default_factory=dict)

    def of(self, user: int, base_hash: str) -> Vector | None:
        """See ``Residuals``."""
        return self._kept.get((user, base_hash))

    def keep(self, user: int, base_hash: str, residual: Vector) -> None:
        """See ``Residuals``."""
        self._kept[user, base_hash] = residual


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent:
    """What devices send.

    Args:
        deltas: (users, num_trainable) what the server decodes, each within C.
        left: (users, num_trainable) what their messages left out, with what earlier ones had.
        coded: of the last user, the message itself where it is not float32 numbers.
    """

    deltas: NDArray[np.float32]
    left: NDArray[np.float32]
    coded: NDArray[np.uint8] | None = None


def send(
    clipped: NDArray[np.float32],
    users: Sequence[int],
    request: TrainRequest,
    coins: Sequence[Coins],
    residuals: Residuals | None,
) -> Sent:
    """Code the deltas of some users as their devices would.

    Args:
        clipped: (users, num_trainable) each within C.
        users: whose they are.
        request: form, C, round and base.
        coins: of each device, where its message is rounded.
        residuals: what devices keep; needed with error feedback.

    Raises:
        FederationError: error feedback, and nowhere to keep anything.
    """
    wire, size = request.wire, clipped.shape[1]
    kept = _kept(residuals, users, request, size) if wire.error_feedback else None
    sent = code_deltas(clipped, wire, request.clip_norm, request.round, coins, kept)
    if wire.error_feedback and residuals is not None:
        for user, rest in zip(users, sent.left, strict=True):
            residuals.keep(user, request.base_hash, rest)
    return sent


def code_deltas(
    clipped: NDArray[np.float32],
    wire: WireConfig,
    bound: float,
    round_number: int,
    coins: Sequence[Coins],
    kept: NDArray[np.float32] | None = None,
) -> Sent:
    """Code deltas as ``send`` does, from plain values.

    Args:
        clipped: (users, num_trainable) each within ``bound``.
        wire: the form.
        bound: C.
        round_number: from 1; which numbers travel follows from it where the form is sparse.
        coins: of each device, where its message is rounded.
        kept: (users, num_trainable) what earlier messages left out, with error feedback.
    """
    if wire.name == "float32":
        return Sent(deltas=clipped, left=np.zeros_like(clipped))
    size = clipped.shape[1]
    places = places_of_round(wire, round_number, size)
    gain = size / len(places)
    wanted = clipped
    if kept is not None:
        wanted, gain = clip_to_norm(clipped + kept, bound * gain), 1.0
    if wire.name == "sparse":
        deltas, coded = thin(wanted, places, bound, gain), None
        left = wanted.copy()
        left[:, places] = 0
    else:
        messages = [encode(row, wire, bound, coin) for row, coin in zip(wanted, coins, strict=True)]  # one device each
        deltas, coded = np.stack([decode(message, wire, np.inf) for message in messages]), messages[-1]
        left = wanted - deltas
    return Sent(deltas=deltas, left=left, coded=coded)


def with_count(
    total: NDArray[Any], coded: NDArray[np.uint8] | None, count: float
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """Return what is sent with the count of an adaptive clip behind it: of a sum (n,), and of a code in float32."""
    if coded is not None:
        coded = np.concatenate([coded, np.frombuffer(np.float32(count).tobytes(), np.uint8)])
    return np.append(total, total.dtype.type(count)), coded


def _kept(residuals: Residuals | None, users: Sequence[int], request: TrainRequest, size: int) -> NDArray[np.float32]:
    if residuals is None:
        raise FederationError(f"error feedback must have a place to keep residuals, got none in round {request.round}")
    nothing = np.zeros(size, np.float32)
    kept = [residuals.of(user, request.base_hash) for user in users]
    return np.stack([nothing if rest is None or rest.shape != (size,) else rest for rest in kept])
