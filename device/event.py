"""One event: what may be recorded, and the bytes that a row of the history holds.

An event is one blob, not two columns, so that a sealed history and an open one are read by the same code. The bytes
are timestamp (big-endian float64), length of the item (big-endian uint32), item in UTF-8, then zeros up to a whole
number of blocks. A sealed row is padded: AES-GCM keeps the length, and the length of a name can give the name away.
"""

from __future__ import annotations

import math
import numbers
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import DataError

__all__ = ["MAX_ITEM_BYTES", "Events", "checked_item", "checked_timestamp", "decode_events", "encode_event"]

MAX_ITEM_BYTES = 1024

_HEADER = struct.Struct(">dI")
_HEADER_TYPE = np.dtype([("timestamp", ">f8"), ("item_bytes", ">u4")])  # the same bytes, for many rows at once


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of one history, in the order in which they were recorded.

    Args:
        generation: the history's generation when these were read.
        sequences: (n,) int64 row numbers, ascending; a number is never used twice.
        timestamps: (n,) float64 seconds.
        items: n original item ids.
    """

    generation: int
    sequences: NDArray[np.int64]
    timestamps: NDArray[np.float64]
    items: Sequence[str]

    def __len__(self) -> int:
        return len(self.items)


def checked_item(item: object) -> str:
    """Return an item id that can be recorded.

    Raises:
        DataError: not a string, empty, with a NUL or a lone surrogate, or above ``MAX_ITEM_BYTES`` in UTF-8.
    """
    if not isinstance(item, str) or not item:
        raise DataError(f"item must be a non-empty string, got item={item!r}")
    if "\0" in item:
        raise DataError(f"item must be without NUL characters, got item={item[:80]!r}")
    try:
        size = len(item.encode())
    except UnicodeEncodeError as error:
        raise DataError(f"item must be text that UTF-8 can hold, got item={item[:80]!r}") from error
    if size > MAX_ITEM_BYTES:
        raise DataError(f"item must have at most {MAX_ITEM_BYTES} bytes in UTF-8, got {size}: {item[:80]!r}...")
    return item


def checked_timestamp(timestamp: object) -> float:
    """Return a timestamp that can be recorded, as a float.

    Raises:
        DataError: not a real number, or not finite.
    """
    if not isinstance(timestamp, numbers.Real) or isinstance(timestamp, bool):
        raise DataError(f"timestamp must be a number of seconds, got timestamp={timestamp!r}")
    try:
        value = float(timestamp)
    except OverflowError as error:  # an integer beyond float64
        raise DataError("timestamp must be finite, got an integer beyond float64") from error
    if not math.isfinite(value):
        raise DataError(f"timestamp must be finite, got timestamp={timestamp!r}")
    return value


def encode_event(item: str, timestamp: float, *, block_bytes: int = 1) -> bytes:
    """Return the bytes of an event, as many as fill whole blocks."""
    name = item.encode()
    plain = _HEADER.pack(timestamp, len(name)) + name
    return plain + bytes(-len(plain) % block_bytes)


def decode_events(rows: Sequence[bytes]) -> tuple[NDArray[np.float64], list[str]]:
    """Read the bytes of many events.

    Returns:
        timestamps (n,) and the n items.

    Raises:
        DataError: bytes that ``encode_event`` did not write.
    """
    try:
        headers = np.frombuffer(b"".join([row[: _HEADER.size] for row in rows]), _HEADER_TYPE)
        ends = (headers["item_bytes"].astype(np.int64) + _HEADER.size).tolist()
        if len(headers) != len(rows) or any(end > len(row) for end, row in zip(ends, rows, strict=True)):
            raise ValueError("a row is too short")
        items = [row[_HEADER.size : end].decode() for row, end in zip(rows, ends, strict=True)]
    except (ValueError, TypeError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"history row must hold an event, got damaged bytes: {error}") from error
    return headers["timestamp"].astype(np.float64), items
