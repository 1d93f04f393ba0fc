"""Fill an ``EventStore`` folder with a population that need not fit into memory, for the catalogue of a base.

Two sources: the built-in synthetic world, drawn block by block, and a file of interactions. A file is read twice (CSV
once more before, to see whether it has quotes): to count every user's events, and to deal the events out to files of
neighbouring users small enough to be sorted in memory, one after the other (Knuth, The Art of Computer Programming,
volume 3, section 5.4: external sorting). Memory grows with the number of users, by some 150 bytes each, but not with
the number of events.

Events are matched to the catalogue by item id; events of items that the base does not know are dropped and counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ownlet.shared.errors import ConfigError, DataError, require
from ownlet.shared.interactions import Item
from ownlet.simulations.population import draw_blocks
from ownlet.simulations.progress import Progress, Silent, Step
from ownlet.simulations.scan import Source, explain, find_source, reading, scan
from ownlet.simulations.store import StoreWriter
from ownlet.simulations.world import PopulationConfig, World, make_world

__all__ = ["StoreReport", "write_population_store", "write_table_store"]

_EVENT = np.dtype([("user", "<u4"), ("item", "<i4"), ("time", "<i8")])
_SORT_BYTES = 64  # of memory per event: the event, its place in the order and what sorting needs
_CHUNK_EVENTS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What went into a store, and what did not.

    Args:
        num_users: in the store.
        num_events: in the store.
        unknown_events: dropped because the base does not know their items.
        short_users: dropped because too few events were left of them.
        known_users: left out, as they were asked to be.
    """

    num_users: int
    num_events: int
    unknown_events: int
    short_users: int = 0
    known_users: int = 0


