"""``ownlet domains``: an adapter per region, period or shop on top of a finished run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ownlet.cli.options import Threads, use_threads

if TYPE_CHECKING:
    from rich.table import Table

    from ownlet.shared.metrics import Metric
    from ownlet.simulations.domain_run import DomainsDone

__all__ = ["domains"]


def domains(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of `ownlet simulate`; all start from it.")],
    by: Annotated[
        str,
        typer.Option(
            help="Column of the data, or period. A device trains in the domain of its latest training event and is "
            "asked in that of its test event."
        ),
    ] = "region",
    period_days: Annotated[float, typer.Option(help="Length of a period of --by period, from 1970 on.")] = 30.0,
    out: Annotated[Path, typer.Option(help="File of all adapters, for Personalizer.activate.")] = Path(
        "domains.safetensors"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds of every domain.")] = 10,
    target_epsilon: Annotated[
        float,
        typer.Option(help="Of a domain's rounds, besides what the run spent. Unused where it had no noise."),
    ] = 2.0,
    min_devices: Annotated[int, typer.Option(min=1, help="A domain with fewer keeps the run's adapter.")] = 50,
    base: Annotated[Path | None, typer.Option(help="Base of the run, if it is not where its settings say.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of cohorts and noise, so that the rounds can be repeated.")] = 0,
    threads: Threads = 0,
) -> None:
    """Federate every domain's own devices from a run's adapter on.

    A domain is served by an adapter of its own only where held-out public users of that domain are no worse with it;
    all others keep the run's.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.simulations.domain_run import DomainRunConfig, run_domains

    use_threads(threads)
    config = DomainRunConfig(
        run=run,
        by=by,
        period_days=period_days,
        rounds=rounds,
        target_epsilon=target_epsilon,
        min_devices=min_devices,
        base=base,
        seed=seed,
    )
    console = Console()
    with progress_bars(console) as progress:
        done = run_domains(config, out, progress)
    console.print(_table(done, by))
    console.print(f"All devices: {_gain(done.gain)} in NDCG@10.", highlight=False)
    if done.late is not None:
        console.print(
            f"Served by the adapter of the period before: {_gain(done.late)}. An app names the current period at every "
            "start.",
            highlight=False,
        )
    if math.isfinite(done.epsilon):
        console.print(
            f"Spent by a user in its domain's rounds: ε at most {done.epsilon:.3f}; with the run before: "
            f"{done.composed:.3f}.",
            highlight=False,
        )
    console.print(f"Adapters: {out}", highlight=False, soft_wrap=True)


def _table(done: DomainsDone, column: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="What serves each domain", title_justify="left", box=SIMPLE_HEAD)
    for name in (column, "devices", "questions", "served by", "gain in NDCG@10 over the run"):
        table.add_column(name, justify="left" if name in (column, "served by") else "right")
    for row in done.rows:
        served, gain = "its own" if row.served else "the run's", "" if row.gain is None else _gain(row.gain)
        table.add_row(row.domain, f"{row.devices:,}", f"{row.questions:,}", served, gain)
    return table


def _gain(metric: Metric) -> str:
    return f"{metric.value:+.4f} ({metric.low:+.4f} to {metric.high:+.4f})"
