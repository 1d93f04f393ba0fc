"""``ownlet bench quality``: how good each method is at each epsilon, on several data sets."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated

import typer

from ownlet.cli.interrupted import says_when_interrupted

__all__ = ["quality"]


def quality(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder or file of interactions; may be given several times. Default: the built-in population."
        ),
    ] = None,
    methods: Annotated[str, typer.Option(help="Adapter methods, with commas; empty: all.")] = "",
    epsilons: Annotated[str, typer.Option(help="User-level epsilons, with commas; none is a run without noise.")] = (
        "none,8,4,2,1"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    rates: Annotated[str, typer.Option(help="Local learning rates that are tried in the rehearsal.")] = "0.3,1,3,10",
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds.")] = 30,
    cohort: Annotated[
        int, typer.Option(min=1, help="Devices in a round, on average, at the most a fifth of all.")
    ] = 800,
    window_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Events in a window that devices train on. Default: 20, or as many as the base reads where half of "
            "the histories are longer.",
        ),
    ] = None,
    tested: Annotated[int, typer.Option(min=1, help="Devices that results are measured on, at the most.")] = 4000,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one per core.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of quality.json, .md, .png and the parts.")] = Path("bench"),
) -> None:
    """Compare adapter methods at every epsilon, beside the base, personal adapters and a centralised oracle.

    Everything that is tuned is tuned in a rehearsal on public users. What is done is kept in OUT/quality, so an
    interrupted benchmark goes on where it was; remove that folder to measure anew.
    """
    from dataclasses import replace
    from typing import get_args

    from rich.console import Console
    from rich.markdown import Markdown

    from ownlet.cli.progress import progress_bars
    from ownlet.shared.config import MethodName
    from ownlet.shared.errors import ConfigError
    from ownlet.simulations.quality import run_quality
    from ownlet.simulations.quality_config import QualityConfig, quality_data
    from ownlet.simulations.quality_report import markdown, write_quality

    wanted = [part.strip() for part in methods.split(",") if part.strip()]
    known: tuple[MethodName, ...] = get_args(MethodName)
    for name in wanted:
        if name not in known:
            raise ConfigError(f"methods must be among {', '.join(known)}, got {name!r}")
    console = Console()
    with (
        says_when_interrupted(f"stopped; the same command goes on with what is in {out}"),
        progress_bars(console) as progress,
    ):
        sources: list[Path | None] = [*data] if data else [None]
        config = QualityConfig(
            data=tuple(
                quality_data(path, cohort=cohort, tested=tested, window_length=window_length) for path in sources
            ),
            methods=tuple(name for name in known if name in wanted or not wanted),
            epsilons=tuple(math.inf if part.strip() == "none" else _number(part) for part in epsilons.split(",")),
            seeds=tuple(int(_number(part)) for part in seeds.split(",")),
            rates=tuple(_number(part) for part in rates.split(",")),
        )
        config = replace(config, federation=replace(config.federation, rounds=rounds))
        results = run_quality(config, out / "quality", progress, workers=workers or os.cpu_count() or 1)
        paths = write_quality(config, results, out, progress)
    console.print(Markdown(markdown(config, results, intervals=False)))
    for path in paths:
        console.print(str(path), highlight=False, soft_wrap=True)


def _number(text: str) -> float:
    from ownlet.shared.errors import ConfigError

    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"lists must hold numbers, got {text!r}") from error
