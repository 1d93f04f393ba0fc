"""Masks: an AES-256-CTR stream as whole numbers, and vectors of whole numbers as bytes.

A client sends ``values + own mask + sum of pair masks`` modulo 2^k. The two clients of a pair grow the same mask from
the same key; the one with the smaller number adds it, the other subtracts it, so it is not in the sum of both.
Everything is unsigned and wraps modulo 2^32, which 2^k divides; the reduction to k bits happens where a vector
leaves.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from ownlet.shared.errors import FederationError, require

__all__ = ["Words", "centred", "expand_mask", "pack_words", "pair_mask", "unpack_words"]

Words = NDArray[np.uint32]
"""A vector of whole numbers modulo 2^32."""


def expand_mask(key: bytes, size: int) -> Words:
    """Return the mask (size,) that grows from a key of 32 bytes; a key must serve one mask only."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(4 * size)), dtype="<u4").astype(np.uint32)


def pair_mask(key: bytes, size: int, own: int, peer: int) -> Words:
    """Return what the client ``own`` adds for the pair with ``peer``: the mask, or what cancels it, (size,)."""
    mask = expand_mask(key, size)
    return mask if own < peer else np.uint32(0) - mask


def pack_words(words: Words, bits: int) -> bytes:
    """Write a vector modulo 2^bits, ``bits / 8`` bytes for each number, lowest first.

    Args:
        words: (size,).
        bits: 8, 16, 24 or 32.
    """
    require(bits in (8, 16, 24, 32), "bits must be 8, 16, 24 or 32", bits=bits)
    return words.astype("<u4").view(np.uint8).reshape(len(words), 4)[:, : bits // 8].tobytes()


def unpack_words(data: bytes, bits: int, size: int) -> Words:
    """Read what ``pack_words`` wrote.

    Raises:
        FederationError: another length than that of ``size`` numbers.
    """
    width = bits // 8
    if len(data) != width * size:
        raise FederationError(f"vector must have {width * size} bytes, got {len(data)}")
    table = np.zeros((size, 4), dtype=np.uint8)
    table[:, :width] = np.frombuffer(data, dtype=np.uint8).reshape(size, width)
    return table.view("<u4").reshape(size).astype(np.uint32)


def centred(words: Words, bits: int) -> NDArray[np.int64]:
    """Return the numbers of -2^(bits-1) to 2^(bits-1) - 1 that a vector stands for modulo 2^bits."""
    residues = words.astype(np.int64) & ((1 << bits) - 1)
    return residues - ((residues >> (bits - 1)) << bits)
