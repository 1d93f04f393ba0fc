"""Options that several subcommands share, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Core", "Data", "Name", "Overwrite", "Runs", "Seed", "Threads", "use_threads"]

Data = Annotated[
    Path | None,
    typer.Option(
        help="File or folder of interactions: MovieLens family, CSV or Parquet. Default: the built-in population."
    ),
]
Core = Annotated[int, typer.Option(help="Keep users and items with this many interactions, iteratively; 0 keeps all.")]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]
Name = Annotated[
    str | None,
    typer.Option(help="Name of the run folder. An unfinished run of this name and these settings is continued."),
]
Overwrite = Annotated[bool, typer.Option(help="Move a run folder of this name aside instead of refusing it.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random, so that a run can be repeated.")]
Threads = Annotated[int, typer.Option(help="Threads for arithmetic; 0 leaves the choice to PyTorch.")]


def use_threads(count: int) -> None:
    """Set PyTorch's threads, unless the count is 0."""
    if count > 0:
        import torch

        torch.set_num_threads(count)
