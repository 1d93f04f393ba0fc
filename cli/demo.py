"""``ownlet demo``: the whole flow, from interactions to a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ownlet.cli.interrupted import says_how_to_go_on
from ownlet.cli.options import (
    Columns,
    Context,
    Core,
    Data,
    Name,
    Overwrite,
    PeriodDays,
    PublicBefore,
    Runs,
    TensorBoard,
    UtcOffsetHours,
)
from ownlet.cli.settings import Config, Set, read_settings

if TYPE_CHECKING:
    from ownlet.shared.settings import Given

__all__ = ["DERIVED", "OPTIONS", "demo"]

OPTIONS = {
    "data": ("data.path",),
    "columns": ("data.columns",),
    "core": ("data.core",),
    "public_before": ("data.public_before",),
    "seeds": ("run.seeds",),
    "public_fraction": ("data.public_fraction",),
    "rounds": ("federation.rounds",),
    "context": ("context.fields",),
    "utc_offset_hours": ("context.utc_offset_hours",),
    "period_days": ("context.period_days",),
}
"""Option -> the settings that it stands for."""

DERIVED = {"data.public_fraction": "by default 0.1 for the built-in population, else 0.3"}
"""Name of a setting -> what it is where nobody gives it."""


def demo(
    ctx: typer.Context,
    config: Config = None,
    set_: Set = None,
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds to average over.")] = 3,
    public_fraction: Annotated[
        float | None,
        typer.Option(help="Share of users that is public. Default: 0.3 with --data, 0.1 for the built-in population."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds of each run.")] = 30,
    context: Context = "",
    utc_offset_hours: UtcOffsetHours = 0.0,
    period_days: PeriodDays = 30.0,
    tensorboard: TensorBoard = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole flow: base, federated and personal adapters, bundle, report.

    On two cores this takes some minutes. It ends with a table of quality on device users, the privacy spent, bytes and
    latencies, and leaves a run folder with report.html, the bundle and machine-readable results.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.simulations.board import board_of
    from ownlet.simulations.demo import run_demo
    from ownlet.simulations.report import quality_table
    from ownlet.simulations.results import RunFolder
    from ownlet.simulations.trial import TrialConfig

    settings = read_settings("demo", TrialConfig, ctx, OPTIONS, file=config, sets=set_, derive=_derived).config
    folder = RunFolder.create(runs, "demo", settings, settings.seeds[0], name=name, overwrite=overwrite)
    console = Console()
    with (
        says_how_to_go_on(name, overwrite),
        folder.discarded_on_refusal(),
        board_of(tensorboard, folder.path.name) as board,
        progress_bars(console) as progress,
    ):
        result = run_demo(settings, folder, progress, board)
    report = result.report
    console.print()
    console.print(quality_table(report.quality))
    console.print(f"Intervals: {report.interval}.", highlight=False)
    for label, values in result.seed_ndcg.items():
        if len(values) > 1:
            console.print(f"  NDCG@10 by seed, {label}: " + ", ".join(f"{v:.4f}" for v in values), highlight=False)
    for row in report.privacy:
        console.print(
            f"{row.label}: ε = {row.epsilon:.3f} at δ = {row.dp_delta:g}, {row.unit} level, {row.rounds} rounds, "
            f"noise multiplier {row.noise_multiplier:.3f}",
            highlight=False,
        )
    up, down = report.bytes_up_per_user_round, report.bytes_down_per_user_round
    console.print(f"Wire: {up:,} bytes up and {down:,} down per user and round.", highlight=False)
    for latency in report.latencies:
        console.print(
            f"{latency.method}: {latency.pte_ms:.2f} ms in the .pte, {latency.eager_ms:.2f} ms in eager PyTorch",
            highlight=False,
        )
    console.print(
        f"Program: {report.program_bytes:,} bytes. A fresh process with the bundle gave the simulation's "
        f"recommendations on {result.agreement.equal} of {result.agreement.asked} devices.",
        highlight=False,
    )
    if not all(result.published):
        console.print(
            f"Not published in {result.published.count(False)} of {len(result.published)} seeds: the adapter was below "
            "the base on held-out public users, so the base was shipped instead.",
            highlight=False,
        )
    console.print(f"Report: {result.page}\nBundle: {result.bundle}", highlight=False, soft_wrap=True)


def _derived(given: Mapping[str, Given]) -> dict[str, Given]:
    from ownlet.shared.settings import DEFAULTS, Given

    if "data.path" in given:
        return dict(given)
    # The built-in population is so easy that a base on more users leaves nothing to learn.
    return {"data.public_fraction": Given(value=0.1, source=DEFAULTS)} | dict(given)
