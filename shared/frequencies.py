"""How often public users chose each item, as a file of a bundle: what popular negatives are drawn by.

A safetensors file with the tensor ``frequencies``, int64 (num_items + 1,); place 0, padding, is 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import BundleError
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = ["open_frequencies", "save_frequencies"]


def save_frequencies(path: Path, frequencies: NDArray[np.int64]) -> None:
    """Write frequencies (num_items + 1,), atomically."""
    write_atomic(path, pack({"frequencies": frequencies}, {}))


def open_frequencies(path: Path) -> NDArray[np.int64]:
    """Return frequencies (num_items + 1,).

    Raises:
        BundleError: not a file that ``save_frequencies`` wrote.
    """
    try:
        found = unpack(path.read_bytes())[0]["frequencies"]
        if found.ndim != 1 or found.dtype != np.int64 or (found < 0).any():
            raise ValueError(f"dtype {found.dtype}, shape {found.shape}")
        return found
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"frequencies must be a readable table, got {path}: {error}") from error
