"""``ownlet export``: write a bundle for devices."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


class BackendChoice(StrEnum):
    """The kernels that the program uses."""

    xnnpack = "xnnpack"
    portable = "portable"


def export(
    base: Annotated[Path, typer.Option(help="The base.pt that `ownlet pretrain` left.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write; an older bundle there is replaced once this one is verified.")
    ],
    adapter: Annotated[
        Path | None, typer.Option(help="The adapter.safetensors of a run. Default: one that changes nothing.")
    ] = None,
    window_length: Annotated[int, typer.Option(min=2, help="Events in a window of the training step.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Windows in one call of the training step.")] = 4,
    top_k: Annotated[int, typer.Option(min=1, help="The most recommendations that the program returns.")] = 100,
    backend: Annotated[BackendChoice, typer.Option(help="Kernels.")] = BackendChoice.xnnpack,
) -> None:
    """Write base and adapter as an ExecuTorch bundle, and verify every method against PyTorch before it appears."""
    from rich.console import Console

    from ownlet.export.bundle import write_bundle
    from ownlet.shared.adapter import hash_state, initial_adapter, load_adapter
    from ownlet.shared.config import AdapterConfig, WindowConfig
    from ownlet.shared.lora import attach, attach_adapter
    from ownlet.simulations.pretrain import load_base, load_catalogue

    model = load_base(base)
    base_hash = hash_state(model.state_dict())
    if adapter is None:
        spec = attach_adapter(model, AdapterConfig())
        vector, version = initial_adapter(spec, seed=0), 0
    else:
        spec, vector, version = load_adapter(adapter, base_hash=base_hash)
        targets = [layer.name for layer in spec.layers]
        attach(
            model, target_modules=targets, rank=spec.rank, alpha=spec.alpha, base_hash=base_hash, train_a=spec.train_a
        )
    console = Console()
    with console.status("lowering and verifying"):
        manifest = write_bundle(
            out,
            model,
            spec,
            vector,
            version=version,
            items=load_catalogue(base),
            windows=WindowConfig(window_length=window_length),
            batch=batch,
            top_k=min(top_k, model.num_items),
            backend=backend.value,
        )
    for name, file in manifest.files.items():
        console.print(f"{out / name}: {file.size_bytes:,} bytes", highlight=False, soft_wrap=True)