def write_population_store(
    folder: Path,
    catalogue: Sequence[Item],
    *,
    num_users: int,
    num_items: int = PopulationConfig.num_items,
    seed: int = PopulationConfig.seed,
    first_user: int = PopulationConfig.num_users,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> StoreReport:
    """Write users of the built-in population.

    Args:
        folder: where the store is to be.
        catalogue: of the base.
        num_users: how many.
        num_items: of the population that the base was trained on.
        seed: of the population that the base was trained on.
        first_user: a multiple of 1,000; by default the first one that no base has seen.
        overwrite: replace a store of that name.
        progress: told of users.

    Returns:
        What was written; users are in their order, and every one is there.

    Raises:
        ConfigError: a number breaks its rule, or the catalogue is of another population.
        DataError: the folder exists.
    """
    world = make_world(PopulationConfig(num_users=num_users, num_items=num_items, seed=seed))
    blocks = draw_blocks(world, first_user=first_user)
    numbers = _numbers(world, catalogue)
    num_events = unknown = done = 0
    writer = StoreWriter(folder, name=f"synthetic-{seed}", items=catalogue, overwrite=overwrite)
    with writer, (progress or Silent()).stage("users", num_users) as step:
        for block in blocks:
            items = numbers[block.events]  # (users, max_events), 0 behind the last event too
            known = items > 0
            writer.append(items[known], known.sum(axis=1))
            num_events += int(known.sum())
            unknown += int(block.lengths.sum() - known.sum())
            done += len(items)
            step(f"{done:,} users, {num_events:,} events", len(items))
    return StoreReport(num_users=num_users, num_events=num_events, unknown_events=unknown)


def write_table_store(
    folder: Path,
    catalogue: Sequence[Item],
    path: Path,
    *,
    columns: Sequence[tuple[str, str]] = (),
    min_events: int = 2,
    without: Collection[str] = (),
    memory_bytes: int = 1 << 29,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> StoreReport:
    """Write the users of a file of interactions.

    Args:
        folder: where the store is to be; while it is written, its disk needs 16 bytes more per event.
        catalogue: of the base.
        path: whatever ``ownlet.simulations.readers.read`` takes.
        columns: as ``read`` takes them.
        min_events: users with fewer events, of items that the base knows, are dropped.
        without: ids of users who are left out: those whom the base has learned from.
        memory_bytes: that sorting may take; a user with more events than fit takes more. Never changes the result.
        overwrite: replace a store of that name.
        progress: told of events and users.

    Returns:
        What was written; users are in the order of their ids, and events of one second in the order of the file.

    Raises:
        ConfigError: a number breaks its rule, or columns are mapped wrongly.
        DataError: the file cannot be read or has a bad line, nobody is left, or the folder exists.
    """
    require(min_events >= 0, "min_events must not be negative", min_events=min_events)
    require(memory_bytes >= 1, "memory_bytes must be positive", memory_bytes=memory_bytes)
    source = find_source(path, columns)
    rows = _numbered_rows(source, catalogue)
    show = progress or Silent()
    with StoreWriter(folder, name=source.name, items=catalogue, overwrite=overwrite) as writer:
        with show.stage(f"reading {source.path.name}", 1) as step:
            found, unknown = _count_events(source, rows)
            counts = found.filter(~pl.col("user").is_in(list(without)))
            users = _number_users(counts, min_events, most_events=max(1, memory_bytes // _SORT_BYTES))
            if not len(users):
                raise DataError(
                    f"data must keep users with at least {min_events} events of items that the base knows, got none of "
                    f"{len(counts):,} in {source.path}; {unknown:,} events are of other items"
                )
            num_events = int(users["events"].sum())
            step(f"{num_events:,} events of {len(users):,} users")
        with show.stage("dealing out events", num_events) as step:
            _deal_out(source, rows, users, writer.scratch, step)
        with show.stage("users", len(users)) as step:
            _write_users(writer, users, step)
    short = len(counts) - len(users)
    return StoreReport(
        num_users=len(users),
        num_events=num_events,
        unknown_events=unknown,
        short_users=short,
        known_users=len(found) - len(counts),
    )


def _numbers(world: World, catalogue: Sequence[Item]) -> NDArray[np.int32]:
    """Return the catalogue's number of every item of the world, 0 where it has none: (num_items + 1,)."""
    ids = _ids(catalogue)
    numbers = np.zeros(len(world.items) + 1, np.int32)
    for item in world.items:
        numbers[item.number] = ids.get(item.id, 0)
        if item.id in ids and catalogue[ids[item.id] - 1].title != item.title:
            config = world.config
            raise ConfigError(
                f"catalogue must be of the built-in population with num_items={config.num_items} and seed={config.seed}"
                f", got another title for {item.id}"
            )
    require(bool(numbers.any()), "catalogue must have items of the built-in population", first=catalogue[0])
    return numbers


def _ids(catalogue: Sequence[Item]) -> dict[str, int]:
    ids = {item.id: number for number, item in enumerate(catalogue, start=1)}
    require(len(ids) > 0, "catalogue must have items", items=0)
    require(len(ids) == len(catalogue), "items must have ids that differ from each other", distinct=len(ids))
    return ids


def _numbered_rows(source: Source, catalogue: Sequence[Item]) -> pl.LazyFrame:
    """Add the catalogue's ``number`` of each row's item, null where it has none."""
    known = pl.Enum(list(_ids(catalogue)))
    number = pl.col("item").cast(known, strict=False).to_physical().cast(pl.Int32) + 1
    with reading(source):
        return scan(source).with_columns(number=number)


def _count_events(source: Source, rows: pl.LazyFrame) -> tuple[pl.DataFrame, int]:
    """Check all rows; return ``user`` and ``events`` of items that are known, and how many are of other items."""
    good, known = pl.col("good"), pl.col("number").is_not_null()
    counted = rows.group_by("user").agg(
        rows=pl.len(), good=good.sum(), usable=(good & pl.col("count_ok")).sum(), events=known.sum().cast(pl.Int64)
    )
    with reading(source):
        counts = counted.collect(engine="streaming")
    totals = {name: int(counts[name].sum()) for name in ("rows", "good", "usable", "events")}
    if not totals["rows"] or totals["usable"] < totals["rows"]:
        explain(source, rows=totals["rows"], good=totals["good"])
    return counts.select("user", "events"), totals["rows"] - totals["events"]


def _number_users(counts: pl.DataFrame, min_events: int, *, most_events: int) -> pl.DataFrame:
    """Give the users that are kept numbers by their sorted ids, and put neighbours into parts.

    Returns:
        ``user``, ``events``, ``number`` from 0 and ``part`` from 0; a part has at most ``most_events`` events and those
        of its last user.
    """
    return (
        counts.filter(pl.col("events") >= min_events)
        .sort("user")
        .with_row_index("number")
        .with_columns(part=(pl.col("events").cum_sum() - pl.col("events")) // most_events)
    )


def _deal_out(source: Source, rows: pl.LazyFrame, users: pl.DataFrame, folder: Path, step: Step) -> None:
    """Append every event to the file of its user's part, in the order of the source."""
    known = rows.filter(pl.col("number").is_not_null()).select("user", "timestamp", item="number")
    numbered = known.join(
        users.lazy().select("user", "number", "part"), on="user", how="inner", maintain_order="left"
    ).drop("user")
    done = 0
    with reading(source):
        for batch in numbered.collect_batches(chunk_size=_CHUNK_EVENTS, maintain_order=True, engine="streaming"):
            for (part,), found in batch.partition_by("part", as_dict=True).items():
                events = np.empty(len(found), _EVENT)
                events["user"], events["item"], events["time"] = found["number"], found["item"], found["timestamp"]
                with (folder / f"{part}").open("ab") as file:
                    events.tofile(file)
            done += len(batch)
            step(f"{done:,} events", len(batch))


def _write_users(writer: StoreWriter, users: pl.DataFrame, step: Step) -> None:
    """Sort part after part by user and time and append it."""
    done = 0
    for (part,), members in users.partition_by("part", as_dict=True).items():
        writer.append(_sorted_items(writer.scratch / f"{part}"), members["events"].to_numpy())
        done += len(members)
        step(f"{done:,} users", len(members))


def _sorted_items(path: Path) -> NDArray[np.int32]:
    """Return the items of a part's file by (user, time, order in the file), and remove the file."""
    if not path.exists():
        return np.zeros(0, np.int32)  # users without events
    events = np.fromfile(path, _EVENT)
    path.unlink()
    items: NDArray[np.int32] = events["item"][np.lexsort((events["time"], events["user"]))]  # lexsort is stable
    return items
