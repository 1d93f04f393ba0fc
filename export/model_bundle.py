"""Writes the bundle of a base that is not SASRec: the same folder, without an item table beside the program."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as package_version
from pathlib import Path

from ownlet.export.bundle import check_inputs, describe_method, replaced
from ownlet.export.lower import Backend, lower
from ownlet.export.programs import ProgramShape
from ownlet.export.traced import build_traced_methods, trace_whole
from ownlet.export.verify import verify_program
from ownlet.shared.adapter import AdapterSpec, Vector, save_adapter
from ownlet.shared.bundle_items import items_lines
from ownlet.shared.config import FederationConfig, WindowConfig
from ownlet.shared.interactions import Item
from ownlet.shared.manifest import (
    ADAPTER_FILE,
    ITEMS_FILE,
    PROGRAM_FILE,
    Manifest,
    describe_file,
    read_manifest,
    write_manifest,
)
from ownlet.shared.probe import check_adapter, check_recommender
from ownlet.shared.recommender import Recommender
from ownlet.shared.store import write_atomic

__all__ = ["MODEL_BATCHES", "write_model_bundle"]

MODEL_BATCHES = (1, 4)
"""Windows in one call of each variant of ``step``: a traced step takes long to lower, so there are two."""


def write_model_bundle(
    folder: Path,
    model: Recommender,
    spec: AdapterSpec,
    vector: Vector,
    *,
    version: int,
    items: Sequence[Item],
    windows: WindowConfig,
    batches: Sequence[int] = MODEL_BATCHES,
    top_k: int = 100,
    backend: Backend = "xnnpack",
    federation: FederationConfig | None = None,
) -> Manifest:
    """Trace, lower, write and verify the bundle of any base, then put it in its place.

    ``device.Personalizer`` opens it like any other. The catalogue is part of the program, so it does not grow.

    Args:
        folder: the target; an older bundle of that name stays until the new one is verified.
        model: the frozen base, prepared with ``attach``.
        spec: the adapter's spec.
        vector: (P,) the adapter.
        version: the adapter's version.
        items: the catalogue, items 1 to num_items in order.
        windows: how a device cuts its history for training.
        batches: windows in one call of each variant of ``step``, rising.
        top_k: the most recommendations in one answer; the whole catalogue where that is smaller.
        backend: ``xnnpack`` or ``portable``.
        federation: the public numbers of the federated run that the bundle belongs to.

    Returns:
        The manifest, read back.

    Raises:
        PrivacyError: the base mixes windows, or is left to chance.
        ConfigError: it breaks another rule of ``shared.probe``, or items or sizes that do not fit it.
        AdapterError: the vector does not fit the spec.
        BundleError: the base is not the one of the spec, cannot be traced or lowered, or a method does not agree with
            eager. Nothing is left.
    """
    check_inputs(model, spec, items)
    check_recommender(model)
    check_adapter(model, spec)
    shape = ProgramShape(windows=windows, batches=tuple(batches), capacity=model.num_items)
    methods = build_traced_methods(model, spec, shape)
    with replaced(folder) as work:
        save_adapter(work / ADAPTER_FILE, spec, vector, version=version)
        write_atomic(work / ITEMS_FILE, items_lines(items).encode())
        write_atomic(work / PROGRAM_FILE, lower(methods, backend, capacity=shape.capacity, trace=trace_whole))
        verify_program(work / PROGRAM_FILE, methods, model, spec)
        manifest = Manifest(
            backend=backend,
            base_hash=spec.base_hash,
            adapter_version=version,
            num_items=model.num_items,
            capacity=shape.capacity,
            max_length=model.max_length,
            top_k=min(top_k, model.num_items),
            batches=shape.batches,
            windows=windows,
            methods=tuple(describe_method(method) for method in methods),
            files={name: describe_file(work / name) for name in (ADAPTER_FILE, ITEMS_FILE, PROGRAM_FILE)},
            versions={name: package_version(name) for name in ("ownlet", "torch", "executorch")},
            federation=federation,
        )
        write_manifest(work, manifest)
        return read_manifest(work)
