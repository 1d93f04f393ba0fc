"""``ownlet adapter export|import``: adapters in the form of the library PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export_adapter", "import_adapter"]


def export_adapter(
    adapter: Annotated[Path, typer.Option(help="The adapter.safetensors of a run.")],
    peft: Annotated[Path, typer.Option(help="Folder for adapter_config.json and adapter_model.safetensors.")],
) -> None:
    """Write an adapter so that the library PEFT loads it: PeftModel.from_pretrained(base, FOLDER)."""
    from ownlet.shared.adapter import load_adapter
    from ownlet.shared.peft_format import write_peft

    spec, vector, _ = load_adapter(adapter)
    write_peft(peft, spec, vector)
    typer.echo(f"{peft}: rank {spec.rank}, alpha {spec.alpha:g}, {len(spec.layers)} layers")


def import_adapter(
    peft: Annotated[Path, typer.Option(help="Folder that PEFT's save_pretrained left, of plain LoRA.")],
    base: Annotated[Path, typer.Option(help="The base.pt that it belongs to, from `ownlet pretrain`.")],
    out: Annotated[Path, typer.Option(help="The adapter.safetensors to write.")],
    version: Annotated[int, typer.Option(min=0, help="Version to give it; devices adopt rising ones.")] = 1,
    train_a: Annotated[bool, typer.Option("--train-a", help="Train A on, too; by default A is frozen.")] = False,
) -> None:
    """Read a LoRA adapter that PEFT wrote, check it against its base, and write it as ownlet's."""
    from ownlet.shared.adapter import save_adapter
    from ownlet.shared.peft_format import read_peft
    from ownlet.simulations.pretrain import load_base

    spec, vector = read_peft(peft, load_base(base), train_a=train_a)
    save_adapter(out, spec, vector, version=version)
    typer.echo(f"{out}: version {version}, rank {spec.rank}, alpha {spec.alpha:g}, {len(spec.layers)} layers")
