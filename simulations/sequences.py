"""Files of sequences: one line per user, ``user item item item ...`` in time order, without times.

Benchmarks of sequential recommenders pass Amazon Beauty, Toys and Sports around in this form (the preprocessing of
S3-Rec, https://arxiv.org/abs/2008.07873, section 4.1.1). The time of an event is its position in the line, from 0: the
order is all that such a file knows, and a split that needs seconds refuses it.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ownlet.shared.errors import DataError
from ownlet.simulations.diagnose import Layout, text_rows

__all__ = ["only_sequence_file", "raise_first_bad_sequence", "scan_sequences"]

_SPACED = Layout(separator=" ", fields=())


def only_sequence_file(folder: Path) -> Path | None:
    """Return the ``.txt`` file of a folder that holds exactly one, otherwise None."""
    found = sorted(folder.glob("*.txt"))
    return found[0] if len(found) == 1 else None


def scan_sequences(path: Path) -> pl.LazyFrame:
    """Return the events, unread, in the order of the file.

    Returns:
        ``user``, ``item``, ``timestamp`` (position in the line), ``good`` (the line has items, and its user no other
        line) and ``count_ok``, which is always true.
    """
    words = pl.col("line").str.strip_prefix("\ufeff").str.extract_all(r"\S+")
    return (
        pl.scan_lines(path, glob=False)
        .select(words=words)
        .filter(pl.col("words").list.len() > 0)
        .select(user=pl.col("words").list.first(), item=pl.col("words").list.slice(1))
        .with_columns(
            timestamp=pl.int_ranges(pl.col("item").list.len(), dtype=pl.Int64),
            good=~pl.col("user").is_duplicated() & (pl.col("item").list.len() > 0),
        )
        .explode("item", "timestamp", empty_as_null=True)
        .with_columns(count_ok=pl.lit(value=True))
    )


def raise_first_bad_sequence(path: Path) -> None:
    """Raise for the first line that breaks a rule; return if there is none.

    Raises:
        DataError: ``<file>:<line>: <reason>``.
    """
    lines: dict[str, int] = {}
    for line, fields in text_rows(path, _SPACED):
        words = [word for field in fields for word in field.split()]
        if not words:
            continue
        if len(words) == 1:
            raise DataError(f"{path}:{line}: line must be a user and the items of the user, got only {words[0]!r}")
        first = lines.setdefault(words[0], line)
        if first != line:
            raise DataError(f"{path}:{line}: user must have one line, got {words[0]!r} again after line {first}")
