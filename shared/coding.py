"""The forms in which one device's delta travels, and what they decode to.

``float16`` and ``int8`` are one float32 scale and a number of 2 or 1 bytes for each of the delta's:

* ``int8`` (QSGD, Alistarh et al. 2017, https://arxiv.org/abs/1610.02132): ``floor(x / scale + u)`` with u uniform in
  [0, 1), so that the mean of what is decoded is x. The scale is the largest number over 127.
* ``float16``: to the nearest. The scale is the largest number, so that none is out of range.

Rounding can make a delta longer. The bound C that noise is made for must hold for what the server adds up, so the scale
is made smaller until what is *decoded* has norm at most C: decoding is linear in the scale, so this is exact.

``sparse`` sends some of the numbers, in float32 (random-k; Konečný et al. 2016, https://arxiv.org/abs/1610.05492,
section 2.2). Which, a public generator says from the round's number, the same for all devices. So places need not be
sent, sums of devices are as short as one, and noise is only needed on what was sent. The largest k of each device
(top-k) would need 4 more bytes for each, and noise on every number, since which places a device chose is private.
Without error feedback what is sent is divided by the share, so that its mean over rounds is the delta.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import Vector
from ownlet.shared.delta import clip_to_norm
from ownlet.shared.errors import FederationError
from ownlet.shared.noise import AesNoise
from ownlet.shared.wire_config import WireConfig

__all__ = ["Coins", "coded_bytes", "decode", "encode", "places_of_round", "sent_numbers", "thin"]

_SCALE = np.dtype("<f4")
_BODY: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "int8": np.dtype("<i1")}
_LARGEST = {"float16": 1.0, "int8": 127.0}
_ROOM = 1 - 1e-6  # of the bound, for the rounding of the scale and of its products to float32


class Coins(Protocol):
    """Where the randomness of rounding comes from: a secret source on a real device."""

    def uniform(self, size: int) -> NDArray[np.floating[Any]]:
        """Return (size,) independent numbers in [0, 1), each of its multiples equally likely."""
        ...


def coded_bytes(wire: WireConfig, size: int) -> int:
    """Return how long the message of one device is, without what Flower adds: a public number.

    Args:
        wire: the form.
        size: numbers in a delta.
    """
    if wire.is_coded:
        return _SCALE.itemsize + size * _BODY[wire.name].itemsize
    return 4 * sent_numbers(wire, size)


def encode(delta: Vector, wire: WireConfig, bound: float, coins: Coins) -> NDArray[np.uint8]:
    """Write one delta.

    Args:
        delta: (n,) finite.
        wire: ``float16`` or ``int8``.
        bound: C: what is decoded has at most this norm; infinity for none.
        coins: of the device.

    Returns:
        (``coded_bytes``,) scale and body.
    """
    scale = float(np.max(np.abs(delta), initial=0.0)) / _LARGEST[wire.name]
    scaled = delta.astype(np.float64) / (scale or 1.0)  # (n,) within the largest of the form
    if wire.name == "int8":
        body = np.clip(np.floor(scaled + coins.uniform(len(delta))), -127, 127).astype(_BODY["int8"])
    else:
        body = scaled.astype(_BODY["float16"])
    length = float(np.linalg.norm(body.astype(np.float64)))
    if length * scale > bound * _ROOM:
        scale = bound * _ROOM / length
    return np.frombuffer(np.array(scale, _SCALE).tobytes() + body.tobytes(), np.uint8)


def decode(data: NDArray[np.uint8], wire: WireConfig, bound: float) -> Vector:
    """Read what ``encode`` wrote.

    Args:
        data: (``coded_bytes``,) from anywhere.
        wire: ``float16`` or ``int8``.
        bound: C, which no scale of an honest device exceeds.

    Returns:
        (n,) float32, finite; of any norm.

    Raises:
        FederationError: a length, scale or number that ``encode`` does not write.
    """
    raw, dtype = data.tobytes(), _BODY[wire.name]
    if len(raw) < _SCALE.itemsize or (len(raw) - _SCALE.itemsize) % dtype.itemsize:
        raise FederationError(f"update must be a scale and whole numbers of {dtype.itemsize} bytes, got {len(raw)}")
    scale = float(np.frombuffer(raw, _SCALE, count=1)[0])
    body = np.frombuffer(raw, dtype, offset=_SCALE.itemsize).astype(np.float64)
    if not 0 <= scale <= bound:  # false for NaN, too
        raise FederationError(f"scale of an update must be in 0..{bound:g}, got another")
    if not (np.abs(body) <= _LARGEST[wire.name]).all():
        raise FederationError(f"numbers of an update must be within {_LARGEST[wire.name]:g}, got another")
    return (body * scale).astype(np.float32)


def sent_numbers(wire: WireConfig, size: int) -> int:
    """Return how many of ``size`` numbers travel."""
    return max(1, math.ceil(wire.keep * size)) if wire.name == "sparse" else size


def places_of_round(wire: WireConfig, round_number: int, size: int) -> NDArray[np.int64]:
    """Return which numbers travel in a round, in order: public, and the same for every device.

    Args:
        wire: the form.
        round_number: from 1.
        size: numbers in a delta.
    """
    if wire.name != "sparse":
        return np.arange(size)
    order = AesNoise.seeded("ownlet sparse", round_number, size).permutation(size)
    return np.sort(order[: sent_numbers(wire, size)])


def thin(deltas: NDArray[np.float32], places: NDArray[np.int64], bound: float, gain: float) -> NDArray[np.float32]:
    """Return deltas (users, n) of which only some places are left, each of norm at most ``bound``.

    Args:
        deltas: (users, n).
        places: which are left.
        bound: C; infinity for none.
        gain: what is left is multiplied by this before it is clipped.
    """
    left = np.zeros_like(deltas)
    left[:, places] = deltas[:, places] * np.float32(gain)
    return clip_to_norm(left, bound)
