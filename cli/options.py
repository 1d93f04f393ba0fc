"""Options that several subcommands share, so that they mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ownlet.shared.errors import DataError, require

__all__ = [
    "Columns",
    "Context",
    "Core",
    "Data",
    "Name",
    "Negatives",
    "Objective",
    "Overwrite",
    "PeriodDays",
    "PublicBefore",
    "Runs",
    "Sampling",
    "Seed",
    "StatusPort",
    "StatusRegistry",
    "TensorBoard",
    "Threads",
    "UtcOffsetHours",
    "check_registry",
    "column_pairs",
    "use_threads",
]


def _checked_port(port: int | None) -> int | None:
    require(port is None or 0 <= port <= 65535, "status port must be 0 to 65535", status_port=port)
    return port


Objective = Annotated[
    Literal["softmax", "bpr", "bce", "listnet", "lambda"],
    typer.Option(help="The loss; all but the full softmax need --negatives of 1 or more."),
]
Negatives = Annotated[
    int, typer.Option(min=0, help="Items per window that stand for the catalogue in the loss; 0: all, softmax only.")
]
Sampling = Annotated[
    Literal["uniform", "popularity", "in-batch", "hard"],
    typer.Option(help="How they are drawn; popularity counts public users' events only."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="File or folder of interactions: MovieLens family, CSV, Parquet, or a .txt of lines 'user item item ...'. "
        "Default: the built-in population."
    ),
]
Columns = Annotated[
    str,
    typer.Option(
        help="Column names of a CSV or Parquet file: user=customer,item=product,timestamp=bought_at. Optional: "
        "rating=NAME; any other pair keeps that column as context."
    ),
]
Context = Annotated[
    str,
    typer.Option(
        help="What the base reads of the moment of each question: any of gap, hour, weekday, period, and NAME=COLUMN "
        "for a column that is known before the item is, such as device=device_type."
    ),
]
UtcOffsetHours = Annotated[float, typer.Option(help="Of --context hour and weekday.")]
PeriodDays = Annotated[float, typer.Option(help="Length of a period of --context period.")]
Core = Annotated[int, typer.Option(help="Keep users and items with this many interactions, iteratively; 0 keeps all.")]
PublicBefore = Annotated[
    str | None,
    typer.Option(
        help="ISO date: users seen before it are public, with their events before it; others are devices. What "
        "held-out public users did later judges adapters."
    ),
]
Runs = Annotated[Path, typer.Option(help="Folder of all runs.")]
Name = Annotated[
    str | None,
    typer.Option(help="Name of the run folder. An unfinished run of this name and these settings is continued."),
]
Overwrite = Annotated[bool, typer.Option(help="Move a run folder of this name aside instead of refusing it.")]
TensorBoard = Annotated[
    Path | None, typer.Option("--tensorboard", help="TensorBoard's --logdir, to watch the run there.")
]
Seed = Annotated[
    int,
    typer.Option(
        help="Seed of everything random, so that a run can be repeated. It also decides who is public, so what is run "
        "on a base has the base's."
    ),
]
StatusPort = Annotated[
    int | None,
    typer.Option(
        help="Serve a status page and Prometheus metrics on this port, here only; 0 to 65535, 0 takes a free one.",
        callback=_checked_port,
    ),
]
StatusRegistry = Annotated[Path | None, typer.Option("--registry", help="Registry to show on the status page, too.")]
Threads = Annotated[int, typer.Option(help="Threads for arithmetic; 0 leaves the choice to PyTorch.")]


def check_registry(folder: Path | None) -> None:
    """Make sure that a registry that is to be shown is there.

    Raises:
        DataError: it is not.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"registry must be a folder (`ownlet registry publish RUN` makes one), got {folder}")


def column_pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read ``role=name,role=name``.

    Raises:
        ConfigError: a part is not ``role=name``.
    """
    pairs = [tuple(part.strip() for part in pair.split("=", 1)) for pair in text.split(",") if pair.strip()]
    for pair in pairs:
        require(len(pair) == 2 and all(pair), "columns must be pairs role=name", columns=text)
    return tuple((role, name) for role, name in pairs)


def use_threads(count: int) -> None:
    """Set PyTorch's threads, unless the count is 0."""
    if count > 0:
        import torch

        torch.set_num_threads(count)
