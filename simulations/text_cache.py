"""Text vectors in a file, so that a catalogue is encoded once per encoder.

The file's name is a hash over the encoder's fingerprint and the texts. Inside it says so again and holds a hash of its
own numbers: a file that is truncated, damaged or another's is not used, and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = ["cache_key", "cached_vectors"]

_FORMAT = "ownlet-text-vectors-1"

_log = logging.getLogger(__name__)


def cache_key(fingerprint: str, texts: Sequence[str]) -> str:
    """Return the SHA-256 over what makes the vectors what they are."""
    return hashlib.sha256(json.dumps([_FORMAT, fingerprint, list(texts)]).encode()).hexdigest()


def cached_vectors(
    folder: Path, fingerprint: str, texts: Sequence[str], encode: Callable[[], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the vectors of texts (texts, width), from the cache where they are there and whole.

    A disk that refuses the cache costs time, not the result: it is told in the log.

    Args:
        folder: of the cache; made where it is missing.
        fingerprint: of the encoder, with everything that changes a vector.
        texts: in order.
        encode: makes the vectors where the cache lacks them.
    """
    key = cache_key(fingerprint, texts)
    path = folder / f"{key[:32]}.safetensors"
    found = _read(path, key, len(texts))
    if found is not None:
        return found
    vectors = encode()
    metadata = {"format": _FORMAT, "key": key, "sha256": _hash(vectors)}
    try:
        write_atomic(path, pack({"vectors": vectors}, metadata))
    except OSError as error:
        _log.warning("text vectors could not be cached in %s: %s", folder, error)
    return vectors


def _read(path: Path, key: str, num_texts: int) -> NDArray[np.float32] | None:
    try:
        tensors, metadata = unpack(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("text vectors are made anew, the cache is unreadable: %s", error)
        return None
    vectors = tensors.get("vectors")
    ours = metadata.get("format") == _FORMAT and metadata.get("key") == key and set(tensors) == {"vectors"}
    if vectors is None or not ours or vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != num_texts:
        _log.warning("text vectors are made anew, the cache holds others: %s", path)
        return None
    if _hash(vectors) != metadata.get("sha256"):
        _log.warning("text vectors are made anew, the cache is damaged: %s", path)
        return None
    return vectors


def _hash(vectors: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()
