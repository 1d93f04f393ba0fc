"""``ownlet registry count|collect|verdict|watch|observe``: what devices report, and what follows from it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ownlet.cli.registry import Json, RegistryFolder, WithoutPrivacy, open_registry
from ownlet.cli.registry_text import serving, watching

__all__ = ["collect", "count", "observe", "stop_count", "verdict", "watch"]


def count(
    name: Annotated[str, typer.Argument(help="A new name; that of the experiment, too.")],
    impressions: Annotated[int, typer.Option(help="First impressions of a device that are looked at.")] = 20,
    epsilon: Annotated[float, typer.Option(help="What one report costs a device, charged to its ledger.")] = 1.0,
    b: Annotated[int | None, typer.Option("--b", help="Experiment: the version that is asked about.")] = None,
    a: Annotated[int, typer.Option("--a", help="The version to compare with; 0 is the bundle's own adapter.")] = 0,
    percent: Annotated[float, typer.Option(help="Share of devices in the experiment, half in each arm.")] = 10.0,
    alpha: Annotated[float, typer.Option(help="Experiment: chance to be wrong about the arms, ever.")] = 0.05,
    expected_reports: Annotated[int, typer.Option(help="Reports at which the test is at its best.")] = 100_000,
    without_privacy: WithoutPrivacy = False,
    registry: RegistryFolder = Path("registry"),
) -> None:
    """Ask devices for one private bit each about their hits; with --b compare two versions."""
    from ownlet.shared.counters import CountTerms

    terms = CountTerms(count=name, impressions=impressions, epsilon=epsilon)
    opened = open_registry(registry)
    if b is None:
        state = opened.start_count(terms)
    else:
        state = opened.start_experiment(
            terms,
            a=a,
            b=b,
            percent=percent,
            alpha=alpha,
            expected_reports=expected_reports,
            without_privacy=without_privacy,
        )
    typer.echo(f"{state.log[-1].what}; one bit of each device at ε = {epsilon:g}")


def stop_count(
    registry: RegistryFolder = Path("registry"), why: Annotated[str, typer.Option(help="Reason, for the log.")] = ""
) -> None:
    """Ask for no more reports; an experiment ends with its count."""
    typer.echo(open_registry(registry).stop_count(why).log[-1].what)


def collect(
    reports: Annotated[Path, typer.Argument(help="File of JSON lines, as devices sent them; - for standard input.")],
    registry: RegistryFolder = Path("registry"),
) -> None:
    """Take in reports of the present count, each once; what is no report is named and left out."""
    from ownlet.shared.errors import DataError

    opened = open_registry(registry)
    try:
        text = sys.stdin.read() if str(reports) == "-" else reports.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"reports must be readable text, got {reports}: {error}") from error
    collected = opened.collect(text.split("\n"))
    typer.echo(f"{len(collected.new)} new, {collected.repeated} repeated, {len(collected.refused)} refused")
    for reason in collected.refused[:20]:
        typer.echo(f"  {reason}", err=True)
    typer.echo(serving(opened.rollout()))


def verdict(
    name: Annotated[str, typer.Argument(help="Of the experiment.")],
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Say what may be said about an experiment now. It may be asked as often as one likes."""
    tally, found = open_registry(registry).verdict(name)
    if as_json:
        typer.echo(json.dumps({**asdict(tally), **asdict(found)}, sort_keys=True))
        return
    said = f"arm {found.better} is better" if found.better else "undecided"
    if found.unequal:
        said = "no verdict: the arms sent reports unequally, so something kept one of them from reporting"
    typer.echo(f"{name}: {said}")
    typer.echo(
        f"Hit rate of b minus a: {found.lift:+.4f} ({found.low:+.4f} to {found.high:+.4f} at any time), "
        f"{tally.reports_a} and {tally.reports_b} reports"
    )


def watch(
    ctx: typer.Context,
    baseline: Annotated[
        float | None,
        typer.Option(help="Mean in [0, 1] that must not be fallen below; starts a watch, in place of any before."),
    ] = None,
    drop: Annotated[float, typer.Option(help="Fall that matters.")] = 0.02,
    scale: Annotated[float, typer.Option(help="Standard error of one value that `observe` is given.")] = 0.005,
    bits: Annotated[
        bool, typer.Option("--bits", help="Watch the reports of devices on the candidate instead.")
    ] = False,
    false_alarm_every: Annotated[float, typer.Option(help="Values between two false alarms, at least.")] = 1e6,
    stop: Annotated[bool, typer.Option("--stop", help="Watch no longer.")] = False,
    registry: RegistryFolder = Path("registry"),
) -> None:
    """Watch quality, and pause the rollout where it falls; `resume` goes on. Without options: say what is watched."""
    from ownlet.server.drift import DropDetector
    from ownlet.shared.errors import ConfigError, require

    opened = open_registry(registry)
    given = _given(ctx, ("baseline", "drop", "scale", "bits", "false_alarm_every"))
    if stop:
        require(not given, "--stop must stand alone", given=given)
        typer.echo(opened.watch(None).log[-1].what)
        return
    if not given:
        typer.echo(watching(opened.rollout()))
        return
    if baseline is None:
        raise ConfigError(f"baseline must be given to start a watch, got {', '.join(given)} alone")
    require(not (bits and "--scale" in given), "scale must not be given with --bits, which have their own", scale=scale)
    scale = 0.5 if bits else scale
    detector = DropDetector(
        baseline=baseline, drop=drop, scale=scale, of_bits=bits, false_alarm_every=false_alarm_every
    )
    said = opened.watch(detector).log[-1].what
    typer.echo(f"{said}; a fall of {drop:g} is found after about {detector.expected_delay:,.0f} values")


def observe(
    values: Annotated[list[float], typer.Argument(help="Quality, measured anew: NDCG@10 on public users, say.")],
    registry: RegistryFolder = Path("registry"),
    as_json: Json = False,
) -> None:
    """Show the watch more values."""
    state = open_registry(registry).observe(values)
    plain: dict[str, Any] = {"watched": asdict(state.watched), "paused": state.paused}
    typer.echo(json.dumps(plain, sort_keys=True) if as_json else serving(state))


def _given(ctx: typer.Context, names: tuple[str, ...]) -> list[str]:
    """Return which of these options somebody typed."""
    sources = {name: ctx.get_parameter_source(name) for name in names}
    typed = [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]
    return [f"--{name.replace('_', '-')}" for name in typed]
