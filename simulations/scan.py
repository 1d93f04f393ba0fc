"""Files of interactions as lazy tables: the MovieLens family, CSV and Parquet with a column mapping, and sequences.

``scan`` says how a file is read and reads nothing yet: ``simulations/readers.py`` collects it into memory,
``simulations/store_build.py`` streams it when it is too large for that. Every row is marked usable or not; only if one
is not, ``explain`` has ``simulations/diagnose.py`` read the file again, line by line, to say which line and why. So 25
million good rows are fast and one bad row is one exact error.

Formats: https://files.grouplens.org/datasets/movielens/ (the README of 100k, 1m and 25m).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ownlet.shared.errors import DataError, require
from ownlet.simulations.diagnose import MAX_SECONDS, Layout, header_of, raise_first_bad_line
from ownlet.simulations.sequences import only_sequence_file, raise_first_bad_sequence, scan_sequences

__all__ = [
    "Source",
    "TableColumns",
    "explain",
    "find_source",
    "movielens_source",
    "reading",
    "scan",
    "table_source",
]

_MOVIELENS_FIELDS = ("user", "item", "rating", "timestamp")
_MOVIELENS_HEADER = ("userId", "movieId", "rating", "timestamp")
_LAYOUTS = {
    "u.data": Layout(separator="\t", fields=_MOVIELENS_FIELDS),
    "ratings.dat": Layout(separator="::", fields=_MOVIELENS_FIELDS),
    "ratings.csv": Layout(separator=",", fields=_MOVIELENS_FIELDS, has_header=True),
}


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which column of a file is what.

    Args:
        user: the column of user ids.
        item: the column of item ids.
        timestamp: the column of times.
        rating: the column of ratings, where there is one.
        context: further columns to keep.

    Raises:
        ConfigError: one column is mapped twice.
    """

    user: str
    item: str
    timestamp: str
    rating: str | None = None
    context: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(len(set(self.names)) == len(self.names), "columns must differ", columns=self.names)

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> TableColumns:
        """Return the mapping of pairs such as ``("user", "customer_id")``; a role of another name is context.

        Raises:
            ConfigError: user, item or timestamp is missing, or one column is mapped twice.
        """
        names = dict(pairs)
        missing = sorted({"user", "item", "timestamp"} - set(names))
        require(not missing, "columns must map user, item and timestamp", missing=missing)
        context = tuple(name for role, name in names.items() if role not in _MOVIELENS_FIELDS)
        return cls(
            user=names["user"],
            item=names["item"],
            timestamp=names["timestamp"],
            rating=names.get("rating"),
            context=context,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        named = (self.user, self.item, self.timestamp, *self.context)
        return named if self.rating is None else (*named, self.rating)


_MOVIELENS = TableColumns(user="user", item="item", timestamp="timestamp", rating="rating")
_SEQUENCES = TableColumns(user="user", item="item", timestamp="timestamp")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of interactions that exists and has its columns.

    Args:
        path: the file.
        name: of the data.
        columns: which column is what.
        layout: of text with fields; None for Parquet and sequences.
        titles: a folder that may hold titles and genres.
        is_sequences: one line per user, no times; see ``simulations/sequences.py``.
    """

    path: Path
    name: str
    columns: TableColumns
    layout: Layout | None
    titles: Path | None = None
    is_sequences: bool = False


def find_source(path: Path, columns: Sequence[tuple[str, str]] = ()) -> Source:
    """Find out what kind of file or folder it is.

    Args:
        path: a folder or file of the MovieLens family, a CSV or Parquet file with columns ``user``, ``item``,
            ``timestamp`` and optionally ``rating``, or a ``.txt`` file of sequences or a folder with exactly one.
        columns: for CSV or Parquet with other names, pairs as ``TableColumns.of`` takes them.

    Raises:
        ConfigError: a role is not mapped, or one column is mapped twice.
        DataError: nothing there that can be read.
    """
    if columns:
        return table_source(path, TableColumns.of(columns))
    if path.is_dir() and not any((path / name).is_file() for name in _LAYOUTS):
        path = only_sequence_file(path) or path
    if path.is_dir() or path.name in _LAYOUTS:
        return movielens_source(path)
    _require_file(path)
    present = _columns_of(path)
    if tuple(present) == _MOVIELENS_HEADER:
        return movielens_source(path)
    if path.suffix == ".txt" and not {"user", "item", "timestamp"} <= set(present):  # not CSV under another name
        return Source(path=path, name=path.stem, columns=_SEQUENCES, layout=None, is_sequences=True)
    rating = "rating" if "rating" in present else None
    return table_source(path, TableColumns(user="user", item="item", timestamp="timestamp", rating=rating))


def movielens_source(path: Path) -> Source:
    """Return the ratings file in a folder, or the file itself.

    Raises:
        DataError: no such file, an empty file, or another header.
    """
    if path.is_dir():
        files = [path / name for name in _LAYOUTS if (path / name).is_file()]
        if not files:
            raise DataError(f"folder must hold one of {', '.join(_LAYOUTS)}, or one .txt file, got neither in {path}")
        path = files[0]
    _require_file(path)
    layout = _LAYOUTS.get(path.name) or _LAYOUTS["ratings.csv"]
    if layout.has_header and tuple(header_of(path, layout)) != _MOVIELENS_HEADER:
        raise DataError(
            f"header must be {','.join(_MOVIELENS_HEADER)}, got {','.join(header_of(path, layout))} in {path}"
        )
    return Source(path=path, name=path.parent.name, columns=_MOVIELENS, layout=layout, titles=path.parent)


def table_source(path: Path, columns: TableColumns) -> Source:
    """Return a CSV file with a header, or a Parquet file.

    Raises:
        DataError: no such file, an empty file, or a missing column.
    """
    _require_file(path)
    present = _columns_of(path)
    missing = [name for name in columns.names if name not in present]
    if missing:
        raise DataError(f"columns must be in the file, got no {missing} in {path}; it has {present}")
    is_text = path.suffix != ".parquet"
    layout = Layout(separator=",", fields=tuple(present), has_header=True) if is_text else None
    return Source(path=path, name=path.stem, columns=columns, layout=layout)


def scan(source: Source) -> pl.LazyFrame:
    """Return the rows, unread, in the order of the file.

    Collect it inside ``reading``.

    Returns:
        ``user`` and ``item`` (text), ``timestamp`` (whole unix seconds), ``rating`` where it is mapped, and
        ``context:<name>`` columns; what cannot be read is null. ``good``: whether all values can be used;
        ``count_ok``: whether the line has as many fields as it should.
    """
    if source.is_sequences:
        return scan_sequences(source.path)
    if source.layout is None:
        typed = _typed(pl.scan_parquet(source.path, glob=False), source.columns, count_ok=pl.lit(value=True))
    else:
        typed = _typed(_split_lines(source.path, source.layout), source.columns, count_ok=pl.col("count_ok"))
    good = [pl.col(name).is_not_null() & (pl.col(name) != "") for name in ("user", "item")]
    good.append(pl.col("timestamp").is_between(0, MAX_SECONDS).fill_null(value=False))
    if source.columns.rating is not None:
        good.append(pl.col("rating").is_finite().fill_null(value=False))
    return typed.with_columns(good=pl.all_horizontal(good))


@contextmanager
def reading(source: Source) -> Iterator[None]:
    """Turn an error of the vectorised reader into one that says what is wrong with the file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        yield
    except pl.exceptions.PolarsError as error:
        if source.is_sequences:
            raise_first_bad_sequence(source.path)
        elif source.layout is None:
            raise DataError(f"Parquet file must be readable, got {source.path}: {error}") from error
        else:
            raise_first_bad_line(source.path, source.layout, {})
        raise DataError(f"file must be readable text, got {source.path}: {error}") from error


def explain(source: Source, *, rows: int, good: int) -> None:
    """Raise for the first row that cannot be used, unless only the count of fields in a line was in doubt.

    Args:
        source: the file.
        rows: how many it has.
        good: how many of them have values that can be used.

    Raises:
        DataError: which line or row, and why; or there are no rows.
    """
    if source.is_sequences:
        raise_first_bad_sequence(source.path)
    if source.layout is not None:
        columns = source.columns
        roles = {columns.user: "user", columns.item: "item", columns.timestamp: "timestamp"}
        if columns.rating is not None:
            roles[columns.rating] = "rating"
        raise_first_bad_line(source.path, source.layout, roles)
    if not rows:
        raise DataError(f"file must hold at least one interaction, got none in {source.path}")
    if good < rows:  # a quoted field that spans lines is all right: with the csv module, it has the right field count
        _raise_first_bad_row(source)


def _raise_first_bad_row(source: Source) -> None:
    with reading(source):
        bad = scan(source).with_row_index("row").filter(~pl.col("good")).head(1).collect().row(0, named=True)
    row = bad.pop("row")
    if source.layout is not None:
        raise DataError(f"row must be readable, got row {row} after the header in {source.path}")
    columns, got = source.columns, {name: value for name, value in bad.items() if name not in ("good", "count_ok")}
    raise DataError(
        f"{source.path}: row {row}: {columns.user} and {columns.item} must not be empty, {columns.timestamp} must be "
        f"unix seconds, ratings must be finite, got {got}"
    )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"data must be a file that exists, got {path}")


