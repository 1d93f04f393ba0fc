"""Ranks and ranking metrics against closed forms and direct loops."""

from __future__ import annotations

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.metrics import Metric, average, hr, mrr, ndcg, paired_difference, ranks, summarise, top_k


def test_ranks_count_better_items_and_ties_against_the_target():
    scores = np.array([[99.0, 5.0, 3.0, 3.0, 1.0]])
    for target, rank in ((1, 1), (2, 3), (3, 3), (4, 4)):
        assert ranks(scores, np.array([target]), [np.array([], np.int64)]).tolist() == [rank]


def test_scoring_everything_alike_gives_the_last_rank():
    assert ranks(np.zeros((2, 51)), np.array([1, 50]), [np.array([], np.int64)] * 2).tolist() == [50, 50]


def test_seen_items_take_no_part_whatever_their_score_but_the_target_does():
    scores = np.array([[0.0, 9.0, 8.0, 7.0]])
    assert ranks(scores, np.array([3]), [np.array([1, 2])]).tolist() == [1]
    assert ranks(scores, np.array([3]), [np.array([1, 2, 3])]).tolist() == [1]
    scores[0, 3] = -np.inf  # below everything: seen items still take no part
    assert ranks(scores, np.array([3]), [np.array([1])]).tolist() == [2]


def test_a_mask_and_a_list_of_seen_items_agree_with_a_direct_loop():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, size=(40, 31)).astype(np.float32)  # many ties
    target = rng.integers(1, 31, size=40)
    seen = [rng.choice(np.arange(1, 31), size=rng.integers(0, 12), replace=False) for _ in range(40)]
    mask = np.zeros(scores.shape, bool)
    for row, items in enumerate(seen):
        mask[row, items] = True
    expected = []
    for row in range(40):
        others = [i for i in range(1, 31) if i != target[row] and i not in seen[row]]
        expected.append(1 + sum(bool(scores[row, i] >= scores[row, target[row]]) for i in others))
    assert ranks(scores, target, seen).tolist() == expected
    assert ranks(scores, target, mask).tolist() == expected


def test_nan_scores_bad_targets_and_wrong_shapes_are_refused():
    scores, nobody = np.zeros((1, 4)), [np.array([], np.int64)]
    with pytest.raises(ConfigError, match="scores must not be NaN"):
        ranks(np.array([[0, np.nan, 0, 0]]), np.array([2]), nobody)
    for target in (0, 4):
        with pytest.raises(ConfigError, match="target must be an item number"):
            ranks(scores, np.array([target]), nobody)
    with pytest.raises(ConfigError, match="seen must have one entry per row"):
        ranks(scores, np.array([1]), [])
    with pytest.raises(ConfigError, match="target must have one item per row"):
        ranks(scores, np.array([1, 2]), nobody)


def test_nobody_has_no_ranks():
    assert ranks(np.zeros((0, 5)), np.zeros(0, np.int64), []).shape == (0,)
    with pytest.raises(ConfigError, match="at least one user"):
        summarise(np.zeros(0, np.int64))


def test_metrics_per_user_are_their_closed_forms():
    r = np.array([1, 2, 3, 10, 11])
    assert hr(r, 10).tolist() == [1, 1, 1, 1, 0]
    np.testing.assert_allclose(ndcg(r, 10), [1, 0.6309297536, 0.5, 0.2890648263, 0])
    np.testing.assert_allclose(mrr(r, 10), [1, 0.5, 1 / 3, 0.1, 0])


def test_summary_is_the_mean_over_users_at_any_k():
    r = np.array([1, 2, 5, 30, 7])
    for k in (1, 5, 10):
        summary = summarise(r, k=k)
        assert list(summary) == [f"hr@{k}", f"ndcg@{k}", f"mrr@{k}"]
        for name, metric in (("hr", hr), ("ndcg", ndcg), ("mrr", mrr)):
            assert summary[f"{name}@{k}"].value == pytest.approx(metric(r, k).mean())


