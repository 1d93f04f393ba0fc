"""RecBole's metrics, against loops written from the formulas of its documentation."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ownlet.simulations.evaluate import Answers
from ownlet.simulations.recbole import recbole_metrics

LISTS = np.array([[1, 2, 3], [1, 2, 4], [1, 5, 2], [6, 1, 2]])
RANKS = np.array([1, 3, 4, 2])
TRAINING = np.array([0, 40, 20, 10, 5, 5, 0, 3, 1])  # 8 items; item 6 was never trained on
FOUND = recbole_metrics(Answers(ranks=RANKS, lists=LISTS), TRAINING)


def test_accuracy_of_one_target():
    assert FOUND["hit@3"] == FOUND["recall@3"] == 3 / 4
    assert FOUND["precision@3"] == pytest.approx(1 / 4)
    assert FOUND["mrr@3"] == pytest.approx((1 + 1 / 3 + 0 + 1 / 2) / 4)
    assert FOUND["ndcg@3"] == pytest.approx((1 + 1 / np.log2(4) + 0 + 1 / np.log2(3)) / 4)


def test_coverage_and_gini_count_padding_as_an_item():
    assert FOUND["itemcoverage@3"] == 6 / 9
    counts = sorted([0] * 3 + list(Counter(LISTS.ravel().tolist()).values()))
    expected = sum((2 * (at + 1) - 9 - 1) * count for at, count in enumerate(counts)) / (9 * sum(counts))
    assert FOUND["giniindex@3"] == pytest.approx(expected)


def test_popularity_entropy_and_tail():
    assert FOUND["averagepopularity@3"] == pytest.approx(
        np.mean([np.mean([TRAINING[item] for item in row]) for row in LISTS])
    )
    shares = [count / 12 for count in Counter(LISTS.ravel().tolist()).values()]
    assert FOUND["shannonentropy@3"] == pytest.approx(-sum(p * np.log(p) for p in shares) / len(shares))
    assert FOUND["tailpercentage@3"] == 0.0  # a tenth of 7 items is one at least: item 8, which nobody is shown
    wide = recbole_metrics(Answers(ranks=RANKS, lists=LISTS), TRAINING, tail_ratio=0.6)  # items 8, 7, 4 and 5
    assert wide["tailpercentage@3"] == pytest.approx(2 / 12)
