"""``ownlet store``: write a population that need not fit into memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ownlet.cli.options import Columns, column_pairs

__all__ = ["store"]


def store(
    base: Annotated[Path, typer.Option(help="The base.pt that `ownlet pretrain` left; the store gets its catalogue.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    users: Annotated[
        int | None,
        typer.Option(min=1, help="Users of the built-in population to draw; none of those that pretrain knows."),
    ] = None,
    items: Annotated[int, typer.Option(help="Items of the built-in population that the base was trained on.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the built-in population that the base was trained on.")] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help="File or folder of interactions instead: MovieLens family, CSV or Parquet, of any size."),
    ] = None,
    columns: Columns = "",
    min_events: Annotated[
        int, typer.Option(min=0, help="With --data: drop users with fewer events of items that the base knows.")
    ] = 2,
    overwrite: Annotated[bool, typer.Option(help="Replace a store of this name once the new one is whole.")] = False,
) -> None:
    """Write a population of any size for `ownlet simulate --store`, without holding it in memory.

    Either --users draws users of the built-in population, or --data reads a file. Dropped are events of items that the
    base does not know, and users whom it has learned from. The folder appears when it is whole; an interrupted one is
    begun anew.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.shared.errors import ConfigError
    from ownlet.simulations.population import BLOCK_USERS
    from ownlet.simulations.pretrain import load_catalogue
    from ownlet.simulations.provenance import known_users, recorded_data
    from ownlet.simulations.setting import DataConfig
    from ownlet.simulations.store_build import write_population_store, write_table_store

    if (users is None) == (data is None):
        raise ConfigError(f"store must have --users or --data, got {'neither' if data is None else 'both'}")
    started = time.monotonic()
    catalogue = load_catalogue(base)
    console = Console()
    with progress_bars(console) as progress:
        if users is not None:
            trained_on = recorded_data(base) or DataConfig()
            report = write_population_store(
                out,
                catalogue,
                num_users=users,
                num_items=items,
                seed=seed,
                first_user=-(-trained_on.num_users // BLOCK_USERS) * BLOCK_USERS,
                overwrite=overwrite,
                progress=progress,
            )
        else:
            assert data is not None
            report = write_table_store(
                out,
                catalogue,
                data,
                columns=column_pairs(columns),
                min_events=min_events,
                without=known_users(base, data),
                overwrite=overwrite,
                progress=progress,
            )
    size_bytes = sum(file.stat().st_size for file in out.iterdir())
    console.print(
        f"{out}: {report.num_users:,} users, {report.num_events:,} events, {size_bytes:,} bytes, "
        f"{time.monotonic() - started:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"Dropped: {report.unknown_events:,} events of items that the base does not know, {report.short_users:,} users "
        f"with too few others, {report.known_users:,} users whom the base knows.",
        highlight=False,
        soft_wrap=True,
    )
