"""Writes a bundle: everything that a device needs, in one folder that is either verified or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as package_version
from pathlib import Path

import torch
from torch import Tensor

from ownlet.export.frozen import FrozenBase
from ownlet.export.lower import Backend, lower
from ownlet.export.objectives import ProgramObjective
from ownlet.export.programs import BATCHES, Method, ProgramShape, build_methods
from ownlet.export.verify import verify_program
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, save_adapter
from ownlet.shared.base import save_base_weights
from ownlet.shared.bundle_items import items_lines
from ownlet.shared.config import FederationConfig, WindowConfig
from ownlet.shared.errors import BundleError, require
from ownlet.shared.frequencies import save_frequencies
from ownlet.shared.interactions import Item
from ownlet.shared.item_table import Quantize, open_item_table, save_item_table
from ownlet.shared.manifest import (
    ADAPTER_FILE,
    BASE_FILE,
    FREQUENCIES_FILE,
    ITEMS_FILE,
    PROGRAM_FILE,
    RANKING_FILE,
    TABLE_FILE,
    Manifest,
    MethodEntry,
    TensorEntry,
    describe_file,
    read_manifest,
    write_manifest,
)
from ownlet.shared.model import SASRec
from ownlet.shared.ranking import RankingHead, save_ranking
from ownlet.shared.recommender import Recommender, module_of
from ownlet.shared.store import write_atomic

__all__ = ["check_inputs", "check_items", "describe_method", "replaced", "write_bundle"]

_SCORES_BYTES = 256 * 2**20  # what a training step may hold in scores: past it a larger batch is no faster per window


def write_bundle(
    folder: Path,
    model: SASRec,
    spec: AdapterSpec,
    vector: Vector,
    *,
    version: int,
    items: Sequence[Item],
    windows: WindowConfig,
    batches: Sequence[int] | None = None,
    top_k: int = 100,
    capacity: int | None = None,
    backend: Backend = "xnnpack",
    federation: FederationConfig | None = None,
    with_base: bool = False,
    quantize: Quantize = "none",
    objective: ProgramObjective = "softmax",
    num_negatives: int = 0,
    ranking: RankingHead | None = None,
) -> Manifest:
    """Lower, write and verify a bundle, then put it in its place.

    The work happens in a temporary folder beside the target. Only when every file is written and every method agrees
    with eager does it take the target's name; an older bundle of that name stays until then.

    Args:
        folder: the target.
        model: the frozen base, prepared with ``attach``.
        spec: the adapter's spec.
        vector: (P,) the adapter.
        version: the adapter's version.
        items: the catalogue, items 1 to num_items in order.
        windows: how a device cuts its history for training.
        batches: windows in one call of each variant of ``step``, rising; by default those of 1, 4 and 16 whose scores
            take at most 256 MiB, 1 in any case.
        top_k: the most recommendations in one answer; the whole catalogue where that is smaller, or the candidates of
            the ranking head.
        capacity: the most items that the catalogue may grow to without a new program; by default twice its size, and
            at least a thousand more.
        backend: ``xnnpack`` or ``portable``.
        federation: the public numbers of the federated run that the bundle belongs to.
        with_base: also write the base's weights, for devices that train with PyTorch.
        quantize: ``int8`` stores the item table in a quarter of the bytes, rounded; the device multiplies it out.
        objective: what the training step minimises: ``softmax``, ``bpr``, ``bce`` or ``listnet``.
        num_negatives: candidates of a window that stand for the catalogue in it; 0 is the whole catalogue. Then how
            frequent items are goes along, where the base knows it.
        ranking: a ranking head of the base: the program gets the method ``rank``, and devices use it.

    Returns:
        The manifest, read back.

    Raises:
        ConfigError: items that do not fit the base's catalogue, or sizes that do not fit the base.
        AdapterError: the vector does not fit the spec.
        BundleError: the base is not the one of the spec or of the ranking head, or a method does not agree with eager.
            Nothing is left.
    """
    check_inputs(model, spec, items)
    if ranking is not None and ranking.base_hash != spec.base_hash:
        raise BundleError(f"ranking head must belong to base {spec.base_hash[:12]}, got base {ranking.base_hash[:12]}")
    base = FrozenBase.of(model)
    room = capacity or max(2 * base.num_items, base.num_items + 1000)
    fitting = _fitting_batches(windows.row_length, num_negatives or room) if batches is None else tuple(batches)
    shape = ProgramShape(
        windows=windows, batches=fitting, capacity=room, objective=objective, num_negatives=num_negatives
    )
    with replaced(folder) as work:
        save_adapter(work / ADAPTER_FILE, spec, vector, version=version)
        save_item_table(work / TABLE_FILE, base.item_columns().numpy(), quantize=quantize)
        base.use_columns(torch.from_numpy(open_item_table(work / TABLE_FILE)))  # what devices will read is verified
        methods = build_methods(base, spec, shape, ranking)
        write_atomic(work / ITEMS_FILE, items_lines(items).encode())
        write_atomic(work / PROGRAM_FILE, lower(methods, backend, capacity=room))
        if with_base:
            save_base_weights(work / BASE_FILE, model)
        if num_negatives and model.frequencies is not None:
            save_frequencies(work / FREQUENCIES_FILE, model.frequencies.numpy(force=True))
        if with_base and ranking is not None:
            save_ranking(work / RANKING_FILE, ranking)
        verify_program(work / PROGRAM_FILE, methods, base, spec)
        manifest = Manifest(
            backend=backend,
            base_hash=spec.base_hash,
            adapter_version=version,
            num_items=base.num_items,
            capacity=room,
            max_length=base.config.max_length,
            top_k=min(top_k, base.num_items, ranking.config.num_candidates if ranking else top_k),
            batches=shape.batches,
            windows=windows,
            methods=tuple(describe_method(method) for method in methods),
            files={path.name: describe_file(path) for path in sorted(work.iterdir())},
            versions={name: package_version(name) for name in ("ownlet", "torch", "executorch")},
            federation=federation,
            quantize=quantize,
            context=base.config.context,
            objective=objective,
            num_negatives=num_negatives,
        )
        write_manifest(work, manifest)
        return read_manifest(work)


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Give a fresh folder to fill; it takes the target's name at the end, or vanishes where the filling fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield work
        work.chmod(0o755)
        _take_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fitting_batches(row_length: int, scored: int) -> tuple[int, ...]:
    smallest, *larger = BATCHES
    scores_bytes = 2 * 4 * row_length * scored  # of one window: logits and probabilities
    return (smallest, *(batch for batch in larger if batch * scores_bytes <= _SCORES_BYTES))


def check_inputs(model: Recommender, spec: AdapterSpec, items: Sequence[Item]) -> None:
    """Raise ConfigError unless the items are the base's catalogue, BundleError unless the base is the adapter's."""
    require(len(items) == model.num_items, f"items must be {model.num_items}, the base's catalogue", items=len(items))
    check_items(items)
    actual = hash_state(module_of(model).state_dict())
    if actual != spec.base_hash:
        raise BundleError(f"base must be {spec.base_hash[:12]}, the one of the adapter, got base {actual[:12]}")


def check_items(items: Sequence[Item]) -> None:
    """Raise ConfigError unless ids differ and numbers run from 1 in order."""
    distinct = len({item.id for item in items})
    require(distinct == len(items), "items must have ids that differ from each other", distinct=distinct)
    in_order = all(item.number == number for number, item in enumerate(items, start=1))
    require(in_order, "items must be numbered from 1 in order", first=items[0])


def describe_method(method: Method) -> MethodEntry:
    """Return what the manifest says of a method."""

    def entry(name: str, tensor: Tensor) -> TensorEntry:
        shape = list(tensor.shape)
        if name in ("items", "scores"):
            shape[-1] = -1  # as wide as the catalogue
        return TensorEntry(name=name, shape=tuple(shape), dtype=str(tensor.dtype).removeprefix("torch."))

    with torch.no_grad():
        results = method.function(*method.example)
    return MethodEntry(
        name=method.name,
        arguments=tuple(map(entry, method.arguments, method.example)),
        results=tuple(map(entry, method.results, results)),
    )


def _take_place(work: Path, folder: Path) -> None:
    """Rename the finished folder to its target; an older bundle makes way only for the instant between two renames."""
    if not folder.exists():
        os.replace(work, folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old.")) / "bundle"
    os.replace(folder, old)
    try:
        os.replace(work, folder)
    except OSError:
        os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)
