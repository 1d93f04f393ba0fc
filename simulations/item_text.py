"""What an item says about itself, as one line of text: title, genres, and a description where there is one.

Descriptions come from a file of their own, because no rating file holds them: JSON lines such as
``{"id": "tt0078748", "text": "The crew of a freighter answers a call."}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ownlet.shared.errors import DataError
from ownlet.shared.interactions import Item

__all__ = ["described", "item_text", "item_texts", "read_descriptions"]


def item_text(item: Item) -> str:
    """Return ``Alien (1979). Horror, Sci-Fi. The crew ...``; parts that the item lacks are left out."""
    parts = (item.title.strip(), ", ".join(item.genres), item.description.strip())
    return ". ".join(part.rstrip(".") for part in parts if part)


def item_texts(items: Sequence[Item]) -> tuple[str, ...]:
    """Return the text of every item, in order; empty where an item has none."""
    return tuple(item_text(item) for item in items)


def described(items: Sequence[Item], descriptions: Mapping[str, str]) -> tuple[Item, ...]:
    """Give items the descriptions that stand under their ids; others keep what they have."""
    return tuple(replace(item, description=descriptions.get(item.id, item.description)) for item in items)


def read_descriptions(path: Path) -> dict[str, str]:
    """Read descriptions: item id -> text.

    Raises:
        DataError: unreadable, or a line that is not an object with texts ``id`` and ``text``.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"descriptions must be readable JSON lines, got {path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = row["id"], row["text"]
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError("id and text must be text")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: line must have id and text, got {error}") from error
        found[name] = text
    return found
