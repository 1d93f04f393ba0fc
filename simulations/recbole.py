"""Our figures under the names and by the definitions of RecBole, so that its users can lay them side by side.

Names and formulas are those of ``recbole/evaluator/metrics.py`` (https://github.com/RUCAIBox/RecBole, 1.2). With one
target per case, recall is the hit rate and precision is a k-th of it. Where RecBole differs from what we print:

* itemcoverage and giniindex count the padding item as part of the catalogue: num_items + 1;
* shannonentropy is divided by the number of different items that are shown;
* averagepopularity counts training events, where our novelty counts training users;
* tailpercentage takes the least popular tenth of the items that occur in training as the tail.

Two differences cannot be taken away. RecBole breaks ties as ``torch.topk`` happens to, where our ranks count them
against the model. And for sequential models RecBole does not take the history out of the ranking, where we do; on data
in which users repeat no item its figures are therefore somewhat lower. Figures are not rounded (RecBole: 4 places).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.list_metrics import gini, mean_over_list, shown
from ownlet.shared.metrics import hr, mrr, ndcg
from ownlet.simulations.evaluate import Answers

__all__ = ["recbole_metrics"]


def recbole_metrics(
    answers: Answers, training_events: NDArray[np.int64], *, tail_ratio: float = 0.1
) -> dict[str, float]:
    """Return RecBole's metrics of what a recommender answered.

    Args:
        answers: ranks, and lists of length k.
        training_events: (num_items + 1,) events of each item in training.
        tail_ratio: share of the items that occur in training that is the tail, at least one item.

    Returns:
        ``hit@k``, ``recall@k``, ``precision@k``, ``ndcg@k``, ``mrr@k``, ``itemcoverage@k``, ``averagepopularity@k``,
        ``giniindex@k``, ``shannonentropy@k``, ``tailpercentage@k``.
    """
    k = answers.lists.shape[1]
    num_items = len(training_events) - 1
    counts = shown(answers.lists, num_items)
    share = counts[counts > 0] / counts.sum()
    found = {
        "hit": float(hr(answers.ranks, k).mean()),
        "recall": float(hr(answers.ranks, k).mean()),
        "precision": float(hr(answers.ranks, k).mean()) / k,
        "ndcg": float(ndcg(answers.ranks, k).mean()),
        "mrr": float(mrr(answers.ranks, k).mean()),
        "itemcoverage": len(share) / (num_items + 1),
        "averagepopularity": float(mean_over_list(answers.lists, training_events).mean()),
        "giniindex": gini(answers.lists, num_items + 1),  # an item more that is never shown
        "shannonentropy": float(-(share * np.log(share)).sum() / len(share)),
        "tailpercentage": float(mean_over_list(answers.lists, _tail(training_events, tail_ratio)).mean()),
    }
    return {f"{name}@{k}": value for name, value in found.items()}


def _tail(training_events: NDArray[np.int64], ratio: float) -> NDArray[np.float64]:
    """Mark the least popular items that occur in training; of equal ones, those with the lower number."""
    occurring = np.flatnonzero(training_events > 0)
    order = occurring[np.argsort(training_events[occurring], kind="stable")]
    marked = np.zeros(len(training_events))
    marked[order[: max(int(len(order) * ratio), 1)]] = 1.0
    return marked
