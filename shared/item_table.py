"""The item table of a bundle: one float32 matrix in a file that a device maps into memory and never copies.

A safetensors file (https://github.com/huggingface/safetensors#format) with the tensor ``items`` of shape
(d, num_items): column i - 1 is the vector of item i, padding has none. The header is padded with spaces, as the format
allows, until the numbers begin at a multiple of 64 bytes, the widest load that a processor asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import BundleError, require
from ownlet.shared.store import write_atomic

__all__ = ["Columns", "open_item_table", "save_item_table"]

Columns = NDArray[np.float32]

_ALIGNMENT = 64
_LENGTH_BYTES = 8


def save_item_table(path: Path, columns: Columns) -> None:
    """Write item vectors (d, num_items), atomically.

    Raises:
        ConfigError: not a float32 matrix of finite numbers.
    """
    is_matrix = columns.ndim == 2 and columns.dtype == np.float32
    require(is_matrix, "items must be a float32 matrix", shape=columns.shape, dtype=str(columns.dtype))
    require(bool(np.isfinite(columns).all()), "items must be finite", num_items=columns.shape[1])
    entry = {"dtype": "F32", "shape": list(columns.shape), "data_offsets": [0, columns.nbytes]}
    header = json.dumps({"items": entry}, separators=(",", ":")).encode()
    header += b" " * (-(_LENGTH_BYTES + len(header)) % _ALIGNMENT)
    little_endian = np.ascontiguousarray(columns, dtype="<f4").tobytes()
    write_atomic(path, len(header).to_bytes(_LENGTH_BYTES, "little") + header + little_endian)


def open_item_table(path: Path) -> Columns:
    """Map item vectors (d, num_items) into memory: pages are read when they are used, and shared between processes.

    Raises:
        BundleError: not a file that ``save_item_table`` wrote.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            entry: dict[str, Any] = json.loads(file.read(min(size, 1 << 20)))["items"]
            shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if dtype != "F32" or len(shape) != 2:
            raise ValueError(f"dtype {dtype}, shape {shape}")
        # copy on write: nothing writes, but PyTorch takes only memory that could be written
        mapped = np.memmap(path, dtype="<f4", mode="c", offset=_LENGTH_BYTES + size, shape=shape)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"items must be a readable table, got {path}: {error}") from error
    return np.asarray(mapped)
