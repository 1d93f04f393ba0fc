"""Interactions, k-core and windows."""

from __future__ import annotations

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import Interactions, Item, k_core, pad_histories


def make(histories: list[list[int]], num_items: int, times: list[list[int]] | None = None) -> Interactions:
    lengths = [len(h) for h in histories]
    when = times or [list(range(len(h))) for h in histories]
    n = sum(lengths)
    return Interactions(
        name="made",
        items=tuple(Item(number=i, id=f"i{i}", title=f"T{i}") for i in range(1, num_items + 1)),
        user_ids=tuple(f"u{u}" for u in range(len(histories))),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        events=np.array([item for h in histories for item in h], dtype=np.int64),
        times=np.array([t for w in when for t in w], dtype=np.int64),
        ratings=np.arange(n, dtype=np.float32),
        context={"region": np.arange(n) * 10},
    )


def test_histories_and_timestamps_are_cut_at_the_users():
    data = make([[3, 1], [], [2]], 3, [[5, 6], [], [7]])
    assert [h.tolist() for h in data.histories] == [[3, 1], [], [2]]
    assert [t.tolist() for t in data.timestamps] == [[5, 6], [], [7]]
    assert data.users.tolist() == [0, 0, 2]
    assert (data.num_users, data.num_items, len(data)) == (3, 3, 3)


def test_columns_of_wrong_length_are_refused():
    good = make([[1, 2]], 2)
    with pytest.raises(ConfigError, match="times must have one value per event"):
        Interactions(
            name="x",
            items=good.items,
            user_ids=good.user_ids,
            offsets=good.offsets,
            events=good.events,
            times=np.zeros(1, np.int64),
        )


def test_an_item_number_outside_the_catalogue_is_refused():
    with pytest.raises(ConfigError, match="events must be item numbers"):
        make([[1, 4]], 3)
    with pytest.raises(ConfigError, match="events must be item numbers"):
        make([[0, 1]], 3)


def test_times_that_go_backwards_are_refused_within_a_user_only():
    make([[1], [2]], 2, [[9], [3]])
    with pytest.raises(ConfigError, match="times must not go backwards"):
        make([[1, 2]], 2, [[9, 3]])


def test_k_core_repeats_until_nothing_changes():
    # Item 4 has one event; without it user 2 has one left; without user 2, item 3 has one: so user 1 loses it too.
    data = make([[1, 2], [1, 2, 3], [3, 4]], 4)
    core = k_core(data, 2)
    assert [h.tolist() for h in core.histories] == [[1, 2], [1, 2]]
    assert core.user_ids == ("u0", "u1")


def test_k_core_numbers_items_densely_and_keeps_columns_with_their_events():
    core = k_core(make([[5, 2, 3], [2, 5]], 5), 2)
    assert [(item.number, item.id, item.title) for item in core.items] == [(1, "i2", "T2"), (2, "i5", "T5")]
    assert core.events.tolist() == [2, 1, 1, 2]
    assert core.ratings is not None
    assert core.ratings.tolist() == [0, 1, 3, 4]
    assert core.context["region"].tolist() == [0, 10, 30, 40]
    assert core.times.tolist() == [0, 1, 0, 1]


def test_k_core_agrees_with_removing_one_by_one():
    rng = np.random.default_rng(0)
    data = make([rng.choice(30, size=rng.integers(1, 9), replace=False).astype(int) + 1 for _ in range(60)], 30)
    pairs = {(int(u), int(i)) for u, i in zip(data.users, data.events, strict=True)}
    while True:  # the definition: remove any one user or item below k until there is none
        users = [u for u, _ in pairs]
        items = [i for _, i in pairs]
        low = [p for p in pairs if users.count(p[0]) < 5 or items.count(p[1]) < 5]
        if not low:
            break
        pairs.discard(low[0])
    core = k_core(data, 5)
    got = {(core.user_ids[u], core.items[i - 1].id) for u, i in zip(core.users, core.events, strict=True)}
    assert got == {(f"u{u}", f"i{i}") for u, i in pairs}
    assert len(got) > 50


def test_a_core_that_does_not_exist_is_empty():
    core = k_core(make([[1, 2], [2, 1]], 2), 3)
    assert (core.num_users, core.num_items, len(core), core.histories) == (0, 0, 0, ())


def test_k_below_one_is_refused():
    with pytest.raises(ConfigError, match="k must be at least 1, got k=0"):
        k_core(make([[1]], 1), 0)


def test_padding_keeps_the_last_events_and_counts_an_empty_history_as_one():
    items, lengths = pad_histories([np.array([1, 2, 3]), np.zeros(0, np.int64), np.array([4])], 2)
    assert items.tolist() == [[2, 3], [0, 0], [4, 0]]
    assert lengths.tolist() == [2, 1, 1]
