"""``ownlet rank-head``: train the second stage of a recommendation."""

from __future__ import annotations

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

__all__ = ["rank_head"]


def rank_head(
    base: Annotated[Path, typer.Option(help="The base.pt that `ownlet pretrain` left.")],
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="Items that the first stage hands over: the longest answer.")
    ] = 100,
    width: Annotated[int, typer.Option(min=1, help="Width of the head's hidden layer.")] = 8,
    epochs: Annotated[int, typer.Option(min=1, help="The most passes; early stopping ends sooner.")] = 60,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    seed: Seed = 0,
    runs: Runs = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Train a small network that orders the candidates of a base, on held-out public users; test it on devices.

    Data and seed must be those of the base's own run, so that the same users are held out. Leaves ranking.safetensors
    in the run folder, for `ownlet export --ranking-head`.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.shared.ranking import RankingConfig
    from ownlet.simulations.findings import quality_row
    from ownlet.simulations.ranking import TrainRankingConfig
    from ownlet.simulations.ranking_run import RankingRunConfig, run_ranking
    from ownlet.simulations.report import quality_table
    from ownlet.simulations.results import RunFolder
    from ownlet.simulations.setting import DataConfig

    use_threads(threads)
    config = RankingRunConfig(
        base=base,
        data=DataConfig(path=data, columns=column_pairs(columns), core=core, seed=seed, public_before=public_before),
        shape=RankingConfig(num_candidates=candidates, width=width),
        recipe=TrainRankingConfig(max_epochs=epochs, learning_rate=learning_rate, seed=seed),
    )
    folder = RunFolder.create(runs, "rank-head", config, seed, name=name, overwrite=overwrite)
    console = Console()
    with folder.discarded_on_refusal(), progress_bars(console) as progress:
        result = run_ranking(config, folder, progress)
    gains = {"ranked": result.gain}
    console.print(
        quality_table(tuple(quality_row(label, found, gains.get(label)) for label, found in result.quality.items()))
    )
    console.print(f"Ranking head: {result.path}", highlight=False, soft_wrap=True)
