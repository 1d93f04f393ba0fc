"""Most popular and item-kNN."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import k_core
from ownlet.shared.metrics import ranks, summarise
from ownlet.shared.splits import leave_one_out
from ownlet.simulations.baselines import item_knn, most_popular
from ownlet.simulations.readers import read

MOVIETWEETINGS = (
    Path(os.environ.get("OWNLET_DATA", Path(__file__).parents[2] / "../shared/data")) / "movietweetings-100k"
)
EMPTY = np.zeros(0, np.int64)


def histories(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(items, dtype=np.int64) for items in lists]


def test_popularity_counts_training_events_and_is_the_same_for_everybody():
    score = most_popular(histories([1, 2], [2], [2, 4]), 4)
    assert score(histories([1], [])).tolist() == [[0, 1, 3, 0, 1]] * 2


def test_popularity_of_nothing_is_zero():
    assert most_popular([], 3)([EMPTY]).tolist() == [[0, 0, 0, 0]]


def test_item_knn_sums_cosines_as_a_dense_loop_does():
    rng = np.random.default_rng(0)
    train = [rng.choice(np.arange(1, 21), size=6, replace=False) for _ in range(40)]
    has = np.zeros((40, 21))
    for row, items in enumerate(train):
        has[row, items] = 1
    cosine = np.zeros((21, 21))
    for i in range(1, 21):
        for j in range(1, 21):
            if i != j:
                cosine[i, j] = has[:, i] @ has[:, j] / max(np.linalg.norm(has[:, i]) * np.linalg.norm(has[:, j]), 1e-12)
    asked = histories([3], [1, 5, 9], [])
    expected = [sum((cosine[i] for i in h), np.zeros(21)) for h in asked]
    np.testing.assert_allclose(item_knn(train, 20, neighbours=20)(asked), expected, atol=1e-6)


def test_item_knn_keeps_the_nearest_neighbours_only():
    train = histories([1, 2], [1, 2], [1, 3], [3, 4])
    # cosines of item 1 (3 users): with 2 it is 2 / sqrt(3 * 2), with 3 it is 1 / sqrt(3 * 2)
    scores = item_knn(train, 4, neighbours=1)(histories([1]))[0]
    np.testing.assert_allclose(scores, [0, 0, 2 / np.sqrt(6), 0, 0], atol=1e-6)
    both = item_knn(train, 4, neighbours=2)(histories([1]))[0]
    np.testing.assert_allclose(both, [0, 0, 2 / np.sqrt(6), 1 / np.sqrt(6), 0], atol=1e-6)


def test_a_repeated_item_counts_once():
    once, twice = histories([1, 2], [2, 3]), histories([1, 2, 2, 1], [2, 3])
    np.testing.assert_array_equal(item_knn(once, 3)(histories([1])), item_knn(twice, 3)(histories([1, 1])))


def test_item_knn_knows_nothing_of_items_without_users():
    assert item_knn(histories([1, 2]), 3)(histories([3], [])).tolist() == [[0, 0, 0, 0]] * 2
    with pytest.raises(ConfigError, match="neighbours must be at least 1"):
        item_knn([], 3, neighbours=0)


@pytest.mark.skipif(not MOVIETWEETINGS.is_dir(), reason=f"no MovieTweetings in {MOVIETWEETINGS}; set OWNLET_DATA")
def test_baselines_on_movietweetings_are_the_published_ones():
    data = k_core(read(MOVIETWEETINGS), 5)
    split = leave_one_out(data)
    seen = [split.test_history(int(user)) for user in split.evaluated]
    target = split.test[split.evaluated]
    for scorer, expected in (
        (most_popular(split.train, data.num_items), (0.146, 0.074, 0.052)),
        (item_knn(split.train, data.num_items), (0.173, 0.091, 0.066)),
    ):
        got = [metric.value for metric in summarise(ranks(scorer(seen), target, seen)).values()]
        np.testing.assert_allclose(got, expected, atol=0.002)
