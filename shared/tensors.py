"""Arrays with a few words about them as the content of one safetensors file, in memory.

The library reads metadata from files only; what a device keeps may be sealed, so it is never a plain file. The format
is public and short: eight bytes of length, a JSON header, the data
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

__all__ = ["pack", "unpack"]


def pack(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Return tensors and metadata as the content of a safetensors file."""
    return save(dict(tensors), metadata=dict(metadata))


def unpack(content: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file's content.

    Raises:
        ValueError: it is not one.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"content must be readable safetensors, got {len(content)} bytes: {error}") from error
    return tensors, dict(header.get("__metadata__", {}))
