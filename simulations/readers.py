"""Read interactions: the MovieLens family, and any CSV or Parquet file with a column mapping.

The fast path is vectorised (polars) and only notices that something is wrong; then ``simulations/diagnose.py`` reads
the file again line by line to say which line and why. So 25 million good rows are fast and one bad row is one exact
error.

Ids stay text. Users and items are numbered in the order of their first appearance in the file. Repeated (user, item)
pairs are all kept. Timestamps are whole unix seconds. Blank lines are ignored.

Formats: https://files.grouplens.org/datasets/movielens/ (the README of 100k, 1m and 25m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import Interactions, Item
from ownlet.simulations.catalogue import read_catalogue
from ownlet.simulations.diagnose import MAX_SECONDS, Layout, header_of, raise_first_bad_line

__all__ = ["read", "read_movielens", "read_table"]

_MOVIELENS_FIELDS = ("user", "item", "rating", "timestamp")
_MOVIELENS_HEADER = ("userId", "movieId", "rating", "timestamp")
_LAYOUTS = {
    "u.data": Layout(separator="\t", fields=_MOVIELENS_FIELDS),
    "ratings.dat": Layout(separator="::", fields=_MOVIELENS_FIELDS),
    "ratings.csv": Layout(separator=",", fields=_MOVIELENS_FIELDS, has_header=True),
}


@dataclass(frozen=True, kw_only=True)
class _Mapping:
    """Which column of a file is what."""

    user: str
    item: str
    timestamp: str
    rating: str | None = None
    context: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        named = (self.user, self.item, self.timestamp, *self.context)
        return named if self.rating is None else (*named, self.rating)


_MOVIELENS = _Mapping(user="user", item="item", timestamp="timestamp", rating="rating")


def read(path: str | Path) -> Interactions:
    """Read a data set, finding out which kind it is.

    Args:
        path: a folder or file of the MovieLens family, or a CSV or Parquet file with columns ``user``, ``item``,
            ``timestamp`` and optionally ``rating``.

    Returns:
        All interactions, unfiltered.

    Raises:
        DataError: nothing there that can be read, or a bad line.
    """
    path = Path(path)
    if path.is_dir() or path.name in _LAYOUTS:
        return read_movielens(path)
    _require_file(path)
    columns = _columns_of(path)
    if tuple(columns) == _MOVIELENS_HEADER:
        return read_movielens(path)
    rating = "rating" if "rating" in columns else None
    return read_table(path, user="user", item="item", timestamp="timestamp", rating=rating)


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
    path = _ratings_file(Path(path))
    layout = _LAYOUTS.get(path.name) or _LAYOUTS["ratings.csv"]
    if layout.has_header and tuple(header_of(path, layout)) != _MOVIELENS_HEADER:
        raise DataError(
            f"header must be {','.join(_MOVIELENS_HEADER)}, got {','.join(header_of(path, layout))} in {path}"
        )
    frame = _typed(_split_lines(path, layout), _MOVIELENS)
    _check(frame, path, layout, _MOVIELENS)
    return _interactions(path.parent.name, frame, read_catalogue(path.parent), context=())


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
    path = Path(path)
    mapping = _Mapping(user=user, item=item, timestamp=timestamp, rating=rating, context=tuple(context))
    require(len(set(mapping.columns)) == len(mapping.columns), "columns must differ", columns=mapping.columns)
    _require_file(path)
    present = _columns_of(path)
    missing = [name for name in mapping.columns if name not in present]
    if missing:
        raise DataError(f"columns must be in the file, got no {missing} in {path}; it has {present}")
    if path.suffix == ".parquet":
        frame = _typed(pl.read_parquet(path, columns=list(mapping.columns)), mapping)
        _check_parquet(frame, path, mapping)
    else:
        layout = Layout(separator=",", fields=tuple(present), has_header=True)
        frame = _typed(_split_lines(path, layout), mapping)
        _check(frame, path, layout, mapping)
    return _interactions(path.stem, frame, {}, context=mapping.context)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"data must be a file that exists, got {path}")


def _ratings_file(path: Path) -> Path:
    """Return the ratings file in a folder, or the file itself."""
    if path.is_dir():
        for name in _LAYOUTS:
            if (path / name).is_file():
                return path / name
        raise DataError(f"folder must hold one of {', '.join(_LAYOUTS)}, got none in {path}")
    _require_file(path)
    return path


def _columns_of(path: Path) -> list[str]:
    if path.suffix != ".parquet":
        return header_of(path, Layout(separator=",", fields=(), has_header=True))
    try:
        return list(pl.read_parquet_schema(path)) if path.stat().st_size else []
    except pl.exceptions.PolarsError as error:
        raise DataError(f"Parquet file must be readable, got {path}: {error}") from error


def _split_lines(path: Path, layout: Layout) -> pl.DataFrame:
    """Read a text file into text columns named by the layout, plus ``count_ok``: had the line the right field count."""
    width = len(layout.fields)
    try:
        lines = pl.read_lines(path)
        if layout.has_header:
            lines = lines.slice(1)
        quoted = layout.separator == "," and bool(lines["line"].str.contains('"', literal=True).any())
        if quoted:
            return _split_quoted(path, lines, width)
        fields = (
            pl.col("line").str.split_exact(layout.separator, width).struct.rename_fields([*layout.fields, "surplus"])
        )
        return (
            lines.lazy()
            .filter(pl.col("line") != "")
            .select(fields)
            .unnest("line")
            .with_columns(count_ok=pl.col("surplus").is_null() & pl.col(layout.fields[-1]).is_not_null())
            .drop("surplus")
            .collect()
        )
    except pl.exceptions.PolarsError as error:
        raise_first_bad_line(path, layout, {})
        raise DataError(f"file must be readable text, got {path}: {error}") from error


def _split_quoted(path: Path, lines: pl.DataFrame, width: int) -> pl.DataFrame:
    """Read a CSV file with quotes. Only lines without a quote can be counted on the fast path."""
    plain = lines.filter(~pl.col("line").str.contains('"', literal=True) & (pl.col("line") != ""))
    count_ok = bool((plain["line"].str.count_matches(",", literal=True) == width - 1).all())
    frame = pl.read_csv(path, infer_schema=False)
    return frame.filter(~pl.all_horizontal(pl.all().is_null())).with_columns(count_ok=pl.lit(count_ok))


def _typed(frame: pl.DataFrame, mapping: _Mapping) -> pl.DataFrame:
    """Rename to user, item, timestamp, rating, and cast; what cannot be cast becomes null."""
    time = pl.col(mapping.timestamp)
    if frame.schema[mapping.timestamp].is_temporal():
        time = time.cast(pl.Datetime("us"), strict=False).dt.epoch("s")
    columns = [
        pl.col(mapping.user).cast(pl.String).alias("user"),
        pl.col(mapping.item).cast(pl.String).alias("item"),
        time.cast(pl.Int64, strict=False).alias("timestamp"),
        *[pl.col(name).alias(f"context:{name}") for name in mapping.context],
    ]
    if mapping.rating is not None:
        columns.append(pl.col(mapping.rating).cast(pl.Float32, strict=False).alias("rating"))
    if "count_ok" in frame.columns:
        columns.append(pl.col("count_ok"))
    return frame.select(columns)


def _good(frame: pl.DataFrame) -> pl.Series:
    """Mark the rows that can be used."""
    good = [pl.col(name).is_not_null() & (pl.col(name) != "") for name in ("user", "item")]
    good.append(pl.col("timestamp").is_between(0, MAX_SECONDS).fill_null(value=False))
    if "rating" in frame.columns:
        good.append(pl.col("rating").is_finite().fill_null(value=False))
    if "count_ok" in frame.columns:
        good.append(pl.col("count_ok"))
    return frame.select(good=pl.all_horizontal(good))["good"]


def _check(frame: pl.DataFrame, path: Path, layout: Layout, mapping: _Mapping) -> None:
    if frame.height and _good(frame).all():
        return
    roles = {mapping.user: "user", mapping.item: "item", mapping.timestamp: "timestamp"}
    if mapping.rating is not None:
        roles[mapping.rating] = "rating"
    raise_first_bad_line(path, layout, roles)
    if not frame.height:
        raise DataError(f"file must hold at least one interaction, got none in {path}")
    if "count_ok" in frame.columns and _good(frame.drop("count_ok")).all():
        return  # a quoted field spans lines; read with the csv module, every row has the right field count
    raise DataError(f"row must be readable, got row {_good(frame).arg_min()} after the header in {path}")


def _check_parquet(frame: pl.DataFrame, path: Path, mapping: _Mapping) -> None:
    if not frame.height:
        raise DataError(f"file must hold at least one interaction, got none in {path}")
    good = _good(frame)
    if not good.all():
        row = int(good.arg_min() or 0)
        got = frame.row(row, named=True)
        raise DataError(
            f"{path}: row {row}: {mapping.user} and {mapping.item} must not be empty, {mapping.timestamp} must be unix "
            f"seconds, ratings must be finite, got {got}"
        )


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
