"""Stores filled from the built-in world and from files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Interactions, Item
from ownlet.simulations.population import make_population
from ownlet.simulations.progress import Step
from ownlet.simulations.readers import read, read_table
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.store import EventStore
from ownlet.simulations.store_build import StoreReport, write_population_store, write_table_store
from ownlet.simulations.world import PopulationConfig, make_world

WORLD = make_world(PopulationConfig(num_items=120))
ITEMS = tuple(Item(number=n, id=f"i{n}") for n in range(1, 41))


FEW = {"v": ["other"], "w": ["i1", "other"], "x": ["i2", "i1"], "y": [f"i{n}" for n in range(1, 11)]}


class Watcher:
    """Notes what it is told of; raises at the end of a stage if asked to."""

    def __init__(self, fail_in: str = "") -> None:
        self.stages: dict[str, tuple[int, float, str]] = {}
        self._fail_in = fail_in

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Step]:
        done, last = 0.0, ""

        def step(note: str, share: float = 1.0, /) -> None:
            nonlocal done, last
            done, last = done + share, note
            if self._fail_in == name:
                raise KeyboardInterrupt

        yield step
        self.stages[name] = (total, done, last)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The built-in world.


def test_users_of_the_world_are_those_of_the_population_in_memory(tmp_path: Path):
    watcher = Watcher()
    report = write_population_store(
        tmp_path / "s", WORLD.items, num_users=1300, num_items=120, first_user=1000, progress=watcher
    )
    store = EventStore.open(tmp_path / "s")
    whole = make_population(num_users=2300, num_items=120).interactions
    assert [store.history(u).tolist() for u in range(1300)] == [h.tolist() for h in whole.histories[1000:]]
    assert (store.name, store.items) == (whole.name, whole.items)
    assert report == StoreReport(num_users=1300, num_events=len(store.events), unknown_events=0)
    assert watcher.stages == {"users": (1300, 1300, f"1,300 users, {len(store.events):,} events")}


def test_by_default_no_user_is_drawn_that_a_base_may_have_seen(tmp_path: Path):
    seen = DataConfig(num_items=120).num_users
    write_population_store(tmp_path / "s", WORLD.items, num_users=2, num_items=120)
    whole = make_population(num_users=seen + 2, num_items=120).interactions
    store = EventStore.open(tmp_path / "s")
    assert [store.history(u).tolist() for u in range(2)] == [h.tolist() for h in whole.histories[seen:]]


def test_items_that_the_base_does_not_know_are_dropped_and_the_others_have_its_numbers(tmp_path: Path):
    known = [item for item in reversed(WORLD.items) if item.number % 10]  # 108 of 120, in another order
    catalogue = tuple(replace(item, number=n) for n, item in enumerate(known, start=1))
    report = write_population_store(tmp_path / "s", catalogue, num_users=20, num_items=120, first_user=0)
    store = EventStore.open(tmp_path / "s")
    whole = make_population(num_users=20, num_items=120).interactions
    for user, history in enumerate(whole.histories):
        ids = [catalogue[number - 1].id for number in store.history(user)]
        assert ids == [f"item-{number}" for number in history if number % 10]
    dropped = int((whole.events % 10 == 0).sum())
    assert report == StoreReport(num_users=20, num_events=len(whole) - dropped, unknown_events=dropped)
    assert dropped > 0


def test_the_catalogue_of_another_world_is_refused(tmp_path: Path):
    for wrong in ({"num_items": 120, "seed": 1}, {"num_items": 240}):
        with pytest.raises(ConfigError, match="catalogue must be of the built-in population with num_items="):
            write_population_store(tmp_path / "s", WORLD.items, num_users=1, **wrong)
    with pytest.raises(ConfigError, match="catalogue must have items of the built-in population"):
        write_population_store(tmp_path / "s", ITEMS, num_users=1)
    with pytest.raises(ConfigError, match="catalogue must have items, got"):
        write_population_store(tmp_path / "s", (), num_users=1)
    with pytest.raises(ConfigError, match="ids that differ from each other"):
        write_population_store(tmp_path / "s", (ITEMS[0], replace(ITEMS[0], number=2)), num_users=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("first_user", [-1000, 1, 1500])
def test_a_first_user_inside_a_block_is_refused(tmp_path: Path, first_user: int):
    with pytest.raises(ConfigError, match=f"first_user must be a multiple of 1000, got first_user={first_user}"):
        write_population_store(tmp_path / "s", WORLD.items, num_users=1, num_items=120, first_user=first_user)


def test_a_stopped_build_leaves_nothing_and_can_be_repeated(tmp_path: Path):
    arguments = {"num_users": 10, "num_items": 120}
    with pytest.raises(KeyboardInterrupt):
        write_population_store(tmp_path / "s", WORLD.items, **arguments, progress=Watcher(fail_in="users"))
    assert names(tmp_path) == []
    write_population_store(tmp_path / "s", WORLD.items, **arguments)
    with pytest.raises(DataError, match="must not exist yet"):
        write_population_store(tmp_path / "s", WORLD.items, **arguments)
    write_population_store(tmp_path / "s", WORLD.items, **(arguments | {"num_users": 11}), overwrite=True)
    assert EventStore.open(tmp_path / "s").num_users == 11


# Files.


def random_rows(seed: int = 0, users: int = 50, rows: int = 1000) -> pl.DataFrame:
    """Events in no order, many of them in the same second; some items are unknown, and some users have few others."""
    rng = np.random.default_rng(seed)
    few = [(user, item, 7, 1.0) for user, items in FEW.items() for item in items]
    many = pl.DataFrame(
        {
            "user": [f"u{number}" for number in (users * rng.random(rows) ** 3).astype(int)],
            "item": [f"i{number}" for number in rng.integers(1, 46, rows)],
            "timestamp": rng.integers(0, 20, rows),
            "rating": rng.integers(1, 6, rows).astype(float),
        }
    )
    return pl.concat([pl.DataFrame(few, schema=many.schema, orient="row"), many])


def expected(data: Interactions, catalogue: tuple[Item, ...] = ITEMS, min_events: int = 2) -> list[list[int]]:
    """Return the histories that a store must hold, from what the reader in memory gives."""
    number = {item.id: item.number for item in catalogue}
    histories = []
    for _, history in sorted(zip(data.user_ids, data.histories, strict=True), key=lambda pair: pair[0]):
        known = [number[data.items[item - 1].id] for item in history if data.items[item - 1].id in number]
        if len(known) >= min_events:
            histories.append(known)
    return histories


def histories(folder: Path) -> list[list[int]]:
    store = EventStore.open(folder)
    return [store.history(user).tolist() for user in range(store.num_users)]


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "u.data", "ratings.dat", "ratings.csv"])
@pytest.mark.parametrize("memory_bytes", [1, 5_000, 1 << 29])
def test_a_file_gives_what_the_reader_in_memory_gives(tmp_path: Path, name: str, memory_bytes: int):
    frame, path = random_rows(), tmp_path / name
    movielens = frame.select("user", "item", "rating", "timestamp")
    if name == "log.parquet":
        frame.write_parquet(path)
    elif name == "log.csv":
        frame.write_csv(path)
    elif name == "ratings.csv":
        movielens.rename({"user": "userId", "item": "movieId"}).write_csv(path)
    else:
        separator = "\t" if name == "u.data" else "::"
        path.write_text("".join(separator.join(map(str, row)) + "\n" for row in movielens.rows()))
    report = write_table_store(tmp_path / "s", ITEMS, path, memory_bytes=memory_bytes)
    data = read(path)
    assert histories(tmp_path / "s") == expected(data)
    store = EventStore.open(tmp_path / "s")
    assert (store.name, store.items) == (data.name, ITEMS)
    unknown = sum(data.items[item - 1].id not in {i.id for i in ITEMS} for item in data.events)
    assert unknown > 0
    assert report == StoreReport(
        num_users=store.num_users,
        num_events=len(store.events),
        unknown_events=unknown,
        short_users=2,
    )
    assert data.num_users == store.num_users + 2
    assert names(tmp_path / "s") == ["events.npy", "offsets.npy", "store.json"]


def test_events_of_one_second_stay_in_the_order_of_a_long_file(tmp_path: Path):
    rng = np.random.default_rng(1)
    rows = 400_000  # more than polars reads at a time
    frame = pl.DataFrame(
        {
            "user": pl.Series(rng.integers(300, size=rows)).cast(pl.String),
            "item": pl.Series(rng.integers(1, 41, rows)).cast(pl.String),
            "timestamp": rng.integers(0, 3, rows),
        }
    ).with_columns(item="i" + pl.col("item"))
    frame.write_csv(tmp_path / "log.csv")
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=10_000)
    wanted = expected(read(tmp_path / "log.parquet"))
    for name in ("log.csv", "log.parquet"):
        write_table_store(tmp_path / f"{name}-store", ITEMS, tmp_path / name, memory_bytes=4_000_000)
        assert histories(tmp_path / f"{name}-store") == wanted


@pytest.mark.parametrize("min_events", [0, 1, 2, 10])
def test_users_with_too_few_events_of_known_items_are_dropped(tmp_path: Path, min_events: int):
    random_rows().write_csv(tmp_path / "log.csv")
    write_table_store(tmp_path / "s", ITEMS, tmp_path / "log.csv", min_events=min_events, memory_bytes=100)
    found = histories(tmp_path / "s")
    assert found == expected(read(tmp_path / "log.csv"), min_events=min_events)
    assert min(map(len, found)) == min_events


def test_users_who_are_to_be_left_out_are(tmp_path: Path):
    random_rows().write_csv(tmp_path / "log.csv")
    whole = write_table_store(tmp_path / "whole", ITEMS, tmp_path / "log.csv")
    data = read(tmp_path / "log.csv")
    first = min(data.user_ids)
    report = write_table_store(tmp_path / "s", ITEMS, tmp_path / "log.csv", without={first, "nobody"})
    assert (report.known_users, report.num_users) == (1, whole.num_users - 1)
    assert histories(tmp_path / "s") == histories(tmp_path / "whole")[1:]


def test_columns_have_other_names_and_quotes_and_line_breaks(tmp_path: Path):
    path = tmp_path / "shop [1].csv"
    rows = random_rows(users=9, rows=60).rows()
    lines = "".join(f'{t},{i},"a, ""b""\nc","{u}"\n' for u, i, t, _ in rows)
    path.write_text("when,what,note,who\n" + lines)
    columns = (("user", "who"), ("item", "what"), ("timestamp", "when"), ("note", "note"))
    write_table_store(tmp_path / "s", ITEMS, path, columns=columns)
    data = read_table(path, user="who", item="what", timestamp="when")
    assert histories(tmp_path / "s") == expected(data)
    assert len(data) == 60 + sum(map(len, FEW.values()))
    assert EventStore.open(tmp_path / "s").name == "shop [1]"


def test_progress_counts_events_and_users(tmp_path: Path):
    random_rows().write_csv(tmp_path / "log.csv")
    watcher = Watcher()
    report = write_table_store(tmp_path / "s", ITEMS, tmp_path / "log.csv", memory_bytes=5_000, progress=watcher)
    users, events = report.num_users, report.num_events
    assert watcher.stages == {
        "reading log.csv": (1, 1, f"{events:,} events of {users:,} users"),
        "dealing out events": (events, events, f"{events:,} events"),
        "users": (users, users, f"{users:,} users"),
    }


@pytest.mark.parametrize("stage", ["reading log.csv", "dealing out events", "users"])
def test_a_stopped_build_of_a_file_leaves_nothing_and_can_be_repeated(tmp_path: Path, stage: str):
    random_rows().write_csv(tmp_path / "log.csv")
    with pytest.raises(KeyboardInterrupt):
        write_table_store(tmp_path / "s", ITEMS, tmp_path / "log.csv", progress=Watcher(fail_in=stage))
    assert names(tmp_path) == ["log.csv"]
    write_table_store(tmp_path / "s", ITEMS, tmp_path / "log.csv")
    assert histories(tmp_path / "s") == expected(read(tmp_path / "log.csv"))


GOOD = "user,item,timestamp\n" + "a,i1,1\n" * 3


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "file must not be empty"),
        ("user,item,timestamp\n", "file must hold at least one interaction"),
        (
            "user,thing,timestamp\na,i1,1\n",
            r"columns must be in the file, got no \['item'\] .* it has \['user', 'thing'",
        ),
        (GOOD + "a,i1,soon\n", r"log\.csv:5: timestamp must be whole unix seconds"),
        (GOOD + ",i1,1\n", r"log\.csv:5: user must not be empty"),
        (GOOD + "a,i1\n", r"log\.csv:5: line must have 3 fields, got 2"),
        (GOOD + "a,other,1,2\n", r"log\.csv:5: line must have 3 fields, got 4"),
        (GOOD + '"a",i1,1,2\n', r"log\.csv:5: line must have 3 fields, got 4"),
        (GOOD + "a,\udcff,1\n", r"log\.csv:5: line must be UTF-8, got byte 0xff"),
        (GOOD.replace("i1", "other"), "got none of 1 in .*; 3 events are of other items"),
        ("user,item,timestamp\na,i1,1\n", "data must keep users with at least 2 events of items that the base knows"),
    ],
)
def test_a_bad_file_is_one_clear_error_and_leaves_nothing(tmp_path: Path, text: str, reason: str):
    (tmp_path / "log.csv").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=reason):
        write_table_store(tmp_path / "s", ITEMS, tmp_path / "log.csv")
    assert names(tmp_path) == ["log.csv"]


def test_a_bad_parquet_file_is_one_clear_error(tmp_path: Path):
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame({"user": ["a", "b", None], "item": ["i1", "i2", "i3"], "timestamp": [1, 2, 3]})
    frame.write_parquet(path)
    with pytest.raises(DataError, match=r"log\.parquet: row 2: user and item must not be empty, .* 'item': 'i3'"):
        write_table_store(tmp_path / "s", ITEMS, path)
    content = path.read_bytes()
    for damaged in (b"", b"not parquet at all", b"x" * 200 + content[200:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"Parquet file must be readable|columns must be in the file"):
            write_table_store(tmp_path / "s", ITEMS, path)


def test_wrong_settings_are_refused(tmp_path: Path):
    path = tmp_path / "log.csv"
    path.write_text(GOOD)
    with pytest.raises(DataError, match="data must be a file that exists"):
        write_table_store(tmp_path / "s", ITEMS, tmp_path / "nothing.csv")
    for wrong in ({"min_events": -1}, {"memory_bytes": 0}, {"columns": [("user", "user")]}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must"):
            write_table_store(tmp_path / "s", ITEMS, path, **wrong)
    (tmp_path / "s").mkdir()
    with pytest.raises(DataError, match="store folder must not exist yet"):
        write_table_store(tmp_path / "s", ITEMS, path)
