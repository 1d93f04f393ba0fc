"""The timeline beside a plain sorted list of what was recorded, and a count of the rows that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ownlet.device.event import Events
from ownlet.device.history import EventHistory, Retention
from ownlet.device.timeline import Timeline
from ownlet.shared.errors import ConfigError, DataError

NUM_ITEMS = 20
NUMBERS = {f"item-{number}": number for number in range(1, NUM_ITEMS + 1)}


class CountingHistory(EventHistory):
    """A history that counts the rows it hands out and the SQL statements it runs."""

    rows, statements = 0, 0

    def events_after(self, sequence: int) -> Events:
        events = super().events_after(sequence)
        self.rows += len(events)
        return events

    def count_statements(self) -> None:
        def count(_: str) -> None:
            self.statements += 1

        self._database.set_trace_callback(count)


@pytest.fixture
def history(tmp_path: Path) -> Iterator[CountingHistory]:
    history = CountingHistory(tmp_path / "history.sqlite")
    yield history
    history.close()


def expected(history: EventHistory) -> list[int]:
    return [NUMBERS[item] for item in history.items() if item in NUMBERS]


def test_known_events_come_in_order_of_time_then_recording(history: EventHistory) -> None:
    history.record_many([("item-3", 3.0), ("item-1", 1.0), ("unknown", 2.0), ("item-4", 3.0), ("item-2", 3.0)])
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    assert timeline.numbers().dtype == np.int64
    assert timeline.numbers().tolist() == [1, 3, 4, 2]
    assert timeline.timestamps().tolist() == [1.0, 3.0, 3.0, 3.0]
    assert timeline.sequences().tolist() == [2, 1, 4, 5]
    known = timeline.snapshot()
    assert [column.tolist() for column in (known.numbers, known.sequences)] == [[1, 3, 4, 2], [2, 1, 4, 5]]
    assert known.moments.timestamps.tolist() == [1.0, 3.0, 3.0, 3.0]
    assert known.context is None
    assert np.flatnonzero(timeline.seen()).tolist() == [1, 2, 3, 4]
    assert len(timeline) == 4


@pytest.mark.parametrize("count, recent", [(0, []), (1, [2]), (2, [1, 2]), (9, [1, 2])])
def test_recent_gives_the_newest_last(history: EventHistory, count: int, recent: list[int]) -> None:
    history.record_many([("item-1", 1.0), ("item-2", 2.0)])
    assert Timeline(history, NUMBERS, NUM_ITEMS).recent(count).tolist() == recent


def test_a_negative_count_is_refused(history: EventHistory) -> None:
    with pytest.raises(ConfigError, match="count must not be negative"):
        Timeline(history, NUMBERS, NUM_ITEMS).recent(-1)


def test_an_empty_history_has_an_empty_timeline(history: EventHistory) -> None:
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    assert (len(timeline), timeline.refresh(), timeline.recent(5).tolist()) == (0, False, [])
    assert timeline.seen().tolist() == [False] * (NUM_ITEMS + 1)


def test_callers_cannot_change_what_the_timeline_keeps(history: EventHistory) -> None:
    history.record("item-1", 1.0)
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    timeline.seen()[:] = True
    timeline.recent(1)[:] = 9
    timeline.numbers()[:] = 9
    assert np.flatnonzero(timeline.seen()).tolist() == [1]
    assert timeline.numbers().tolist() == timeline.recent(1).tolist() == [1]


def test_a_new_catalogue_shows_events_that_the_old_one_did_not_know(history: EventHistory) -> None:
    history.record_many([("item-1", 1.0), ("new", 2.0)])
    assert Timeline(history, NUMBERS, NUM_ITEMS).numbers().tolist() == [1]
    assert Timeline(history, {**NUMBERS, "new": 21}, 21).numbers().tolist() == [1, 21]


@pytest.mark.parametrize("wrong", [-1, NUM_ITEMS + 1])
def test_an_item_number_out_of_range_is_refused(history: EventHistory, wrong: int) -> None:
    history.record("item-1", 1.0)
    with pytest.raises(ConfigError, match=f"from 1 to 20, got number={wrong}"):
        Timeline(history, {"item-1": wrong}, NUM_ITEMS)


def test_a_refresh_reads_new_rows_only(history: CountingHistory) -> None:
    history.record_many([(f"item-{k % NUM_ITEMS + 1}", float(k)) for k in range(1000)])
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    assert history.rows == 1000
    assert not timeline.refresh()
    history.record("item-1", 2000.0)
    history.record("unknown", 2001.0)
    history.record("item-2", 0.5)  # a clock that went back
    assert timeline.refresh()
    assert history.rows == 1003
    assert timeline.numbers().tolist() == expected(history)


def test_a_refresh_without_news_is_one_statement_at_any_size(history: CountingHistory) -> None:
    history.record_many([("item-1", float(k)) for k in range(500)])
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    history.count_statements()
    for _ in range(3):
        assert not timeline.refresh()
    assert (history.statements, history.rows) == (3, 500)


def test_unknown_events_are_read_once(history: CountingHistory) -> None:
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    history.record("unknown", 1.0)
    assert (timeline.refresh(), timeline.refresh(), history.rows) == (True, False, 1)


def test_another_connection_is_noticed_when_it_records_and_when_it_forgets(
    history: EventHistory, tmp_path: Path
) -> None:
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    other = EventHistory(tmp_path / "history.sqlite")
    other.record_many([("item-5", 1.0), ("item-6", 2.0)])
    assert timeline.refresh()
    assert timeline.numbers().tolist() == [5, 6]
    other.forget(item="item-6")
    assert timeline.refresh()
    assert (timeline.numbers().tolist(), np.flatnonzero(timeline.seen()).tolist()) == ([5], [5])
    other.close()


def test_forgetting_all_and_recording_again_leaves_nothing_of_the_old_events(history: EventHistory) -> None:
    history.record("item-1", 1.0)
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    history.forget(everything=True)
    history.record("item-2", 1.0)
    assert timeline.refresh()
    assert timeline.numbers().tolist() == [2]


def test_a_timeline_stays_as_it_was_when_the_history_cannot_be_read(history: EventHistory) -> None:
    history.record("item-1", 1.0)
    timeline = Timeline(history, NUMBERS, NUM_ITEMS)
    history.close()
    with pytest.raises(DataError, match="history must be"):
        timeline.refresh()
    assert timeline.numbers().tolist() == [1]


def test_any_mixture_of_changes_gives_what_reading_all_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "history.sqlite"
    histories = [EventHistory(path, retention=Retention(max_events=300)) for _ in range(2)]
    timeline = Timeline(histories[0], NUMBERS, NUM_ITEMS)
    for _ in range(200):
        history = histories[rng.integers(2)]
        action = rng.random()
        if action < 0.9:
            size = int(rng.integers(1, 12))
            items = [f"item-{number}" for number in rng.integers(1, NUM_ITEMS + 4, size)]  # the last three are unknown
            history.record_many(list(zip(items, rng.integers(0, 50, size).tolist(), strict=True)))  # many equal times
        elif action < 0.95:
            history.forget(item=f"item-{rng.integers(1, NUM_ITEMS + 4)}")
        else:
            history.forget(before=float(rng.integers(0, 20)))
        timeline.refresh()
        numbers = expected(histories[1])
        assert timeline.numbers().tolist() == numbers
        assert set(np.flatnonzero(timeline.seen()).tolist()) == set(numbers)
        assert timeline.generation == history.generation
        order = list(zip(timeline.timestamps().tolist(), timeline.sequences().tolist(), strict=True))
        assert order == sorted(order)
    for history in histories:
        history.close()
