"""Two recommenders that need no training, printed beside every model: most popular and item-kNN.

A model that does not beat both has learned nothing worth a device's battery.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse  # type: ignore[import-untyped]

from ownlet.shared.errors import require
from ownlet.shared.interactions import History

__all__ = ["Scorer", "item_knn", "most_popular"]

Scorer = Callable[[Sequence[History]], NDArray[np.float32]]
"""Maps histories to scores (len(histories), num_items + 1); column 0 is padding and means nothing."""


def most_popular(train_histories: Sequence[History], num_items: int) -> Scorer:
    """Score every item by how many training events it has, the same for everybody.

    Args:
        train_histories: item numbers per user.
        num_items: items in the catalogue.

    Returns:
        The scorer.
    """
    counts = np.bincount(_concatenate(train_histories), minlength=num_items + 1).astype(np.float32)

    def score(histories: Sequence[History]) -> NDArray[np.float32]:
        return np.tile(counts, (len(histories), 1))

    return score


def item_knn(train_histories: Sequence[History], num_items: int, *, neighbours: int = 1000) -> Scorer:
    """Score an item by its cosine similarity to the items of the history, summed (Sarwar et al. 2001, section 3.1.1).

    An item is the binary vector of the users who have it. Each item keeps only its nearest neighbours.

    Args:
        train_histories: item numbers per user.
        num_items: items in the catalogue.
        neighbours: how many similar items an item keeps, at least 1.

    Returns:
        The scorer. An empty history scores 0 everywhere.

    Raises:
        ConfigError: neighbours is below 1.
    """
    require(neighbours >= 1, "neighbours must be at least 1", neighbours=neighbours)
    users = _incidence(train_histories, num_items)  # (users, num_items + 1)
    norms = np.sqrt(np.asarray(users.sum(axis=0)).ravel())
    unit = users @ sparse.diags_array(1.0 / np.maximum(norms, 1.0))
    similarity = sparse.csr_array(unit.T @ unit)
    similarity.setdiag(0.0)
    similarity.eliminate_zeros()
    nearest = _keep_largest(similarity, neighbours)

    def score(histories: Sequence[History]) -> NDArray[np.float32]:
        return np.asarray((_incidence(histories, num_items) @ nearest).todense(), dtype=np.float32)

    return score


def _concatenate(histories: Sequence[History]) -> History:
    return np.concatenate([np.zeros(0, np.int64), *histories])


def _incidence(histories: Sequence[History], num_items: int) -> sparse.csr_array:
    """Return (len(histories), num_items + 1), 1 where the history has the item, however often."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    columns = _concatenate(histories)
    counts = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(histories), num_items + 1))
    counts.data[:] = 1.0  # csr_array sums what occurs twice
    return counts


def _keep_largest(matrix: sparse.csr_array, count: int) -> sparse.csr_array:
    """Keep the largest entries of each row; of equal ones, those with the lower column."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    place = np.arange(len(order)) - matrix.indptr[row]  # place of each sorted entry in its row; rows stay in order
    kept = order[place < count]
    return sparse.csr_array((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)
