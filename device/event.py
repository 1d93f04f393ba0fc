"""One event: what may be recorded, and the bytes that a row of the history holds.

An event is one blob, not two columns, so that a sealed history and an open one are read by the same code. The bytes
are timestamp (big-endian float64), length of the item (big-endian uint32), item in UTF-8, where the app said anything
of the moment the length (big-endian uint16) and the text of that as JSON, then zeros up to a whole number of blocks. A
sealed row is padded: AES-GCM keeps the length, and the length of a name can give the name away.
"""

from __future__ import annotations

import json
import math
import numbers
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import DataError

__all__ = [
    "MAX_CONTEXT_BYTES",
    "MAX_ITEM_BYTES",
    "Events",
    "checked_context",
    "checked_item",
    "checked_timestamp",
    "decode_events",
    "encode_event",
]

MAX_ITEM_BYTES = 1024
MAX_CONTEXT_BYTES = 1024

Said = Mapping[str, str]
"""What the app says of a moment: the name of a context field and its value, such as device: phone."""

_HEADER = struct.Struct(">dI")
_LENGTH = struct.Struct(">H")
_NOTHING: Said = MappingProxyType({})
_HEADER_TYPE = np.dtype([("timestamp", ">f8"), ("item_bytes", ">u4")])  # the same bytes, for many rows at once


@dataclass(frozen=True, kw_only=True)
class Events:
    """Events of one history, in the order in which they were recorded.

    Args:
        generation: the history's generation when these were read.
        sequences: (n,) int64 row numbers, ascending; a number is never used twice.
        timestamps: (n,) float64 seconds.
        items: n original item ids.
        contexts: what the app said of each moment, n times.
    """

    generation: int
    sequences: NDArray[np.int64]
    timestamps: NDArray[np.float64]
    items: Sequence[str]
    contexts: Sequence[Said]

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


def checked_context(context: object) -> Said:
    """Return what an app says of a moment, as it can be recorded; None says nothing.

    Raises:
        DataError: not text by name, an empty name, or above ``MAX_CONTEXT_BYTES`` as JSON.
    """
    if context is None:
        return _NOTHING
    if not isinstance(context, Mapping):
        raise DataError(f"context must be text by name, got {type(context).__name__}")
    for name, value in context.items():
        if not (isinstance(name, str) and name and isinstance(value, str)):
            raise DataError(f"context must be text by name, got {name!r}: {value!r}")
    try:
        size = len(_context_bytes(context))
    except UnicodeEncodeError as error:
        raise DataError("context must be text that UTF-8 can hold, got a lone surrogate") from error
    if size > MAX_CONTEXT_BYTES:
        raise DataError(f"context must have at most {MAX_CONTEXT_BYTES} bytes as JSON, got {size}")
    return dict(context)


def encode_event(item: str, timestamp: float, context: Said = _NOTHING, *, block_bytes: int = 1) -> bytes:
    """Return the bytes of an event, as many as fill whole blocks."""
    name = item.encode()
    plain = _HEADER.pack(timestamp, len(name)) + name
    if context:
        said = _context_bytes(context)
        plain += _LENGTH.pack(len(said)) + said
    return plain + bytes(-len(plain) % block_bytes)


def decode_events(rows: Sequence[bytes]) -> tuple[NDArray[np.float64], list[str], list[Said]]:
    """Read the bytes of many events.

    Returns:
        timestamps (n,), the n items, and what was said of the n moments.

    Raises:
        DataError: bytes that ``encode_event`` did not write.
    """
    try:
        headers = np.frombuffer(b"".join([row[: _HEADER.size] for row in rows]), _HEADER_TYPE)
        ends = (headers["item_bytes"].astype(np.int64) + _HEADER.size).tolist()
        if len(headers) != len(rows) or any(end > len(row) for end, row in zip(ends, rows, strict=True)):
            raise ValueError("a row is too short")
        items = [row[_HEADER.size : end].decode() for row, end in zip(rows, ends, strict=True)]
        contexts = [
            _decode_context(row, end) if len(row) > end else _NOTHING for row, end in zip(rows, ends, strict=True)
        ]
    except (ValueError, TypeError) as error:  # UnicodeDecodeError is a ValueError
        raise DataError(f"history row must hold an event, got damaged bytes: {error}") from error
    return headers["timestamp"].astype(np.float64), items, contexts


def _context_bytes(context: Said) -> bytes:
    return json.dumps(dict(context), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _decode_context(row: bytes, end: int) -> Said:
    """Read what stands behind the item: padding, or a length that is not zero and so many bytes."""
    length = int.from_bytes(row[end : end + _LENGTH.size])
    if length == 0:
        return _NOTHING
    said = json.loads(row[end + _LENGTH.size : end + _LENGTH.size + length])
    if not isinstance(said, dict):
        raise ValueError("context is not an object")
    return said
