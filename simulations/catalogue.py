"""Titles and genres of the MovieLens family.

``movies.dat`` and ``u.item`` of the early MovieLens releases are Latin-1, later ones and MovieTweetings are UTF-8: a
file that is not valid UTF-8 is read as Latin-1, which cannot fail. ``movies.csv`` is UTF-8 and nothing else.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ownlet.shared.errors import DataError

__all__ = ["read_catalogue"]

# The flags of u.item in order, as in u.genre of MovieLens 100K.
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on

Catalogue = dict[str, tuple[str, tuple[str, ...]]]


def read_catalogue(folder: Path) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    """Read ``u.item``, ``movies.dat`` or ``movies.csv``, whichever is in the folder.

    Args:
        folder: where the ratings lie.

    Returns:
        item id -> (title, genres); empty where there is no such file.

    Raises:
        DataError: a bad line, with file, line and reason.
    """
    for name, reader in (("u.item", _read_u_item), ("movies.dat", _read_movies_dat), ("movies.csv", _read_movies_csv)):
        if (folder / name).is_file():
            return reader(folder / name)
    return {}


def _read_u_item(path: Path) -> Catalogue:
    """Id, title, two dates, address, then one flag per genre, between bars."""
    catalogue: Catalogue = {}
    for number, line in _lines(path):
        fields = line.split("|")
        if len(fields) != 5 + len(_GENRES_100K):
            raise DataError(f"{path}:{number}: line must have {5 + len(_GENRES_100K)} fields, got {len(fields)}")
        flags = zip(_GENRES_100K, fields[5:], strict=True)
        catalogue[fields[0]] = (fields[1], tuple(genre for genre, flag in flags if flag == "1"))
    return catalogue


def _read_movies_dat(path: Path) -> Catalogue:
    """Id, title and genres between double colons; a title may hold double colons itself."""
    catalogue: Catalogue = {}
    for number, line in _lines(path):
        fields = line.split("::")
        if len(fields) < 3:
            raise DataError(f"{path}:{number}: line must have 3 fields, got {len(fields)}")
        catalogue[fields[0]] = ("::".join(fields[1:-1]), _genres(fields[-1]))
    return catalogue


def _read_movies_csv(path: Path) -> Catalogue:
    """Header movieId,title,genres."""
    catalogue: Catalogue = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if header != ["movieId", "title", "genres"]:
                raise DataError(f"{path}:1: header must be movieId,title,genres, got {','.join(header)}")
            for row in rows:
                if len(row) not in (0, 3):
                    raise DataError(f"{path}:{rows.line_num}: line must have 3 fields, got {len(row)}")
                if row:
                    catalogue[row[0]] = (row[1], _genres(row[2]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: file must be CSV in UTF-8, got {error}") from error
    return catalogue


def _lines(path: Path) -> list[tuple[int, str]]:
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    numbered = enumerate(text.split("\n"), start=1)  # not splitlines: a title may hold U+0085
    return [(number, line.rstrip("\r")) for number, line in numbered if line.strip()]


def _genres(text: str) -> tuple[str, ...]:
    return tuple(genre for genre in text.strip().split("|") if genre and genre != "(no genres listed)")
