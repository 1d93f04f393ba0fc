"""Text vectors made round: centred, and of equal spread in every direction.

The vectors of a language model lie in a narrow cone, so that any two texts look alike to a dot product. Whitening them
over the catalogue takes out what all texts share (Su et al. 2021, https://arxiv.org/abs/2103.15316, section 3; for
sequential recommendation Zhang et al. 2024, https://arxiv.org/abs/2402.10602).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Whitening", "fit_whitening"]

_TEXTS_PER_DIRECTION = 4  # with a direction for every text, all texts would be equally far from each other
_SMALLEST = 1e-6  # of the largest variance; below it a direction is rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """A linear map that was fitted on a catalogue.

    Args:
        mean: (width,).
        matrix: (width, directions).
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]

    def __call__(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map (n, width) to (n, directions), rows of length 1; a zero row stays zero."""
        mapped = (vectors - self.mean) @ self.matrix
        norms = np.linalg.norm(mapped, axis=1, keepdims=True)
        mapped = mapped / np.where(norms > 0, norms, 1.0)
        mapped[~vectors.any(axis=1)] = 0.0
        return mapped.astype(np.float32)


def fit_whitening(vectors: NDArray[np.float32]) -> Whitening:
    """Fit on the vectors of a catalogue (n, width); zero rows have no text and take no part.

    Directions are those of the largest variance, at most one for four texts, and at least one.
    """
    told = vectors[vectors.any(axis=1)].astype(np.float64)
    mean = told.mean(axis=0) if len(told) else np.zeros(vectors.shape[1])
    variances, directions = np.linalg.eigh(np.cov(told - mean, rowvar=False, bias=True).reshape(2 * mean.shape))
    order = np.argsort(variances)[::-1][: max(1, len(told) // _TEXTS_PER_DIRECTION)]
    order = order[variances[order] > _SMALLEST * max(variances.max(), 1e-30)]
    if not len(order):  # one text, or all alike: nothing to make round
        return Whitening(mean=np.zeros_like(mean, np.float32), matrix=np.eye(len(mean), dtype=np.float32))
    matrix = directions[:, order] / np.sqrt(variances[order])
    return Whitening(mean=mean.astype(np.float32), matrix=matrix.astype(np.float32))
