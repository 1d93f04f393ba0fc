"""Segments and the floor."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import Item
from ownlet.shared.metrics import ndcg, paired_difference
from ownlet.simulations.evaluate import Cases
from ownlet.simulations.segments import (
    activity_segments,
    check_floor,
    context_segments,
    floor_table,
    genre_segments,
    item_segments,
    user_segments,
)


def cases(lengths: list[int], targets: list[int] | None = None) -> Cases:
    asked = targets or [1] * len(lengths)
    return Cases(histories=tuple(np.arange(1, n + 1) for n in lengths), targets=np.array(asked))


def test_activity_is_in_thirds_and_equal_lengths_stay_together():
    found = activity_segments(cases([1, 2, 3, 4, 5, 6]))
    assert list(found) == ["activity: 1 to 2 events", "activity: 3 to 4 events", "activity: 5 to 6 events"]
    assert [mask.sum() for mask in found.values()] == [2, 2, 2]
    found = activity_segments(cases([3, 3, 3, 3, 3, 9]))
    assert {name: mask.tolist() for name, mask in found.items()} == {
        "activity: 3 to 3 events": [True] * 5 + [False],
        "activity: 9 to 9 events": [False] * 5 + [True],
    }
    assert activity_segments(cases([])) == {}


def test_every_case_is_in_one_activity_segment():
    lengths = np.random.default_rng(0).geometric(0.1, size=500).tolist()
    masks = np.array(list(activity_segments(cases(lengths)).values()))
    assert (masks.sum(axis=0) == 1).all()
    assert masks.sum(axis=1) == pytest.approx(500 / 3, rel=0.25)


def test_cold_users_and_cold_items():
    asked = cases([5, 6], [1, 2])
    assert user_segments(asked)["user: at most 5 events known"].tolist() == [True, False]
    found = item_segments(cases([1] * 4, [1, 2, 3, 4]), np.array([0, 0, 1, 5, 6]))
    assert [mask.tolist() for mask in found.values()] == [
        [True, False, False, False],
        [False, True, True, False],
        [False, False, False, True],
    ]


def test_small_groups_make_no_segment():
    values = np.array(["north"] * 30 + ["south"] * 29)
    assert list(context_segments("region", values)) == ["region: north"]
    items = (Item(number=1, id="a", genres=("Drama", "War")), Item(number=2, id="b", genres=("Drama",)))
    found = genre_segments(cases([1] * 3, [1, 2, 2]), items, min_cases=2)
    assert {name: mask.tolist() for name, mask in found.items()} == {"genre: Drama": [True, True, True]}
    assert list(genre_segments(cases([1] * 3, [1, 2, 2]), items, min_cases=1)) == ["genre: Drama", "genre: War"]


def test_the_floor_says_in_which_segment_a_method_loses():
    base = np.full(300, 5)
    better, worse = np.full(300, 1), np.full(300, 20)
    halves = np.arange(300) < 150
    mixed = np.where(halves, better, worse)
    rows = check_floor(
        base, {"mixed": mixed, "same": base}, {"first": halves, "second": ~halves, "none": halves & ~halves}
    )
    verdicts = {(row.method, row.segment): row.verdict for row in rows}
    assert verdicts == {
        ("mixed", "everybody"): "above",  # +0.61 on one half, -0.39 on the other
        ("mixed", "first"): "above",
        ("mixed", "second"): "below",
        ("same", "everybody"): "not below",
        ("same", "first"): "not below",
        ("same", "second"): "not below",
    }
    assert [row.cases for row in rows[:3]] == [300, 150, 150]
    assert rows[2].base.value == pytest.approx(1 / np.log2(6))
    assert rows[2].gain.value == pytest.approx(-1 / np.log2(6))


def test_a_loss_within_chance_is_nominally_below():
    rng = np.random.default_rng(0)
    base = rng.integers(1, 30, size=60)
    base[:2] = 1
    ours = base.copy()
    ours[:2] = 2  # two users lose a rank, which a resample may leave out altogether
    (row,) = check_floor(base, {"ours": ours}, {})
    assert (row.segment, row.verdict) == ("everybody", "nominally below")


def test_a_row_is_the_paired_difference_of_its_cases_also_over_seeds():
    rng = np.random.default_rng(1)
    base, ours = rng.integers(1, 20, size=(3, 80)), rng.integers(1, 20, size=(3, 80))
    mask = rng.random(80) < 0.5
    row = check_floor(base, {"ours": ours}, {"some": mask})[1]
    assert row.gain == paired_difference(ours[:, mask], base[:, mask])["ndcg@10"]
    assert row.value.value == pytest.approx(ndcg(ours[:, mask], 10).mean())


def test_masks_and_ranks_must_be_of_the_same_cases():
    with pytest.raises(ConfigError, match="segments must be masks over the cases, got segment='bad'"):
        check_floor(np.ones(3, np.int64), {"a": np.ones(3, np.int64)}, {"bad": np.ones(2, bool)})
    with pytest.raises(ConfigError, match="ranks must be of the same cases, got method='a'"):
        check_floor(np.ones(3, np.int64), {"a": np.ones(4, np.int64)}, {})


def test_the_table_shows_every_row_with_its_verdict():
    base = np.full(50, 5)
    rows = check_floor(base, {"harm": np.full(50, 20), "help": np.full(50, 1)}, {"all": np.ones(50, bool)})
    console = Console(file=io.StringIO(), width=120)
    console.print(floor_table(rows))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[-1] for line in lines if line.strip().startswith(("harm", "help"))] == ["below"] * 2 + [
        "above"
    ] * 2
    assert any("-0.3869" in line for line in lines)
