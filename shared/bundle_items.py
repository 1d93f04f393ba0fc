"""The items of a bundle, ``items.jsonl``: original ids, titles, and the numbers that the program knows them by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import BundleError, DataError
from ownlet.shared.interactions import Item

__all__ = ["Catalogue", "items_lines", "read_catalogue"]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Position i of ids and titles belongs to item number i, position 0 to padding.

    Args:
        ids: the app's own item ids.
        titles: what to show.
        numbers: id -> number.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    numbers: dict[str, int]

    def numbers_of(self, items: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of each id.

        Raises:
            DataError: an item that the catalogue lacks.
        """
        unknown = [item for item in items if item not in self.numbers]
        if unknown:
            raise DataError(f"item must be in the catalogue, got item={unknown[0]!r}")
        return np.array([self.numbers[item] for item in items], np.int64)


def items_lines(items: Sequence[Item]) -> str:
    """Return the content of a bundle's ``items.jsonl``."""
    lines = ({"item": item.number, "id": item.id, "title": item.title} for item in items)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read_catalogue(path: Path, num_items: int) -> Catalogue:
    """Read a bundle's ``items.jsonl``.

    Raises:
        BundleError: not JSON lines of items numbered from 1 to ``num_items``.
    """
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        in_order = [row["item"] for row in rows] == list(range(1, num_items + 1))
        ids, titles = ("", *(row["id"] for row in rows)), ("", *(row["title"] for row in rows))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"items must be readable JSON lines, got {path}: {error}") from error
    if not in_order:
        raise BundleError(f"items must be numbered from 1 to {num_items} in order, got {path}")
    return Catalogue(ids=ids, titles=titles, numbers={name: number for number, name in enumerate(ids) if number})