def _columns_of(path: Path) -> list[str]:
    if path.suffix != ".parquet":
        return header_of(path, Layout(separator=",", fields=(), has_header=True))
    try:
        return list(pl.read_parquet_schema(path)) if path.stat().st_size else []
    except pl.exceptions.PolarsError as error:
        raise DataError(f"Parquet file must be readable, got {path}: {error}") from error


def _split_lines(path: Path, layout: Layout) -> pl.LazyFrame:
    """Split a text file into text columns named by the layout, plus ``count_ok``."""
    width = len(layout.fields)
    lines = pl.scan_lines(path, glob=False).slice(1 if layout.has_header else 0)
    if layout.separator == ",":
        quoted = pl.col("line").str.contains('"', literal=True)
        commas = pl.col("line").filter(~quoted & (pl.col("line") != "")).str.count_matches(",", literal=True)
        found = lines.select(quoted=quoted.any(), count_ok=(commas == width - 1).all()).collect(engine="streaming")
        if found["quoted"].item():  # only lines without a quote can be counted here
            rows = pl.scan_csv(path, infer_schema=False, glob=False).filter(~pl.all_horizontal(pl.all().is_null()))
            return rows.with_columns(count_ok=pl.lit(found["count_ok"].item()))
    fields = pl.col("line").str.split_exact(layout.separator, width).struct.rename_fields([*layout.fields, "surplus"])
    return (
        lines.filter(pl.col("line") != "")
        .select(fields)
        .unnest("line")
        .with_columns(count_ok=pl.col("surplus").is_null() & pl.col(layout.fields[-1]).is_not_null())
        .drop("surplus")
    )


def _typed(table: pl.LazyFrame, columns: TableColumns, *, count_ok: pl.Expr) -> pl.LazyFrame:
    """Rename to user, item, timestamp, rating, and cast; what cannot be cast becomes null."""
    time = pl.col(columns.timestamp)
    if table.collect_schema()[columns.timestamp].is_temporal():
        time = time.cast(pl.Datetime("us"), strict=False).dt.epoch("s")
    selected = [
        pl.col(columns.user).cast(pl.String).alias("user"),
        pl.col(columns.item).cast(pl.String).alias("item"),
        time.cast(pl.Int64, strict=False).alias("timestamp"),
        *[pl.col(name).alias(f"context:{name}") for name in columns.context],
        count_ok.alias("count_ok"),
    ]
    if columns.rating is not None:
        selected.append(pl.col(columns.rating).cast(pl.Float32, strict=False).alias("rating"))
    return table.select(selected)
