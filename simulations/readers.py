"""Read interactions into memory: the MovieLens family, CSV or Parquet with a column mapping, and sequences.

How a file is scanned and checked stands in ``simulations/scan.py``; here its rows become ``Interactions``.

Ids stay text. Users and items are numbered in the order of their first appearance in the file. Repeated (user, item)
pairs are all kept. Timestamps are whole unix seconds, in files of sequences positions. Blank lines are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ownlet.shared.interactions import Interactions, Item
from ownlet.simulations.catalogue import read_catalogue
from ownlet.simulations.scan import (
    Source,
    TableColumns,
    explain,
    find_source,
    movielens_source,
    reading,
    scan,
    table_source,
)

__all__ = ["read", "read_movielens", "read_table"]


def read(path: str | Path, columns: Sequence[tuple[str, str]] = ()) -> Interactions:
    """Read a data set, finding out which kind it is.

    Args:
        path: a folder or file of the MovieLens family, a CSV or Parquet file with columns ``user``, ``item``,
            ``timestamp`` and optionally ``rating``, or a ``.txt`` file with a line ``user item item ...`` per user, in
            time order (``simulations/sequences.py``), or a folder with exactly one such file.
        columns: for CSV or Parquet with other names, pairs such as ``("user", "customer_id")``: ``user``, ``item`` and
            ``timestamp``, optionally ``rating``; any other role keeps that column as context.

    Returns:
        All interactions, unfiltered.

    Raises:
        ConfigError: a role is not mapped, or one column is mapped twice.
        DataError: nothing there that can be read, or a bad line.
    """
    return _read(find_source(Path(path), columns))


def read_movielens(path: str | Path) -> Interactions:
    """Read a data set of the MovieLens family.

    Args:
        path: a folder with, or the path of, ``u.data`` (tabs), ``ratings.dat`` (``::``) or ``ratings.csv`` (header
            userId, movieId, rating, timestamp). Titles and genres come from ``u.item``, ``movies.dat`` or
            ``movies.csv`` beside it, where there is one.

    Returns:
        All interactions, with ratings, unfiltered; the catalogue holds the items that occur.

    Raises:
        DataError: no such file, an empty file, or a bad line (with file, line and reason).
    """
    return _read(movielens_source(Path(path)))


def read_table(
    path: str | Path,
    *,
    user: str,
    item: str,
    timestamp: str,
    rating: str | None = None,
    context: Sequence[str] = (),
) -> Interactions:
    """Read a CSV file with a header, or a Parquet file.

    Args:
        path: ends in ``.parquet``, or is CSV (commas, optional double quotes, UTF-8).
        user: the column of user ids.
        item: the column of item ids.
        timestamp: the column of times: whole unix seconds, or in Parquet also a date or datetime (UTC unless it has a
            zone).
        rating: the column of ratings, where there is one; then every row needs a finite one.
        context: further columns to keep: text in CSV, any type in Parquet.

    Returns:
        All interactions, unfiltered; items have no titles.

    Raises:
        ConfigError: one column is mapped twice.
        DataError: no such file, an empty file, a missing column, or a bad line or row.
    """
    columns = TableColumns(user=user, item=item, timestamp=timestamp, rating=rating, context=tuple(context))
    return _read(table_source(Path(path), columns))


def _read(source: Source) -> Interactions:
    with reading(source):
        frame = scan(source).collect()
    rows, good, usable = frame.select(
        rows=pl.len(), good=pl.col("good").sum(), usable=(pl.col("good") & pl.col("count_ok")).sum()
    ).row(0)
    if not rows or usable < rows:
        explain(source, rows=rows, good=good)
    catalogue = {} if source.titles is None else read_catalogue(source.titles)
    found = _interactions(source.name, frame, catalogue, context=source.columns.context)
    return replace(found, has_times=not source.is_sequences)


def _interactions(
    name: str, frame: pl.DataFrame, catalogue: Mapping[str, tuple[str, tuple[str, ...]]], *, context: Sequence[str]
) -> Interactions:
    """Give users and items numbers by first appearance and sort by (user, timestamp, order in the file)."""
    ids: dict[str, list[str]] = {}
    for column in ("user", "item"):
        known = frame.select(pl.col(column).unique(maintain_order=True)).with_row_index(f"{column}_number")
        ids[column] = known[column].to_list()
        frame = frame.join(known, on=column, how="left", maintain_order="left").drop(column)
    frame = frame.sort("user_number", "timestamp", maintain_order=True)
    counts = np.bincount(frame["user_number"].to_numpy(), minlength=len(ids["user"]))
    items = []
    for number, item_id in enumerate(ids["item"], start=1):
        title, genres = catalogue.get(item_id, ("", ()))
        items.append(Item(number=number, id=item_id, title=title, genres=genres))
    return Interactions(
        name=name,
        items=tuple(items),
        user_ids=tuple(ids["user"]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        events=frame["item_number"].to_numpy().astype(np.int64) + 1,
        times=frame["timestamp"].to_numpy().astype(np.int64),
        ratings=frame["rating"].to_numpy().astype(np.float32) if "rating" in frame.columns else None,
        context={column: _array(frame[f"context:{column}"]) for column in context},
    )


def _array(column: pl.Series) -> Any:
    """Return a context column as NumPy; text as fixed-width strings, missing text as ''."""
    return np.array(column.fill_null("").to_list(), dtype=str) if column.dtype == pl.String else column.to_numpy()
