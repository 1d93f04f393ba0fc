"""Ranking metrics over the whole catalogue, with bootstrap intervals.

The rank is pessimistic: an item with the same score as the target stands before it, so a model that scores everything
alike gets nothing (Krichene and Rendle 2020, https://dl.acm.org/doi/10.1145/3394486.3403226, on full ranking; ties in
section 2). With one target per user, NDCG@k is 1 / log2(1 + rank) and MRR@k is 1 / rank, both 0 beyond k.

Intervals are percentile bootstraps over users. A metric depends on a user only through the rank, cut at k + 1, so
resampling users is a multinomial draw over the k + 1 counts: the same distribution at a cost that does not grow with
the number of users.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require

__all__ = [
    "Metric",
    "PublicQuality",
    "average",
    "hr",
    "mrr",
    "ndcg",
    "paired_difference",
    "ranks",
    "summarise",
    "top_k",
]

Ranks = NDArray[np.int64]
PerUser = NDArray[np.float64]

_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A mean over users and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        require(
            self.low <= self.value <= self.high,
            "a metric must have low <= value <= high",
            low=self.low,
            value=self.value,
            high=self.high,
        )


def ranks(
    scores: NDArray[Any], target: NDArray[np.int64], seen: Sequence[NDArray[np.int64]] | NDArray[np.bool_]
) -> Ranks:
    """Rank each target among the items that its user has not seen.

    Args:
        scores: (n, num_items + 1); column 0 is padding and takes no part.
        target: (n,) item numbers. A target that is among the seen items is ranked all the same.
        seen: per row the item numbers that take no part, or a mask (n, num_items + 1).

    Returns:
        (n,) ranks from 1; an item with the target's score counts as better.

    Raises:
        ConfigError: shapes do not fit, a score is NaN, or a target is not an item.
    """
    n, width = scores.shape
    require(target.shape == (n,), "target must have one item per row of scores", target=target.shape, rows=n)
    require(len(seen) == n, "seen must have one entry per row of scores", seen=len(seen), rows=n)
    require(bool(((target >= 1) & (target < width)).all()), "target must be an item number", items=width - 1)
    require(not np.isnan(scores).any(), "scores must not be NaN", rows=np.flatnonzero(np.isnan(scores).any(axis=1))[:5])
    row = np.arange(n)
    better = scores >= scores[row, target][:, None]  # (n, num_items + 1)
    _exclude(better, seen, fill=False)
    better[row, target] = False
    result: Ranks = 1 + better.sum(axis=1, dtype=np.int64)
    return result


def top_k(scores: NDArray[Any], seen: Sequence[NDArray[np.int64]] | NDArray[np.bool_], k: int) -> NDArray[np.int64]:
    """List the k best items that a user has not seen.

    A target of rank r <= k in ``ranks`` is in place r of the list, unless it has the score of another item or is among
    the seen ones.

    Args:
        scores: (n, num_items + 1); column 0 is padding and takes no part.
        seen: per row the item numbers that take no part, or a mask (n, num_items + 1).
        k: length of a list.

    Returns:
        (n, k) item numbers, the best first; 0 where fewer items are left.

    Raises:
        ConfigError: shapes do not fit, a score is NaN, or k is below 1.
    """
    n, width = scores.shape
    require(k >= 1, "k must be at least 1", k=k)
    require(len(seen) == n, "seen must have one entry per row of scores", seen=len(seen), rows=n)
    require(not np.isnan(scores).any(), "scores must not be NaN", rows=np.flatnonzero(np.isnan(scores).any(axis=1))[:5])
    left = scores.astype(np.float64)  # a copy
    _exclude(left, seen, fill=-np.inf)
    most = min(k, width)
    best = np.sort(np.argpartition(-left, most - 1, axis=1)[:, :most], axis=1)  # by item number, for equal scores
    kept = np.take_along_axis(left, best, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")
    lists = np.zeros((n, k), np.int64)
    lists[:, :most] = np.where(np.take_along_axis(kept, order, 1) > -np.inf, np.take_along_axis(best, order, 1), 0)
    return lists


def _exclude(table: NDArray[Any], seen: Sequence[NDArray[np.int64]] | NDArray[np.bool_], *, fill: float) -> None:
    """Overwrite padding and what was seen in a table (n, num_items + 1)."""
    if isinstance(seen, np.ndarray) and seen.dtype == np.bool_:
        require(seen.shape == table.shape, "seen must have the shape of scores", seen=seen.shape, scores=table.shape)
        table[seen] = fill
    else:
        for row, items in enumerate(seen):
            table[row, items] = fill
    table[:, 0] = fill


def hr(ranks: Ranks, k: int) -> PerUser:
    """Hit rate per user: 1 where the rank is at most k."""
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: Ranks, k: int) -> PerUser:
    """Normalised discounted cumulative gain per user: 1 / log2(1 + rank), 0 beyond k."""
    return np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)


def mrr(ranks: Ranks, k: int) -> PerUser:
    """Reciprocal rank per user: 1 / rank, 0 beyond k."""
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


_METRICS: dict[str, Callable[[Ranks, int], PerUser]] = {"hr": hr, "ndcg": ndcg, "mrr": mrr}


def summarise(ranks: Ranks, k: int = 10, seed: int = 0) -> dict[str, Metric]:
    """Average HR, NDCG and MRR over users.

    Args:
        ranks: (n,) from 1, or (seeds, n): then each user counts with the mean over seeds.
        k: length of the list that is shown.
        seed: of the bootstrap.

    Returns:
        ``hr@k``, ``ndcg@k`` and ``mrr@k``, each with a 95 % interval over users.

    Raises:
        ConfigError: no users, a rank below 1, or k below 1.
    """
    _check(ranks, k)
    if ranks.ndim == 2:
        once = np.ones(ranks.shape[1], np.int64)
        return {
            f"{name}@{k}": _bootstrap(metric(ranks, k).mean(axis=0), once, seed) for name, metric in _METRICS.items()
        }
    counts = np.bincount(np.minimum(ranks, k + 1), minlength=k + 2)[1:]  # (k + 1,) users at rank 1..k, and beyond
    buckets = np.arange(1, k + 2)
    return {f"{name}@{k}": _bootstrap(metric(buckets, k), counts, seed) for name, metric in _METRICS.items()}


def average(values: PerUser, seed: int = 0) -> Metric:
    """Average one value per user (n,), with a 95 % interval over users.

    Raises:
        ConfigError: no users.
    """
    require(len(values) > 0, "values must be of at least one user", users=len(values))
    return _bootstrap(values, np.ones(len(values), np.int64), seed)


def paired_difference(ranks_a: Ranks, ranks_b: Ranks, k: int = 10, seed: int = 0) -> dict[str, Metric]:
    """Average, over the same users, how much better a is than b.

    Args:
        ranks_a: (n,) one model's ranks, or (seeds, n): then each user counts with the mean over seeds.
        ranks_b: the other's, users and seeds in the same order.
        k: length of the list that is shown.
        seed: of the bootstrap.

    Returns:
        ``hr@k``, ``ndcg@k`` and ``mrr@k`` of a minus b, with 95 % intervals from resampling users in pairs.

    Raises:
        ConfigError: lengths differ, no users, a rank below 1, or k below 1.
    """
    require(ranks_a.shape == ranks_b.shape, "ranks must be of the same users", a=ranks_a.shape, b=ranks_b.shape)
    _check(ranks_a, k)
    _check(ranks_b, k)
    if ranks_a.ndim == 2:
        once = np.ones(ranks_a.shape[1], np.int64)
        return {
            f"{name}@{k}": _bootstrap((metric(ranks_a, k) - metric(ranks_b, k)).mean(axis=0), once, seed)
            for name, metric in _METRICS.items()
        }
    side = k + 1
    pair = (np.minimum(ranks_a, side) - 1) * side + np.minimum(ranks_b, side) - 1  # (n,)
    counts = np.bincount(pair, minlength=side * side)
    a, b = np.divmod(np.arange(side * side), side)
    return {
        f"{name}@{k}": _bootstrap(metric(a + 1, k) - metric(b + 1, k), counts, seed)
        for name, metric in _METRICS.items()
    }


@dataclass(frozen=True, kw_only=True)
class PublicQuality:
    """NDCG@10 on held-out public users, of the base alone and with an adapter."""

    base: float
    adapter: float

    @property
    def publishable(self) -> bool:
        """Whether the adapter is at least as good as the base: one below it is never published."""
        return self.adapter >= self.base


def _check(ranks: Ranks, k: int) -> None:
    require(k >= 1, "k must be at least 1", k=k)
    require(ranks.size > 0, "ranks must be of at least one user", users=len(ranks))
    require(int(ranks.min()) >= 1, "ranks must be at least 1", lowest=int(ranks.min()))


def _bootstrap(values: PerUser, counts: NDArray[np.int64], seed: int) -> Metric:
    """Average values (buckets,) that occur counts (buckets,) times, with an interval over resampled users."""
    n = int(counts.sum())
    resampled = np.random.default_rng(seed).multinomial(n, counts / n, size=_RESAMPLES) @ values / n  # (_RESAMPLES,)
    low, high = np.percentile(resampled, [2.5, 97.5])
    value = float(counts @ values / n)  # equal values can be resampled to a mean that differs in the last bit
    return Metric(value=value, low=min(float(low), value), high=max(float(high), value))
