"""Coverage, novelty and Gini from closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.list_metrics import coverage, gini, item_events, item_users, mean_over_list, novelty, shown

HISTORIES = [np.array([1, 2, 2]), np.array([2]), np.array([2, 3]), np.array([], dtype=np.int64)]


def test_events_count_repeats_and_users_do_not():
    assert item_events(HISTORIES, 4).tolist() == [0, 1, 4, 1, 0]
    assert item_users(HISTORIES, 4).tolist() == [0, 1, 3, 1, 0]


def test_padding_is_not_shown():
    assert shown(np.array([[1, 0], [1, 3]]), 3).tolist() == [0, 2, 0, 1]


def test_coverage_is_the_share_of_items_in_any_list():
    assert coverage(np.array([[1, 2], [2, 0]]), 4) == 0.5
    assert coverage(np.array([[1, 2], [3, 4]]), 4) == 1.0


def test_gini_is_0_for_equal_shares_and_1_minus_1_over_n_for_a_single_item():
    assert gini(np.array([[1, 2], [3, 4]]), 4) == 0.0
    assert gini(np.array([[2], [2], [2]]), 4) == pytest.approx(1 - 1 / 4)


def test_gini_is_half_the_relative_mean_difference():
    counts = np.array([1, 5, 2, 0])
    lists = np.repeat(np.arange(1, 5), counts)[:, None]
    differences = np.abs(counts[:, None] - counts[None, :]).mean()
    assert gini(lists, 4) == pytest.approx(differences / (2 * counts.mean()))


def test_novelty_is_the_mean_self_information_in_bits():
    # item 1 has 4 of 8 users (1 bit), item 2 has 1 (3 bits), item 3 none: it counts as 1 (3 bits)
    users = np.array([0, 4, 1, 0])
    np.testing.assert_allclose(novelty(np.array([[1, 2], [1, 0], [3, 2]]), users, 8), [2.0, 1.0, 3.0])


def test_lists_that_end_early_are_averaged_over_what_they_hold():
    assert mean_over_list(np.array([[1, 2], [2, 0]]), np.array([9, 2, 4])).tolist() == [3.0, 4.0]


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ConfigError, match="lists must hold at least one item each, got empty=1"):
        mean_over_list(np.array([[1], [0]]), np.array([0, 1]))
    with pytest.raises(ConfigError, match="lists must hold at least one item"):
        gini(np.zeros((2, 2), np.int64), 3)
    with pytest.raises(ConfigError, match="lists must hold item numbers, got items=2, highest=3"):
        coverage(np.array([[3]]), 2)
    with pytest.raises(ConfigError, match="num_users must be at least 1"):
        novelty(np.array([[1]]), np.array([0, 1]), 0)
