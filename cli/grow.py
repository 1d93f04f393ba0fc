"""``ownlet grow``: give a bundle new items without a new program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ownlet.shared.interactions import Item

__all__ = ["grow"]


def grow(
    bundle: Annotated[Path, typer.Option(help="The bundle to start from.")],
    base: Annotated[Path, typer.Option(help="The base.pt that it was exported from.")],
    items: Annotated[
        Path, typer.Option(help='New items as JSON lines: {"id": "tt1", "title": "Alien", "genres": ["Horror"]}.')
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; the same one replaces the old bundle.")],
    text_encoder: Annotated[
        str, typer.Option(help="Where the base's text encoder is now, if it has one and it is not where it was.")
    ] = "",
) -> None:
    """Write a bundle with more items, the same program and the same adapter.

    A new item's vector is what the base makes of its genres, title and "description", read as those of the other items
    were: hashed, or by the text encoder that the base was trained with. Devices keep their adapters, events of the new
    items that they recorded before begin to count.
    """
    from rich.console import Console

    from ownlet.export.grow import check_can_grow, grow_catalogue, vectors_of
    from ownlet.shared.adapter import hash_state
    from ownlet.shared.errors import BundleError, require
    from ownlet.shared.manifest import read_manifest
    from ownlet.simulations.base_file import load_base, load_text_source

    manifest = read_manifest(bundle)
    check_can_grow(manifest)  # before the base is looked at: a foreign base has no base.pt
    model = load_base(base)
    actual = hash_state(model.state_dict())
    if actual != manifest.base_hash:
        raise BundleError(f"base must be {manifest.base_hash[:12]}, the bundle's, got base {actual[:12]}")
    new = _read_items(items, first=manifest.num_items + 1)
    source, content = load_text_source(base), None
    if source is not None:
        from ownlet.simulations.text_content import new_text_content

        content = new_text_content(source, new, encoder=text_encoder)
    hashed = source is None
    require(not (hashed and text_encoder), "text_encoder must be left out where content is hashed", got=text_encoder)
    grown = grow_catalogue(bundle, out, new, vectors_of(model, new, content))
    Console().print(f"{out}: {grown.num_items:,} items of at most {grown.capacity:,}", highlight=False, soft_wrap=True)


def _read_items(path: Path, first: int) -> list[Item]:
    """Read new items, numbered from ``first``.

    Raises:
        DataError: a line that is not an item.
    """
    from ownlet.shared.errors import DataError
    from ownlet.shared.interactions import Item

    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"items must be readable JSON lines, got {path}: {error}") from error
    found = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            name, title, genres = row["id"], row.get("title", ""), row.get("genres", [])
            texts = (name, title, row.get("description", ""), *genres)
            if not all(isinstance(text, str) for text in texts) or isinstance(genres, str) or not name:
                raise TypeError("id, title and description must be text, genres a list of texts")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"items must have an id on every line, got line {number + 1} of {path}: {error}") from error
        found.append(Item(number=first + number, id=name, title=title, genres=tuple(genres), description=texts[2]))
    return found
