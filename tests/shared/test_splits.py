"""Leave-one-out, the time split, and public against device users."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import Interactions, Item
from ownlet.shared.splits import global_time_split, leave_one_out, public_device_split, seconds_of, session_split

DAY = 86_400


def make(lengths: list[int], first_days: list[int]) -> Interactions:
    """One event per day from each user's first day on; user u's items count down from 10."""
    return Interactions(
        name="made",
        items=tuple(Item(number=i, id=f"i{i}") for i in range(1, 11)),
        user_ids=tuple(f"u{u}" for u in range(len(lengths))),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        events=np.concatenate([np.zeros(0, np.int64), *[10 - np.arange(n) for n in lengths]]),
        times=np.concatenate(
            [np.zeros(0, np.int64), *[(d + np.arange(n)) * DAY for d, n in zip(first_days, lengths, strict=True)]]
        ),
    )


def test_leave_one_out_takes_the_last_two_events_of_users_with_three_or_more():
    split = leave_one_out(make([4, 2, 3, 0, 1], [0, 0, 5, 0, 0]))
    assert [t.tolist() for t in split.train] == [[10, 9], [10, 9], [10], [], [10]]
    assert split.validation.tolist() == [8, 0, 9, 0, 0]
    assert split.test.tolist() == [7, 0, 8, 0, 0]
    assert split.test_times.tolist() == [3 * DAY, 0, 7 * DAY, 0, 0]
    assert split.validation_times.tolist() == [2 * DAY, 0, 6 * DAY, 0, 0]
    assert split.evaluated.tolist() == [0, 2]
    assert split.test_history(0).tolist() == [10, 9, 8]
    assert split.test_history(1).tolist() == [10, 9]


def test_leave_one_out_of_nobody_is_empty():
    split = leave_one_out(make([], []))
    assert split.train == ()
    assert len(split.evaluated) == 0


def test_the_time_split_puts_an_event_at_the_moment_into_the_test_part():
    split = global_time_split(make([3, 2], [0, 9]), "1970-01-02")
    assert split.at_seconds == DAY
    assert [h.tolist() for h in split.train] == [[10], []]
    assert [h.tolist() for h in split.test] == [[9, 8], [10, 9]]


def test_dates_are_utc_unless_they_name_a_zone():
    assert seconds_of("2013-06-01") == 1_370_044_800
    assert seconds_of("2013-06-01T02:00:00+02:00") == 1_370_044_800
    assert seconds_of(7) == 7
    with pytest.raises(ConfigError, match="date must be ISO such as 2013-06-01, got date='soon'"):
        seconds_of("soon")


@pytest.mark.parametrize("fraction, count", [(0.0, 0), (0.3, 30), (1.0, 100)])
def test_public_and_device_users_are_disjoint_and_all(fraction: float, count: int):
    split = public_device_split(make([3] * 100, [0] * 100), fraction=fraction, seed=1)
    assert len(split.public) == count
    assert sorted([*split.public.tolist(), *split.devices.tolist()]) == list(range(100))
    assert split.public.tolist() == sorted(split.public.tolist())


def test_the_public_draw_follows_from_the_seed():
    data = make([3] * 100, [0] * 100)
    first, again, other = (public_device_split(data, seed=s).public.tolist() for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_before_a_date_everything_is_public_and_late_events_of_public_users_are_nobodys():
    data = make([3, 2, 0, 2], [0, 8, 0, 1])
    split = public_device_split(data, date=2 * DAY)
    assert split.public.tolist() == [0, 3]
    assert split.devices.tolist() == [1]  # user 2 has no events
    assert [h.tolist() for h in split.public_histories(data)] == [[10, 9], [10]]


def test_without_a_date_the_whole_history_of_a_public_user_is_public():
    data = make([3, 2], [0, 8])
    split = public_device_split(data, fraction=1.0)
    assert [h.tolist() for h in split.public_histories(data)] == [[10, 9, 8], [10, 9]]


def test_a_fraction_above_one_is_refused():
    with pytest.raises(ConfigError, match="fraction must be in"):
        public_device_split(make([3], [0]), fraction=1.5)


def test_the_last_session_is_the_test():
    data = make([4, 3, 1, 0], [0, 0, 0, 0])
    data = replace(data, times=np.array([0, 10, 31, 51, 0, 20, 40, 7]))
    split = session_split(data, gap_seconds=20)  # a gap of 20 s is within a session, one of 21 s is not
    assert split.sessions.tolist() == [2, 1, 1, 0]
    assert [h.tolist() for h in split.train] == [[10, 9], [10, 9, 8], [10], []]
    assert [h.tolist() for h in split.test] == [[8, 7], [], [], []]


def test_every_event_is_in_one_part_of_a_session_split():
    data = make([5, 2], [0, 3])
    for gap in (0, DAY - 1, DAY, 10 * DAY):
        split = session_split(data, gap_seconds=gap)
        joined = [np.concatenate([a, b]).tolist() for a, b in zip(split.train, split.test, strict=True)]
        assert joined == [h.tolist() for h in data.histories]
    assert session_split(data, gap_seconds=DAY - 1).sessions.tolist() == [5, 2]


def test_sessions_need_times_and_a_gap():
    data = make([3], [0])
    with pytest.raises(ConfigError, match="gap_seconds must not be negative"):
        session_split(data, gap_seconds=-1)
    with pytest.raises(ConfigError, match="sessions need data with times, got data='made'"):
        session_split(replace(data, has_times=False), gap_seconds=60)
