"""Recommending in two stages: the candidates of the first, in the order of the second; the same for every engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["rank_candidates"]

Rank = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Candidates (1, C), 0 behind the last, to scores (1, C)."""


def rank_candidates(
    candidates: NDArray[np.int64], num_candidates: int, rank: Rank
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return candidates in the order of the second stage, and its scores.

    Args:
        candidates: (n,) what the first stage found, best first; as many as there are, none included.
        num_candidates: C, how many the second stage takes; those behind are left out.
        rank: the second stage.

    Returns:
        items and scores, best first; of equal scores the one that the first stage preferred.
    """
    kept = candidates[:num_candidates]
    if len(kept) == 0:
        return kept, np.zeros(0, np.float32)
    padded = np.zeros((1, num_candidates), np.int64)
    padded[0, : len(kept)] = kept
    scores = rank(padded)[0, : len(kept)]
    order = np.argsort(-scores, kind="stable")
    return kept[order], scores[order]
