"""``ownlet pretrain``: train a base."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ownlet.cli.options import (
    Columns,
    Core,
    Data,
    Name,
    Overwrite,
    PublicBefore,
    Runs,
    Seed,
    Threads,
    column_pairs,
    use_threads,
)

__all__ = ["pretrain"]


class Users(StrEnum):
    """Who the base is trained on."""

    public = "public"
    everybody = "all"


def pretrain(
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    users: Annotated[
        Users, typer.Option(help="public: 30 % of users, tested on the others. all: everybody, leave-one-out.")
    ] = Users.public,
    epochs: Annotated[
        int, typer.Option(min=1, help="The most passes over the users; early stopping ends sooner.")
    ] = 60,
    dim: Annotated[int, typer.Option(min=2, help="Width of the hidden states.")] = 64,
    layers: Annotated[int, typer.Option(min=1, help="Transformer blocks.")] = 2,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    context: Annotated[
        str,
        typer.Option(
            help="What the base reads of the moment of each question: any of gap, hour, weekday, period, and "
            "NAME=COLUMN for a column that is known before the item is, such as device=device_type."
        ),
    ] = "",
    utc_offset_hours: Annotated[float, typer.Option(help="Of --context hour and weekday.")] = 0.0,
    period_days: Annotated[float, typer.Option(help="Length of a period of --context period.")] = 30.0,
    seed: Seed = 0,
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
    from ownlet.shared.config import ModelConfig
    from ownlet.simulations.base_run import BaseRunConfig, run_pretrain
    from ownlet.simulations.findings import quality_row
    from ownlet.simulations.moments import ContextRequest
    from ownlet.simulations.pretrain import PretrainConfig
    from ownlet.simulations.report import quality_table
    from ownlet.simulations.results import RunFolder
    from ownlet.simulations.setting import DataConfig

    use_threads(threads)
    config = BaseRunConfig(
        data=DataConfig(path=data, columns=column_pairs(columns), core=core, seed=seed, public_before=public_before),
        users=users.value,
        model=ModelConfig(dim=dim, num_layers=layers),
        context=ContextRequest(
            fields=tuple(part.strip() for part in context.split(",") if part.strip()),
            utc_offset_hours=utc_offset_hours,
            period_days=period_days,
        ),
        recipe=PretrainConfig(max_epochs=epochs, learning_rate=learning_rate, seed=seed),
    )
    folder = RunFolder.create(runs, "pretrain", config, seed, name=name, overwrite=overwrite)
    console = Console()
    with folder.discarded_on_refusal(), progress_bars(console) as progress:
        quality = run_pretrain(config, folder, progress)
    console.print(quality_table(tuple(quality_row(label, metrics) for label, metrics in quality.items())))
    console.print(f"Base: {folder.path / 'base.pt'}", highlight=False, soft_wrap=True)
