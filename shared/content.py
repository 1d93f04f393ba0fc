"""Content vectors: what an item is about, as numbers that need no training and no vocabulary.

Genres, words of the title and the decade are hashed into a fixed width with a hashed sign, so that collisions cancel on
average (Weinberger et al. 2009, https://arxiv.org/abs/0902.2206, equation 2). A new item gets its vector from its own
title alone, and the same one on every machine: hashes come from BLAKE2, not from Python's salted ``hash``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.interactions import Item

__all__ = ["content_vectors"]

_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_STOP_WORDS = frozenset(
    {"a", "an", "and", "at", "by", "de", "for", "from", "in", "la", "le", "of", "on", "or", "the", "to"}
)


def content_vectors(items: Sequence[Item], dim: int = 128) -> NDArray[np.float32]:
    """Hash genres, title words and decade of every item.

    Genres, words and decade weigh the same together, however many there are of each: each group is scaled to length 1
    before the groups are added.

    Args:
        items: the catalogue in order of item number.
        dim: width of a vector, at least 1.

    Returns:
        (num_items + 1, dim). Row 0 (padding) is zero; every other row has L2 norm 1, or is zero where the item has
        neither title nor genres.

    Raises:
        ConfigError: dim is below 1.
    """
    require(dim >= 1, "dim must be at least 1", dim=dim)
    vectors = np.zeros((len(items) + 1, dim))
    for row, item in enumerate(items, start=1):
        for group in _features(item):
            vectors[row] += _hashed(group, dim)
    return _unit(vectors).astype(np.float32)


def _features(item: Item) -> tuple[tuple[str, ...], ...]:
    """Return the item's features in groups: genres, title words, decade."""
    year = _YEAR.search(item.title)
    words = re.findall(r"\w+", _YEAR.sub("", item.title).casefold())
    return (
        tuple(f"genre:{genre.casefold()}" for genre in item.genres),
        tuple(f"word:{word}" for word in dict.fromkeys(words) if word not in _STOP_WORDS),
        (f"decade:{year.group(1)[:3]}0",) if year else (),
    )


def _hashed(features: tuple[str, ...], dim: int) -> NDArray[np.float64]:
    """Add up the signed unit vectors of the features and scale to length 1: (dim,)."""
    vector = np.zeros(dim)
    for feature in features:
        value = _hash(feature)
        vector[(value >> 1) % dim] += 1.0 if value & 1 else -1.0
    return _unit(vector)


@lru_cache(maxsize=100_000)
def _hash(feature: str) -> int:
    return int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale each vector (..., dim) to length 1; zero stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = vectors / np.where(norms > 0, norms, 1.0)
    return scaled
