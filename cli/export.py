"""``ownlet export``: write a bundle for devices."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ownlet.export.objectives import ProgramObjective
    from ownlet.shared.config import FederationConfig

__all__ = ["export"]


class QuantizeChoice(StrEnum):
    """How the item table is stored."""

    none = "none"
    int8 = "int8"


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
    window_length: Annotated[
        int | None,
        typer.Option(min=2, help="Events in a window of the training step. Default: as in the adapter's run, or 20."),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(help="Windows in one call of each variant of the training step, such as 1,4,16, the default."),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="The most recommendations in one answer.")] = 100,
    capacity: Annotated[
        int | None, typer.Option(help="Items that the catalogue may grow to. Default: twice as many as now.")
    ] = None,
    backend: Annotated[BackendChoice, typer.Option(help="Kernels.")] = BackendChoice.xnnpack,
    quantize: Annotated[
        QuantizeChoice, typer.Option(help="Store the item table as int8, in a quarter of the bytes.")
    ] = QuantizeChoice.none,
    objective: Annotated[
        Literal["softmax", "bpr", "bce", "listnet"] | None,
        typer.Option(help="What the training step minimises. Default: as in the adapter's run where a program can."),
    ] = None,
    negatives: Annotated[
        int | None,
        typer.Option(min=0, help="Items per window that stand for the catalogue; 0: all. Default: as in the run."),
    ] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Also write the base's weights, for devices that train with PyTorch.")
    ] = False,
    ranking_head: Annotated[
        Path | None, typer.Option(help="The ranking.safetensors of `ownlet rank-head`: devices rank in two stages.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Folder for golden vectors, with which a port to a phone proves itself.")
    ] = None,
) -> None:
    """Write base and adapter as an ExecuTorch bundle, and verify every method against PyTorch before it appears.

    An adapter that lies in the folder of its run brings the run's public numbers along, so that devices know the terms.
    """
    from rich.console import Console

    from ownlet.export.bundle import write_bundle
    from ownlet.export.golden import write_golden
    from ownlet.shared.adapter import hash_state, initial_adapter, load_adapter
    from ownlet.shared.config import AdapterConfig, WindowConfig
    from ownlet.shared.errors import require
    from ownlet.shared.lora import attach_adapter, attach_spec
    from ownlet.shared.ranking import load_ranking
    from ownlet.simulations.pretrain import load_base, load_catalogue
    from ownlet.simulations.results import terms_of

    model = load_base(base)
    base_hash = hash_state(model.state_dict())
    if adapter is None:
        spec = attach_adapter(model, AdapterConfig())
        vector, version = initial_adapter(spec, seed=0), 0
    else:
        spec, vector, version = load_adapter(adapter, base_hash=base_hash)
        attach_spec(model, spec)
    ranking = None if ranking_head is None else load_ranking(ranking_head, base_hash=base_hash)
    terms = None if adapter is None else terms_of(adapter.parent)
    windows = terms.windows if terms else WindowConfig(window_length=window_length or 20)
    require(
        window_length in (None, windows.window_length),
        f"window_length must be that of the adapter's run, {windows.window_length}",
        window_length=window_length,
    )
    chosen, number = _objective(objective, negatives, terms)
    console = Console()
    with console.status("lowering and verifying"):
        manifest = write_bundle(
            out,
            model,
            spec,
            vector,
            version=version,
            items=load_catalogue(base),
            windows=windows,
            federation=terms,
            batches=None if batches is None else _numbers(batches),
            top_k=top_k,
            capacity=capacity,
            backend=backend.value,
            with_base=with_base,
            quantize=quantize.value,
            objective=chosen,
            num_negatives=number,
            ranking=ranking,
        )
        if golden is not None:
            write_golden(out, golden, model, ranking=ranking)
    for name, file in manifest.files.items():
        console.print(f"{out / name}: {file.size_bytes:,} bytes", highlight=False, soft_wrap=True)


def _objective(
    objective: ProgramObjective | None, negatives: int | None, terms: FederationConfig | None
) -> tuple[ProgramObjective, int]:
    """Return what was asked for; else the run's own, if a program can have it; else the full softmax."""
    from ownlet.export.objectives import program_objective
    from ownlet.shared.config import Plan

    plan = Plan() if terms is None or terms.plan.objective == "lambda" else terms.plan
    if objective is None:
        return program_objective(plan.objective), plan.num_negatives if negatives is None else negatives
    default = plan.num_negatives if objective == plan.objective else 0
    return objective, default if negatives is None else negatives


def _numbers(text: str) -> tuple[int, ...]:
    from ownlet.shared.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"batches must be numbers with commas between, got {text!r}") from None
