"""What lists of recommendations are like beyond being right: how much of the catalogue they show, and how new it is.

* coverage@k: the share of the catalogue that anybody is shown (Ge et al. 2010,
  https://dl.acm.org/doi/10.1145/1864708.1864761, catalogue coverage, section 3.1);
* novelty@k: mean self-information of what is shown, -log2 of the share of training users who have the item (Zhou et al.
  2010, https://arxiv.org/abs/0808.2670, "surprisal"). An item that nobody has counts as if one user had it;
* Gini@k: 0 where all items are shown equally often, towards 1 where everybody is shown the same.

Lists are those of ``metrics.top_k``: (n, k) item numbers, 0 where a list ends early.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.interactions import History

__all__ = ["coverage", "gini", "item_events", "item_users", "mean_over_list", "novelty", "shown"]

Lists = NDArray[np.int64]


def item_events(histories: Sequence[History], num_items: int) -> NDArray[np.int64]:
    """Count every item's events in training: (num_items + 1,), 0 for padding."""
    return _counts(histories, num_items)


def item_users(histories: Sequence[History], num_items: int) -> NDArray[np.int64]:
    """Count the training users who have an item, however often: (num_items + 1,), 0 for padding."""
    return _counts([np.unique(history) for history in histories], num_items)


def shown(lists: Lists, num_items: int) -> NDArray[np.int64]:
    """Count how often each item is shown: (num_items + 1,), 0 for padding."""
    counts = np.bincount(lists.ravel(), minlength=num_items + 1)
    require(len(counts) == num_items + 1, "lists must hold item numbers", items=num_items, highest=len(counts) - 1)
    counts[0] = 0
    return counts


def coverage(lists: Lists, num_items: int) -> float:
    """Return the share of the catalogue that is in at least one list."""
    return float(np.count_nonzero(shown(lists, num_items)) / num_items)


def gini(lists: Lists, num_items: int) -> float:
    """Return the Gini coefficient of how often each item of the catalogue is shown.

    Raises:
        ConfigError: no list has an item.
    """
    counts = np.sort(shown(lists, num_items)[1:])  # (num_items,) from the rarest on
    require(int(counts.sum()) > 0, "lists must hold at least one item", lists=len(lists))
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ counts / (num_items * counts.sum()))


def novelty(lists: Lists, users_with_item: NDArray[np.int64], num_users: int) -> NDArray[np.float64]:
    """Return each list's mean self-information, in bits.

    Args:
        lists: (n, k).
        users_with_item: (num_items + 1,) from ``item_users``.
        num_users: training users.

    Returns:
        (n,) -log2(users with the item / users), averaged over the list.

    Raises:
        ConfigError: no users, or a list without items.
    """
    require(num_users >= 1, "num_users must be at least 1", num_users=num_users)
    return mean_over_list(lists, -np.log2(np.maximum(users_with_item, 1) / num_users))


def mean_over_list(lists: Lists, values: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float64]:
    """Average a value of every item (num_items + 1,) over each list's items: (n,).

    Raises:
        ConfigError: a list without items.
    """
    real = lists > 0  # (n, k)
    length = real.sum(axis=1)
    require(bool((length > 0).all()), "lists must hold at least one item each", empty=int((length == 0).sum()))
    means: NDArray[np.float64] = np.where(real, values[lists], 0.0).sum(axis=1) / length
    return means


def _counts(histories: Sequence[History], num_items: int) -> NDArray[np.int64]:
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *histories]), minlength=num_items + 1)
