"""What stands around the calls of a program: how a batch is cut, which candidates take part, which items are best.

Plain functions of arrays. The host says which candidates take part and sorts what is scored, so that the program
compares nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.candidates import Candidates

__all__ = ["best_items", "program_candidates", "split_batch"]

_CALL_COST = 1.0  # what a call of ``step`` costs beside its windows, in windows (docs/decisions.md, "Device program")
_BLOCK = 64  # scores whose largest stands for them all when the best are looked for


def program_candidates(candidates: Candidates, target: NDArray[np.int64]) -> tuple[NDArray[np.generic] | float, ...]:
    """Return the arguments behind ``valid`` of an objective's ``step``.

    Args:
        candidates: of the first windows of a call; the call's other rows are padding.
        target: (batch, length) item numbers, padding included.

    Returns:
        negatives (batch, n), kept (batch, length, n), and for ``softmax`` the correction (batch, n), for ``bce`` the
        weight of the target's part.
    """
    negatives = _padded(candidates.items.numpy(), len(target), 1)
    kept = (negatives[:, None, :] != target[:, :, None]).astype(np.float32)
    match candidates.config.objective:
        case "softmax":
            return negatives, kept, _padded(candidates.correction.numpy(), len(target), 0)
        case "bce":
            return negatives, kept, candidates.positive_weight
    return negatives, kept


def _padded(rows: NDArray[np.generic], count: int, value: int) -> NDArray[np.generic]:
    return np.pad(rows, ((0, count - len(rows)), (0, 0)), constant_values=value)


@lru_cache(maxsize=1024)
def split_batch(size: int, batches: tuple[int, ...]) -> tuple[int, ...]:
    """Return the variants to call for a batch: those that take the least time together, at least one.

    Args:
        size: windows in the batch.
        batches: windows that each variant takes, rising.
    """
    largest = batches[-1]
    whole, rest = divmod(size, largest)
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # by number of windows still to place
    for windows in range(1, rest + 1):
        options = ((batch, best[max(0, windows - batch)]) for batch in batches)
        best.append(min((_CALL_COST + batch + cost, (batch, *calls)) for batch, (cost, calls) in options))
    calls = (largest,) * whole + tuple(sorted(best[rest][1], reverse=True))
    return calls or batches[:1]


def best_items(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the places of the best scores, best first, without those of minus infinity.

    Exact, and fast on large catalogues: the best ``count`` scores lie in the ``count`` blocks with the largest maxima,
    so only those blocks are sorted.

    Args:
        scores: (num_items,).
        count: how many places at the most.
    """
    places = np.arange(len(scores))
    blocks = len(scores) // _BLOCK
    if blocks > 2 * count:
        heads = scores[: blocks * _BLOCK].reshape(blocks, _BLOCK)
        largest = heads.max(axis=1)
        bar = np.partition(largest, blocks - count)[blocks - count]  # the count-th largest maximum
        within = np.flatnonzero(largest >= bar)  # every block that can hold one of the best, ties included
        tail = places[blocks * _BLOCK :]
        places = np.concatenate([places[: blocks * _BLOCK].reshape(blocks, _BLOCK)[within].ravel(), tail])
    kept = scores[places]
    if len(kept) > count:
        bar = np.partition(kept, len(kept) - count)[len(kept) - count]
        places, kept = places[kept >= bar], kept[kept >= bar]
    finite = kept > -np.inf
    places, kept = places[finite], kept[finite]
    return places[np.argsort(-kept, kind="stable")][:count]