def test_the_interval_is_that_of_resampling_users_one_by_one():
    rng = np.random.default_rng(3)
    r = rng.integers(1, 40, size=300)
    resampled = [ndcg(rng.choice(r, size=300), 10).mean() for _ in range(2000)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    metric = summarise(r)["ndcg@10"]
    assert metric.low < metric.value < metric.high
    assert metric.low == pytest.approx(low, abs=0.1 * (high - low))
    assert metric.high == pytest.approx(high, abs=0.1 * (high - low))


def test_the_hit_rate_interval_has_the_width_of_the_binomial():
    r = np.where(np.arange(1000) < 300, 1, 99)
    metric = summarise(r)["hr@10"]
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert metric.high - metric.low == pytest.approx(2 * half, rel=0.1)


def test_users_that_are_all_alike_leave_no_uncertainty():
    metric = summarise(np.full(5, 2))["mrr@10"]
    assert (metric.value, metric.low, metric.high) == (0.5, 0.5, 0.5)


def test_summaries_follow_from_the_seed():
    r = np.random.default_rng(0).integers(1, 30, size=200)
    assert summarise(r, seed=1) == summarise(r, seed=1)
    assert summarise(r, seed=1)["mrr@10"] != summarise(r, seed=2)["mrr@10"]


def test_the_paired_difference_of_a_model_with_itself_is_exactly_zero():
    r = np.random.default_rng(0).integers(1, 30, size=200)
    for metric in paired_difference(r, r).values():
        assert (metric.value, metric.low, metric.high) == (0, 0, 0)


def test_the_paired_difference_is_antisymmetric_and_resamples_users_in_pairs():
    rng = np.random.default_rng(1)
    a = rng.integers(1, 20, size=400)
    b = a + rng.integers(0, 3, size=400)  # never better than a
    ahead, behind = paired_difference(a, b), paired_difference(b, a)
    for name, metric in (("hr@10", hr), ("ndcg@10", ndcg), ("mrr@10", mrr)):
        assert ahead[name].value == pytest.approx((metric(a, 10) - metric(b, 10)).mean())
        assert behind[name].value == pytest.approx(-ahead[name].value)
    difference = ndcg(a, 10) - ndcg(b, 10)
    width = 2 * 1.96 * difference.std() / np.sqrt(400)  # far narrower than without pairing
    assert ahead["ndcg@10"].high - ahead["ndcg@10"].low == pytest.approx(width, rel=0.1)
    assert ahead["ndcg@10"].low > 0


def test_ranks_of_different_users_cannot_be_paired():
    with pytest.raises(ConfigError, match="ranks must be of the same users"):
        paired_difference(np.array([1]), np.array([1, 2]))
    with pytest.raises(ConfigError, match="ranks must be at least 1"):
        summarise(np.array([0]))
    with pytest.raises(ConfigError, match="k must be at least 1"):
        summarise(np.array([1]), k=0)


def test_an_interval_holds_its_value_even_when_all_users_are_equal():
    for n in range(1, 60):
        for metric in (*summarise(np.full(n, 2)).values(), *summarise(np.full((3, n), 2)).values()):
            assert metric.low <= metric.value <= metric.high
    with pytest.raises(ConfigError, match="low <= value <= high"):
        Metric(value=0.3, low=0.1, high=0.2)


def test_seeds_are_averaged_per_user_before_users_are_resampled():
    ranks = np.array([[1, 20, 3], [2, 20, 20]])
    found = summarise(ranks)
    assert found["hr@10"].value == pytest.approx((2 / 2 + 0 + 1 / 2) / 3)
    assert found["mrr@10"].value == pytest.approx(((1 + 1 / 2) / 2 + 0 + 1 / 3 / 2) / 3)
    gain = paired_difference(ranks, np.full((2, 3), 20))
    assert gain["mrr@10"].value == pytest.approx(found["mrr@10"].value)
    one = summarise(ranks[:1])
    assert {k: m.value for k, m in one.items()} == pytest.approx({k: m.value for k, m in summarise(ranks[0]).items()})


def test_a_list_holds_the_best_unseen_items_in_order_as_sorting_does():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(30, 41)).astype(np.float32)
    seen = [rng.choice(np.arange(1, 41), size=rng.integers(0, 20), replace=False) for _ in range(30)]
    mask = np.zeros(scores.shape, bool)
    for row, items in enumerate(seen):
        mask[row, items] = True
    expected = [
        sorted((i for i in range(1, 41) if i not in seen[row]), key=lambda i, row=row: -scores[row, i])[:7]
        for row in range(30)
    ]
    assert top_k(scores, seen, 7).tolist() == expected
    assert top_k(scores, mask, 7).tolist() == expected


def test_an_unseen_target_of_rank_r_is_in_place_r_of_the_list():
    scores = np.random.default_rng(2).normal(size=(50, 21))
    target = np.arange(50) % 20 + 1
    seen = [np.setdiff1d(np.arange(1, 6), [t]) for t in target]
    lists, found = top_k(scores, seen, 20), ranks(scores, target, seen)
    assert lists[np.arange(50), found - 1].tolist() == target.tolist()


def test_equal_scores_are_listed_by_item_number_and_a_list_ends_where_items_do():
    assert top_k(np.zeros((1, 5)), [np.array([2])], 6).tolist() == [[1, 3, 4, 0, 0, 0]]
    assert top_k(np.full((1, 3), -np.inf), [np.array([1])], 1).tolist() == [[0]]


@pytest.mark.parametrize(
    "scores, seen, k",
    [(np.full((1, 3), np.nan), [np.array([1])], 1), (np.zeros((1, 3)), [], 1), (np.zeros((1, 3)), [np.array([1])], 0)],
)
def test_a_list_of_what_cannot_be_ranked_is_refused(scores: np.ndarray, seen: list[np.ndarray], k: int):
    with pytest.raises(ConfigError):
        top_k(scores, seen, k)


def test_an_average_is_the_mean_and_its_interval_that_of_the_normal_approximation():
    values = np.random.default_rng(3).normal(5.0, 2.0, size=4000)
    found = average(values)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)
    with pytest.raises(ConfigError, match="values must be of at least one user"):
        average(np.zeros(0))
