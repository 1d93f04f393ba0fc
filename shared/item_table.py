"""The item table of a bundle: one matrix in one file, which a device maps into memory.

A safetensors file (https://github.com/huggingface/safetensors#format) with the tensor ``items`` of shape
(d, num_items): column i - 1 is the vector of item i, padding has none. In float32 it is read where it lies, never
copied. In int8 it is a quarter as large, for the way to the device: a column stands for its integers times its number
in ``scales``, and is multiplied out when it is opened.

The header is padded with spaces, as the format allows, until the numbers begin at a multiple of 64 bytes, the widest
load that a processor asks for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import BundleError, require
from ownlet.shared.store import write_atomic

__all__ = ["Columns", "Quantize", "open_item_table", "save_item_table"]

Columns = NDArray[np.float32]
Quantize = Literal["none", "int8"]

_ALIGNMENT = 64
_LENGTH_BYTES = 8
_NAMES = {"<f4": "F32", "|i1": "I8"}  # NumPy's name -> safetensors' name


def save_item_table(path: Path, columns: Columns, *, quantize: Quantize = "none") -> None:
    """Write item vectors (d, num_items), atomically.

    Raises:
        ConfigError: not a float32 matrix of finite numbers, or an unknown way to quantise.
    """
    is_matrix = columns.ndim == 2 and columns.dtype == np.float32
    require(is_matrix, "items must be a float32 matrix", shape=columns.shape, dtype=str(columns.dtype))
    require(bool(np.isfinite(columns).all()), "items must be finite", num_items=columns.shape[1])
    require(quantize in get_args(Quantize), "quantize must be none or int8", quantize=quantize)
    if quantize == "none":
        write_atomic(path, _safetensors({"items": columns}))
        return
    largest = np.abs(columns).max(axis=0)  # (num_items,)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    integers = np.rint(columns / scales).clip(-127, 127).astype(np.int8)
    write_atomic(path, _safetensors({"scales": scales, "items": integers}))


def open_item_table(path: Path) -> Columns:
    """Return item vectors (d, num_items).

    Those in float32 are mapped: pages are read when they are used, and shared between processes.

    Raises:
        BundleError: not a file that ``save_item_table`` wrote.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header: dict[str, Any] = json.loads(file.read(min(size, 1 << 20)))
        items = _mapped(path, header["items"], _LENGTH_BYTES + size)
        scales = _mapped(path, header["scales"], _LENGTH_BYTES + size) if "scales" in header else None
        if items.ndim != 2 or (items.dtype == np.float32) != (scales is None):
            raise ValueError(f"dtype {items.dtype}, shape {items.shape}")
        return items if scales is None else items * scales
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"items must be a readable table, got {path}: {error}") from error


def _safetensors(tensors: dict[str, NDArray[Any]]) -> bytes:
    header, at = {}, 0
    for name, array in tensors.items():
        offsets = [at, at + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype.str], "shape": list(array.shape), "data_offsets": offsets}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + b"".join(array.tobytes() for array in tensors.values())


def _mapped(path: Path, entry: dict[str, Any], start: int) -> NDArray[Any]:
    kinds = {name: dtype for dtype, name in _NAMES.items()}
    # copy on write: nothing writes, but PyTorch takes only memory that could be written
    offset = start + entry["data_offsets"][0]
    array = np.memmap(path, dtype=kinds[entry["dtype"]], mode="c", offset=offset, shape=tuple(entry["shape"]))
    return np.asarray(array)
