"""A longer catalogue beside the same program: new items reach devices without a new program or adapter.

The item table is an input of the program, so a bundle grows by a wider table and more lines in ``items.jsonl``. Where
the new vectors come from is the base's business: ``vectors_of`` gives those of items that are known by content alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.export.bundle import check_items, replaced
from ownlet.shared.adapter import load_adapter
from ownlet.shared.bundle_items import items_lines, read_catalogue
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import BundleError, require
from ownlet.shared.frequencies import open_frequencies, save_frequencies
from ownlet.shared.interactions import Item
from ownlet.shared.item_table import open_item_table, save_item_table
from ownlet.shared.manifest import (
    ADAPTER_FILE,
    FREQUENCIES_FILE,
    ITEMS_FILE,
    PROGRAM_FILE,
    TABLE_FILE,
    Manifest,
    describe_file,
    read_manifest,
    write_manifest,
)
from ownlet.shared.model import SASRec
from ownlet.shared.program import Program
from ownlet.shared.store import write_atomic

__all__ = ["check_can_grow", "grow_catalogue", "vectors_of"]

_TOLERANCE = 1e-5


def grow_catalogue(bundle: Path, folder: Path, items: Sequence[Item], vectors: NDArray[np.float32]) -> Manifest:
    """Write a bundle with more items, the same program and the same adapter, and check it with the program.

    ``base_hash`` stays that of the base that the adapter was trained for. ``base.safetensors`` is left out: it knows
    nothing of the new items.

    Args:
        bundle: an existing bundle.
        folder: where the new one goes; it may be the same.
        items: the new items alone, numbered on from the bundle's last.
        vectors: (new items, d) their vectors, comparable with the base's own.

    Returns:
        The new manifest, read back.

    Raises:
        ConfigError: items or vectors that do not fit the bundle, or more than its program takes.
        BundleError: the bundle is damaged, or the program does not score the longer table as it should.
    """
    old = read_manifest(bundle)
    check_can_grow(old)
    table = open_item_table(bundle / TABLE_FILE)  # (d, num_items)
    catalogue = read_catalogue(bundle / ITEMS_FILE, old.num_items)
    known = [
        Item(number=number, id=catalogue.ids[number], title=catalogue.titles[number])
        for number in range(1, old.num_items + 1)
    ]
    check_items([*known, *items])
    shape = (len(items), len(table))
    require(vectors.shape == shape and len(items) > 0, f"vectors must have shape {shape}", shape=vectors.shape)
    total = old.num_items + len(items)
    require(total <= old.capacity, f"items must be at most {old.capacity}, the program's capacity", items=total)
    grown = np.concatenate([table, np.asarray(vectors, np.float32).T], axis=1)
    with replaced(folder) as work:
        for name in (ADAPTER_FILE, PROGRAM_FILE):
            shutil.copyfile(bundle / name, work / name)
        save_item_table(work / TABLE_FILE, grown, quantize=old.quantize)
        if FREQUENCIES_FILE in old.files:  # no public user has chosen a new item yet
            save_frequencies(
                work / FREQUENCIES_FILE, np.pad(open_frequencies(bundle / FREQUENCIES_FILE), (0, len(items)))
            )
        write_atomic(work / ITEMS_FILE, items_lines([*known, *items]).encode())
        _check_scores(work, old, table, open_item_table(work / TABLE_FILE))
        names = (ADAPTER_FILE, PROGRAM_FILE, TABLE_FILE, ITEMS_FILE, FREQUENCIES_FILE)
        files = {name: describe_file(work / name) for name in names if (work / name).exists()}
        write_manifest(work, replace(old, num_items=total, files=files))
        return read_manifest(work)


def check_can_grow(manifest: Manifest) -> None:
    """Raise BundleError where the catalogue is part of the program."""
    if not manifest.has_item_table:
        raise BundleError(
            "bundle must have an item table to grow, got one whose program holds its items: export it anew"
        )


def vectors_of(
    model: SASRec, items: Sequence[Item], content: NDArray[np.float32] | None = None, *, neighbours: int = 50
) -> NDArray[np.float32]:
    """Return vectors (items, d) of items that the base was not trained on.

    Projected content, and in place of an id embedding the mean one of the trained items that are most alike in content
    (cosine): without it a new item lies apart from all others (measured in docs/decisions.md). A base that does not
    know how frequent its items are gives projected content alone.

    Args:
        model: any base.
        items: any items; their numbers do not matter.
        content: (items, content_dim) their content vectors, made as the base's own were; by default hashed, as in
            ``shared.content``.
        neighbours: how many trained items are averaged.

    Raises:
        ConfigError: content of another width than the base's.
    """
    width = model.content.shape[1]
    content = content_vectors(items, width)[1:] if content is None else content
    require(content.shape == (len(items), width), f"content must be {len(items)} by {width}", shape=content.shape)
    with torch.no_grad():
        told = torch.from_numpy(content)
        vectors: Tensor = model.content_projection(told) + _usual_ids(model, told, neighbours)
        return vectors.numpy()


def _usual_ids(model: SASRec, content: Tensor, neighbours: int) -> Tensor:
    """Return the mean id embedding of the nearest trained items, (items, d); zero where nothing is known."""
    usual = content.new_zeros(len(content), model.config.dim)
    if model.frequencies is None:
        return usual
    trained = (model.frequencies > 0) & model.content.any(dim=1)
    known = torch.nn.functional.normalize(model.content[trained], dim=1)
    told = content.any(dim=1)
    if len(known) == 0 or not told.any():
        return usual
    alike = torch.nn.functional.normalize(content[told], dim=1) @ known.T  # (items, trained)
    nearest = alike.topk(min(neighbours, len(known)), dim=1).indices
    usual[told] = model.item_embedding.weight[trained][nearest].mean(dim=1)
    return usual


def _check_scores(work: Path, old: Manifest, table: NDArray[np.float32], grown: NDArray[np.float32]) -> None:
    """Known items must score as they did, and new ones as their vectors say."""
    _, vector, _ = load_adapter(work / ADAPTER_FILE, base_hash=old.base_hash)
    program = Program(work / PROGRAM_FILE)
    history = np.zeros((1, old.max_length), np.int64)
    history[0] = 1 + np.arange(old.max_length) % old.num_items
    length = np.array([old.max_length], np.int64)
    known = [np.zeros((1, old.max_length, len(old.context)), np.int64)] if old.context else []
    (before,), (after,) = (program.run("score", vector, items, history, length, *known) for items in (table, grown))
    hidden, *_ = np.linalg.lstsq(table.T.astype(np.float64), before[0].astype(np.float64), rcond=None)
    want = np.concatenate([before[0], hidden @ grown[:, table.shape[1] :]])
    scale = max(1.0, float(np.abs(want).max()))
    if after.shape != (1, len(want)) or np.abs(after[0] - want).max() > _TOLERANCE * 100 * scale:
        raise BundleError(f"grown table must score as its vectors say, got another result from {PROGRAM_FILE}")
