"""The file of a base: its weights, its catalogue, how frequent its items are among public users, its genre head.

Of a base whose content was made from text, also what made it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ownlet.shared.config import ModelConfig
from ownlet.shared.errors import DataError
from ownlet.shared.interactions import Item
from ownlet.shared.model import SASRec
from ownlet.shared.store import write_atomic
from ownlet.simulations.genres import GenreHead
from ownlet.simulations.text_content import TextSource

__all__ = [
    "load_base",
    "load_catalogue",
    "load_genre_head",
    "load_text_source",
    "read_saved",
    "save_base",
    "write_saved",
]

_FORMAT = "ownlet-base-1"


def write_saved(path: Path, state: dict[str, Any]) -> None:
    """Write a dictionary of tensors and plain values, atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def read_saved(path: Path, what: str) -> dict[str, Any]:
    """Read what ``write_saved`` wrote.

    Raises:
        DataError: the file is missing or holds something else; ``what`` names it.
    """
    try:
        saved = torch.load(path, weights_only=True)
    except OSError as error:
        raise DataError(f"{what} must be a readable file, got {path}: {error}") from error
    except (EOFError, RuntimeError, LookupError, pickle.UnpicklingError) as error:
        raise DataError(f"{what} must be a file that ownlet wrote (a base: base.pt of pretrain), got {path}") from error
    if not isinstance(saved, dict):
        raise DataError(f"{what} must be a file that ownlet wrote, got {path}")
    return saved


def save_base(
    path: Path,
    model: SASRec,
    items: Sequence[Item] = (),
    head: GenreHead | None = None,
    *,
    text: TextSource | None = None,
) -> None:
    """Write a base to one file, atomically.

    Args:
        path: the file.
        model: the base.
        items: the catalogue that its item numbers mean.
        head: of the next genre, if it was trained with one.
        text: what made its content from text; None where content is hashed.
    """
    catalogue = [asdict(item) for item in items]
    state: dict[str, Any] = {
        "format": _FORMAT,
        "config": model.config.to_plain(),
        "state": model.state_dict(),
        "items": catalogue,
        "frequencies": model.frequencies,
    }
    if head is not None:
        state["genre_head"] = head.state_dict()
    if text is not None:
        state["text"] = text.to_plain()
    write_saved(path, state)


def load_base(path: Path) -> SASRec:
    """Read the base that ``save_base`` wrote, in eval mode.

    Raises:
        DataError: the file is missing or is not a base.
    """
    saved = _load_base(path)
    model = SASRec(ModelConfig.from_plain(saved["config"]), saved["state"]["content"])
    model.load_state_dict(saved["state"])
    model.frequencies = saved.get("frequencies")
    return model.eval()


def load_genre_head(path: Path) -> GenreHead | None:
    """Read the genre head that ``save_base`` wrote beside a base; None where there is none.

    Raises:
        DataError: the file is missing or is not a base.
    """
    saved = _load_base(path)
    if "genre_head" not in saved:
        return None
    head = GenreHead([Item.of(item) for item in saved["items"]], saved["config"]["dim"])
    head.load_state_dict(saved["genre_head"])
    return head.eval()


def load_catalogue(path: Path) -> tuple[Item, ...]:
    """Read the catalogue that ``save_base`` wrote.

    Raises:
        DataError: the file is missing or is not a base.
    """
    return tuple(Item.of(item) for item in _load_base(path)["items"])


def load_text_source(path: Path) -> TextSource | None:
    """Read what made the content of a base from text; None where it is hashed.

    Raises:
        DataError: the file is missing or is not a base.
    """
    saved = _load_base(path)
    return TextSource.from_plain(saved["text"]) if "text" in saved else None


def _load_base(path: Path) -> dict[str, Any]:
    saved = read_saved(path, "base")
    if saved.get("format") != _FORMAT:
        raise DataError(f"base must have format {_FORMAT}, got another in {path}")
    return saved
