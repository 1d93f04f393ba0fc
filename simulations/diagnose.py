"""Find the first bad line of a text file and say why: the slow, exact half of the readers.

Runs only when the vectorised half has noticed that something is wrong, so speed does not matter here.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ownlet.shared.errors import DataError

__all__ = ["MAX_SECONDS", "Layout", "header_of", "raise_first_bad_line", "text_rows"]

MAX_SECONDS = 10**11
"""The largest timestamp taken for unix seconds (year 5138); milliseconds of any recent date are above it."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the lines of a text file are laid out.

    Args:
        separator: between fields; with a comma, fields may be in double quotes.
        fields: names of the fields in order.
        has_header: whether the first line holds the names.
    """

    separator: str
    fields: tuple[str, ...]
    has_header: bool = False


def header_of(path: Path, layout: Layout) -> list[str]:
    """Return the fields of the first line.

    Raises:
        DataError: the file is empty, or its first line is not UTF-8.
    """
    for _, fields in text_rows(path, layout):
        return fields
    raise DataError(f"file must not be empty, got {path}")


def raise_first_bad_line(path: Path, layout: Layout, roles: Mapping[str, str]) -> None:
    """Raise for the first line that breaks a rule; return if there is none.

    Args:
        path: the file.
        layout: how its lines are laid out.
        roles: field name -> ``user``, ``item``, ``timestamp`` or ``rating``; other fields may hold anything.

    Raises:
        DataError: ``<file>:<line>: <reason>``.
    """
    skip = layout.has_header
    for line, fields in text_rows(path, layout):
        if skip:
            skip = False
            continue
        reason = _reason(fields, layout, roles)
        if reason:
            raise DataError(f"{path}:{line}: {reason}")


def text_rows(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number from 1, fields) of every line that is not blank.

    Raises:
        DataError: a line is not UTF-8, or not CSV where the separator is a comma.
    """
    with path.open(encoding="utf-8-sig", newline="", errors="surrogateescape") as file:
        numbered = _utf8_lines(path, file)
        if layout.separator == ",":
            reader = csv.reader(numbered, strict=True)
            try:
                yield from ((reader.line_num, fields) for fields in reader if fields)
            except csv.Error as error:
                raise DataError(f"{path}:{reader.line_num}: line must be CSV, got {error}") from error
        else:
            stripped = (line.rstrip("\r\n") for line in numbered)
            yield from ((n, line.split(layout.separator)) for n, line in enumerate(stripped, start=1) if line)


def _utf8_lines(path: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        bad = re.search("[\udc80-\udcff]", line)
        if bad:
            byte = ord(bad.group()) - 0xDC00
            raise DataError(f"{path}:{number}: line must be UTF-8, got byte 0x{byte:02x}")
        yield line


def _reason(fields: list[str], layout: Layout, roles: Mapping[str, str]) -> str | None:
    """Say what is wrong with the fields of a line, if anything is."""
    if len(fields) != len(layout.fields):
        return f"line must have {len(layout.fields)} fields, got {len(fields)}"
    for name, value in zip(layout.fields, fields, strict=True):
        role = roles.get(name)
        if role in ("user", "item") and not value:
            return f"{name} must not be empty, got {value!r}"
        if role == "timestamp" and not (re.fullmatch(r"\+?[0-9]+", value) and int(value) <= MAX_SECONDS):
            return f"{name} must be whole unix seconds from 0 to {MAX_SECONDS}, got {value!r}"
        if role == "rating" and not _is_finite(value):
            return f"{name} must be a finite number, got {value!r}"
    return None


def _is_finite(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[0-9eE.+-]+", text)) and math.isfinite(float(text))
    except ValueError:
        return False
