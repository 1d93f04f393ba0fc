"""Writes a bundle: everything that a device needs, in one folder that is either verified or absent."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path

from torch import Tensor

from ownlet.export.lower import Backend, lower
from ownlet.export.programs import FrozenBase, Method, ProgramShape, build_methods
from ownlet.export.verify import verify_program
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, save_adapter
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import BundleError, require
from ownlet.shared.interactions import Item
from ownlet.shared.manifest import (
    ADAPTER_FILE,
    ITEMS_FILE,
    PROGRAM_FILE,
    Manifest,
    MethodEntry,
    TensorEntry,
    describe_file,
    read_manifest,
    write_manifest,
)
from ownlet.shared.model import SASRec
from ownlet.shared.store import write_atomic

__all__ = ["write_bundle"]


def write_bundle(
    folder: Path,
    model: SASRec,
    spec: AdapterSpec,
    vector: Vector,
    *,
    version: int,
    items: Sequence[Item],
    windows: WindowConfig,
    batch: int = 4,
    top_k: int = 100,
    backend: Backend = "xnnpack",
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
        batch: windows in one call of ``step``.
        top_k: items in one answer of ``recommend``; the whole catalogue where that is smaller.
        backend: ``xnnpack`` or ``portable``.

    Returns:
        The manifest, read back.

    Raises:
        ConfigError: items that do not fit the base's catalogue, or sizes that do not fit the base.
        AdapterError: the vector does not fit the spec.
        BundleError: the base is not the one of the spec, or a method does not agree with eager. Nothing is left.
    """
    _check_inputs(model, spec, items)
    base = FrozenBase.of(model)
    shape = ProgramShape(windows=windows, batch=batch, top_k=min(top_k, base.num_items))
    methods = build_methods(base, spec, shape)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        save_adapter(work / ADAPTER_FILE, spec, vector, version=version)
        write_atomic(work / ITEMS_FILE, _items_lines(items).encode())
        write_atomic(work / PROGRAM_FILE, lower(methods, backend))
        verify_program(work / PROGRAM_FILE, methods, base, spec)
        write_manifest(work, _describe(work, base, spec, version, shape, methods, backend))
        manifest = read_manifest(work)
        work.chmod(0o755)
        _take_place(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _check_inputs(model: SASRec, spec: AdapterSpec, items: Sequence[Item]) -> None:
    require(len(items) == model.num_items, f"items must be {model.num_items}, the base's catalogue", items=len(items))
    distinct = len({item.id for item in items})
    require(distinct == len(items), "items must have ids that differ from each other", distinct=distinct)
    in_order = all(item.number == number for number, item in enumerate(items, start=1))
    require(in_order, "items must be numbered from 1 in order", first=items[0])
    actual = hash_state(model.state_dict())
    if actual != spec.base_hash:
        raise BundleError(f"base must be {spec.base_hash[:12]}, the one of the adapter, got base {actual[:12]}")


def _items_lines(items: Sequence[Item]) -> str:
    lines = ({"item": item.number, "id": item.id, "title": item.title} for item in items)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _describe(
    work: Path,
    base: FrozenBase,
    spec: AdapterSpec,
    version: int,
    shape: ProgramShape,
    methods: Sequence[Method],
    backend: Backend,
) -> Manifest:
    return Manifest(
        backend=backend,
        base_hash=spec.base_hash,
        adapter_version=version,
        num_items=base.num_items,
        max_length=base.config.max_length,
        top_k=shape.top_k,
        batch=shape.batch,
        windows=shape.windows,
        methods=tuple(_describe_method(method) for method in methods),
        files={name: describe_file(work / name) for name in (ADAPTER_FILE, ITEMS_FILE, PROGRAM_FILE)},
        versions={name: package_version(name) for name in ("ownlet", "torch", "executorch")},
    )


def _describe_method(method: Method) -> MethodEntry:
    def entry(name: str, tensor: Tensor) -> TensorEntry:
        return TensorEntry(name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))

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
