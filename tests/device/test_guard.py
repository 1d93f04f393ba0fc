"""The guard: which events judge a training, and when the shared adapter is ahead by more than chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from ownlet.device.guard import Drift, Guard, held_out_row, watch
from ownlet.shared.errors import ConfigError


class RankingEngine:
    """Scores so that item n has the n-th best score under vector (1,), and the n-th worst under vector (-1,)."""

    def score(
        self, vector: NDArray[np.float32], history: NDArray[np.int64], context: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        if context is not None:  # the last row decides: 1 turns the order round
            vector = vector * (-1 if context[-1, 0] else 1)
        return -vector[0] * np.arange(21, dtype=np.float32)


FORWARD, BACKWARD = np.array([1], np.float32), np.array([-1], np.float32)


@pytest.mark.parametrize(
    ("events", "row_length", "expected"), [(5, 20, 1), (10, 20, 2), (50, 20, 10), (1000, 20, 10), (5, 2, 1)]
)
def test_a_fifth_of_the_events_judges_but_at_most_half_a_row(events: int, row_length: int, expected: int) -> None:
    assert Guard().num_held_out(events, row_length) == expected


def test_a_held_out_row_ends_with_the_last_events_and_counts_only_them() -> None:
    row = held_out_row(np.arange(1, 8), 2, row_length=4)
    assert row.history.tolist() == [[3, 4, 5, 6]]
    assert row.target.tolist() == [[4, 5, 6, 7]]
    assert row.valid.tolist() == [[0, 0, 1, 1]]


def test_a_short_history_is_padded_behind() -> None:
    row = held_out_row(np.array([8, 9]), 5, row_length=3)
    assert (row.history.tolist(), row.target.tolist(), row.valid.tolist()) == ([[8, 0, 0]], [[9, 0, 0]], [[1, 0, 0]])


def test_hits_of_both_are_counted_on_events_that_could_be_recommended() -> None:
    events = np.array([1, 20, 2, 1, 19])
    # item 20 is last forward and first backward; item 1 came before, so it cannot be recommended again
    got = watch(RankingEngine(), FORWARD, BACKWARD, events, np.array([0, 1, 2, 3, 4]), k=3)  # type: ignore[arg-type]
    assert got == "1212"


def test_every_event_is_asked_for_in_its_own_moment() -> None:
    events, moments = np.array([1, 20, 2, 19]), np.array([[0], [1], [0], [1]])
    got = watch(RankingEngine(), FORWARD, BACKWARD, events, np.arange(4), 3, moments)  # type: ignore[arg-type]
    assert got == "1111"  # without context: 1212


def test_a_held_out_row_has_the_moment_of_each_target() -> None:
    row = held_out_row(np.arange(1, 8), 2, 4, np.arange(1, 8)[:, None])
    assert row.context is not None
    assert row.context[..., 0].tolist() == row.target.tolist()
    short = held_out_row(np.array([8, 9]), 5, 3, np.array([[8], [9]]))
    assert short.context is not None
    assert short.context[..., 0].tolist() == short.target.tolist()


def test_counters_forget_the_oldest_and_survive_being_written() -> None:
    drift = Drift().add("1203", 4, window=100).add("33", 6, window=3)
    assert drift == Drift(outcomes="333", until=6)
    assert Drift.from_json(drift.to_json()) == drift
    assert Drift.from_json(None) == Drift()
    assert Drift(outcomes="0123").personal_hit_rate == Drift(outcomes="0123").shared_hit_rate == 0.5
    assert math.isnan(Drift().shared_hit_rate)


@pytest.mark.parametrize(
    ("outcomes", "behind"),
    [
        ("", False),
        ("2222", False),  # 1 in 16 by chance
        ("22222", True),  # 1 in 32
        ("22222" + "0" * 50 + "3" * 20, True),  # where both agree decides nothing
        ("2222211", False),
        ("1" * 10, False),
    ],
)
def test_the_shared_adapter_is_ahead_only_by_more_than_chance(outcomes: str, behind: bool) -> None:
    assert Drift(outcomes=outcomes).is_behind(0.05) is behind


def test_the_sign_test_is_the_binomial_one() -> None:
    for lost in range(12):
        for won in range(12):
            chance = binomtest(lost, max(1, lost + won), alternative="greater").pvalue
            drift = Drift(outcomes="2" * lost + "1" * won)
            assert drift.is_behind(0.05) is bool(lost > won and chance <= 0.05)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"holdout": 0}, "holdout must be in"),
        ({"min_events": 2}, "min_events must be at least 3"),
        ({"k": 0}, "k must be at least 1"),
        ({"window": 0}, "window must be at least 1"),
        ({"significance": 1}, "significance must be in"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Guard(**settings)  # type: ignore[arg-type]
