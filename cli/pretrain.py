"""``ownlet pretrain``: train a base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ownlet.cli.interrupted import says_how_to_go_on
from ownlet.cli.options import (
    Columns,
    Context,
    Core,
    Data,
    Name,
    Negatives,
    Objective,
    Overwrite,
    PeriodDays,
    PublicBefore,
    Runs,
    Sampling,
    Seed,
    TensorBoard,
    Threads,
    UtcOffsetHours,
    use_threads,
)
from ownlet.cli.settings import Config, Set, read_settings

__all__ = ["OPTIONS", "pretrain"]

OPTIONS = {
    "data": ("data.path",),
    "columns": ("data.columns",),
    "core": ("data.core",),
    "public_before": ("data.public_before",),
    "users": ("run.users",),
    "epochs": ("pretrain.max_epochs",),
    "dim": ("model.dim",),
    "layers": ("model.num_layers",),
    "learning_rate": ("pretrain.learning_rate",),
    "objective": ("pretrain.objective",),
    "negatives": ("pretrain.num_negatives",),
    "sampling": ("pretrain.negatives",),
    "calibration": ("pretrain.calibration",),
    "genre_weight": ("pretrain.genre_weight",),
    "context": ("context.fields",),
    "utc_offset_hours": ("context.utc_offset_hours",),
    "period_days": ("context.period_days",),
    "text_encoder": ("text.encoder",),
    "text_cache": ("text.cache",),
    "text_lora": ("text.tune",),
    "item_text": ("text.descriptions",),
    "seed": ("data.seed", "pretrain.seed"),
}
"""Option -> the settings that it stands for."""


def pretrain(
    ctx: typer.Context,
    config: Config = None,
    set_: Set = None,
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    users: Annotated[
        Literal["public", "all"],
        typer.Option(help="public: 30 % of users, tested on the others. all: everybody, leave-one-out."),
    ] = "public",
    epochs: Annotated[
        int, typer.Option(min=1, help="The most passes over the users; early stopping ends sooner.")
    ] = 60,
    dim: Annotated[int, typer.Option(min=2, help="Width of the hidden states.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    context: Context = "",
    utc_offset_hours: UtcOffsetHours = 0.0,
    period_days: PeriodDays = 30.0,
    objective: Objective = "softmax",
    negatives: Negatives = 0,
    sampling: Sampling = "uniform",
    calibration: Annotated[
        float, typer.Option(help="Of bce: 0 is plain, 1 corrects for the sampling in full (t of gBCE).")
    ] = 0.0,
    genre_weight: Annotated[
        float, typer.Option(min=0, help="Also learn the next item's genres, with this weight. 0: no.")
    ] = 0.0,
    text_encoder: Annotated[
        str,
        typer.Option(
            help="Folder or hub id of a text encoder such as distilbert-base-uncased, which reads titles and genres in "
            "place of hashed words. Needs ownlet[text]."
        ),
    ] = "",
    text_lora: Annotated[
        bool, typer.Option("--text-lora", help="Train LoRA on the encoder's own layers first, on public users.")
    ] = False,
    text_cache: Annotated[Path, typer.Option(help="Folder of text vectors that were made before.")] = Path(
        "~/.cache/ownlet/text"
    ),
    item_text: Annotated[
        Path | None,
        typer.Option(help='Descriptions for --text-encoder, JSON lines: {"id": "tt1", "text": "A crew ..."}.'),
    ] = None,
    seed: Seed = 0,
    tensorboard: TensorBoard = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Train the base recommender and compare it with most-popular and item-kNN.

    Leaves base.pt in the run folder. With --name an interrupted run is continued from its last epoch.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.simulations.base_run import BaseRunConfig, run_pretrain
    from ownlet.simulations.board import board_of
    from ownlet.simulations.findings import quality_row
    from ownlet.simulations.report import quality_table
    from ownlet.simulations.results import RunFolder

    use_threads(threads)
    settings = read_settings("pretrain", BaseRunConfig, ctx, OPTIONS, file=config, sets=set_).config
    folder = RunFolder.create(runs, "pretrain", settings, settings.recipe.seed, name=name, overwrite=overwrite)
    console = Console()
    with (
        says_how_to_go_on(name, overwrite),
        folder.discarded_on_refusal(),
        board_of(tensorboard, folder.path.name) as board,
        progress_bars(console) as progress,
    ):
        quality = run_pretrain(settings, folder, progress, board)
    console.print(quality_table(tuple(quality_row(label, metrics) for label, metrics in quality.items())))
    console.print(f"Base: {folder.path / 'base.pt'}", highlight=False, soft_wrap=True)
