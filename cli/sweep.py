"""``ownlet sweep``: which rank, alpha, layers and learning rate to take."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from ownlet.cli.interrupted import says_how_to_go_on
from ownlet.cli.options import Columns, Core, Data, Name, Overwrite, PublicBefore, Runs, Seed, Threads, use_threads
from ownlet.cli.settings import Config, Set, read_settings

if TYPE_CHECKING:
    from rich.table import Table

    from ownlet.shared.metrics import Metric
    from ownlet.simulations.sweep import SweepResult

__all__ = ["OPTIONS", "sweep"]

OPTIONS = {
    "base": ("run.base",),
    "data": ("data.path",),
    "columns": ("data.columns",),
    "core": ("data.core",),
    "public_before": ("data.public_before",),
    "unit": ("federation.unit",),
    "target_epsilon": ("federation.target_epsilon",),
    "noise_multiplier": ("federation.noise_multiplier",),
    "rounds": ("federation.rounds",),
    "cohort_rate": ("federation.cohort_rate",),
    "method": ("adapter.method",),
    "seed": ("data.seed", "federation.seed"),
}
"""Option -> the settings that it stands for."""

T = TypeVar("T")


def sweep(
    ctx: typer.Context,
    config: Config = None,
    set_: Set = None,
    ranks: Annotated[str, typer.Option(help="Ranks to try, with commas.")] = "2,4,8",
    alphas: Annotated[str, typer.Option(help="Alphas to try, with commas. Default: twice each rank.")] = "",
    targets: Annotated[
        str, typer.Option(help="Layers to try: names joined by +, sets with commas, such as down,query+value.")
    ] = "",
    learning_rates: Annotated[
        str, typer.Option(help="Local learning rates to try, with commas. Default: that of the settings.")
    ] = "",
    base: Annotated[Path | None, typer.Option(help="The base.pt that `ownlet pretrain` left.")] = None,
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    unit: Annotated[
        Literal["user", "none"], typer.Option(help="user: delta clipped, noise on the server. none: no privacy.")
    ] = "user",
    target_epsilon: Annotated[float | None, typer.Option(help="Of each run; with unit user it sets the noise.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise standard deviation divided by the clip, instead.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds of each run.")] = 30,
    cohort_rate: Annotated[float, typer.Option(help="Chance of each user to be in a round.")] = 0.2,
    method: Annotated[
        Literal["lora", "lora-frozen-a", "fedsvd", "rolora", "iak", "bottleneck", "prefix"],
        typer.Option(help="How the base is adapted."),
    ] = "lora-frozen-a",
    seed: Seed = 0,
    runs: Runs = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Run a federation for every rank, alpha, set of layers and learning rate, judged on held-out public users only.

    Devices' results are not computed: choosing by them would spend privacy that nobody counts. All other settings are
    those of `ownlet simulate` (--config, --set). With --name, runs that are done are not done again.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.simulations.derived import derived_settings, noise_for_target
    from ownlet.simulations.federated_run import FederatedRunConfig
    from ownlet.simulations.results import RunFolder
    from ownlet.simulations.sweep import SweepConfig, run_sweep

    use_threads(threads)
    read = read_settings("simulate", FederatedRunConfig, ctx, OPTIONS, file=config, sets=set_, derive=derived_settings)
    settings = SweepConfig(
        run=noise_for_target(read.config, read.given),
        ranks=_list(ranks, "ranks", int),
        alphas=_list(alphas, "alphas", float),
        targets=_list(targets, "targets", lambda text: tuple(text.split("+"))),
        learning_rates=_list(learning_rates, "learning_rates", float),
    )
    folder = RunFolder.create(runs, "sweep", settings, settings.run.federation.seed, name=name, overwrite=overwrite)
    console = Console()
    with says_how_to_go_on(name, overwrite), folder.discarded_on_refusal(), progress_bars(console) as progress:
        result = run_sweep(settings, folder, progress)
    console.print(_table(result))
    told = f"Tuning budget: {len(result.cells)} runs, judged on public users only. The best of many is a little lucky."
    if math.isfinite(result.total_epsilon):
        told += (
            f" One fleet that ran them all would spend ε = {result.total_epsilon:.3f} at "
            f"δ = {settings.run.federation.dp_delta:g}."
        )
    console.print(told, highlight=False)
    console.print(f"Picture: {folder.path / 'sweep.png'}", highlight=False, soft_wrap=True)


def _list(text: str, name: str, read: Callable[[str], T]) -> tuple[T, ...]:
    from ownlet.shared.errors import ConfigError

    try:
        return tuple(read(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(f"{name} must be numbers with commas between, got {text!r}") from None


def _table(result: SweepResult) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="NDCG@10 on held-out public users", title_justify="left", box=SIMPLE_HEAD)
    for column in ("rank", "alpha"):
        table.add_column(column, justify="right")
    table.add_column("layers")
    for column in ("rate", "trained", "ε", "NDCG@10"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("", "", "base", "", "0", "", _quality(result.base), style="bold")
    for found in result.cells:
        cell = found.cell
        spent = f"{found.epsilon:.2f}" if math.isfinite(found.epsilon) else "∞"
        numbers = (str(cell.rank), f"{cell.alpha:g}", ", ".join(cell.targets), f"{cell.learning_rate:g}")
        table.add_row(*numbers, f"{found.num_trained:,}", spent, _quality(found.ndcg))
    return table


def _quality(metric: Metric) -> str:
    return f"{metric.value:.4f}\n[dim]{metric.low:.4f}…{metric.high:.4f}[/dim]"
