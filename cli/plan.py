"""``ownlet plan``: what privacy costs, before anything runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ownlet.shared.privacy_plan import PlanRow, PrivacyPlan
    from ownlet.shared.releases import Release

__all__ = ["plan"]


def plan(
    unit: Annotated[
        Literal["user", "window"],
        typer.Option(help="user: rounds with noise on the server. window: local DP-SGD on one device."),
    ] = "user",
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", "--target-epsilon", help="Budget of the whole run: find the noise.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise standard deviation divided by the clip: find the epsilon.")
    ] = None,
    dp_delta: Annotated[
        float,
        typer.Option("--delta", "--dp-delta", help="At which epsilon is stated; `simulate` and `serve` take 1e-5."),
    ] = 1e-6,
    users: Annotated[
        int | None, typer.Option(min=1, help="Users of the fleet: checks delta, and gives the noise on an average.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Unit user: federated rounds. Default: 30.")] = None,
    cohort_rate: Annotated[
        float | None, typer.Option(help="Unit user: chance of each user to be in a round. Default: 0.2.")
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Unit window: how often a device takes part; default: 1. Unit user: the most rounds that a user is "
            "in, in place of --cohort-rate.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Unit window: local steps per turn. Default: 1.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Unit window: in place of --steps, passes over windows.")] = None,
    sample_rate: Annotated[
        float | None, typer.Option(help="Unit window: chance of each window to be in a step. Default: 1.")
    ] = None,
    windows: Annotated[
        float | None, typer.Option(help="Unit window: windows that a device is taken to have; with --batch.")
    ] = None,
    batch: Annotated[
        float | None, typer.Option(help="Unit window: expected windows in a step, in place of --sample-rate.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Plan the privacy of a run: the noise that --epsilon takes, or the epsilon that --noise-multiplier gives.

    Shows what half and double of every number would cost, and epsilon at other deltas. `average` is the standard
    deviation of the noise on an average over the expected cohort or batch, in units of the clip: what the model feels.
    `rate` is what sampling amplifies by, `sums` how many noised sums one unit may be in.
    """
    from rich.console import Console

    from ownlet.shared.privacy_plan import plan_privacy

    if unit == "user":
        _refuse("user", steps=steps, epochs=epochs, sample_rate=sample_rate, windows=windows, batch=batch)
        release = _user_release(rounds, cohort_rate, turns, users)
    else:
        _refuse("window", rounds=rounds, cohort_rate=cohort_rate)
        release = _window_release(turns, steps, epochs, sample_rate, windows, batch)
    console = Console(stderr=as_json, highlight=False)
    with console.status("computing epsilons"):
        found = plan_privacy(
            release, dp_delta=dp_delta, target_epsilon=epsilon, noise_multiplier=noise_multiplier, num_users=users
        )
    if as_json:
        typer.echo(json.dumps(found.to_plain(), indent=2))
    else:
        _print(console, found, users)


def _refuse(unit: str, **options: float | None) -> None:
    """Raise ConfigError where an option is given that this unit has no use for."""
    from ownlet.shared.errors import require

    for name, value in options.items():
        require(value is None, f"{name} must not be given where unit is {unit}", **{name: value})


def _user_release(rounds: int | None, cohort_rate: float | None, turns: int | None, users: int | None) -> Release:
    from ownlet.shared.errors import require
    from ownlet.shared.releases import UserRelease

    require(
        turns is None or cohort_rate is None,
        "turns and cohort_rate must not be given together",
        turns=turns,
        cohort_rate=cohort_rate,
    )
    rate = 0.2 if cohort_rate is None else cohort_rate
    return UserRelease(rounds=rounds or 30, cohort_rate=1.0 if turns else rate, turns=turns or 0, num_users=users)


def _window_release(
    turns: int | None,
    steps: int | None,
    epochs: float | None,
    sample_rate: float | None,
    windows: float | None,
    batch: float | None,
) -> Release:
    from ownlet.shared.errors import require
    from ownlet.shared.releases import WindowRelease
    from ownlet.shared.sampling import sample_rate_for, steps_for_epochs

    require(steps is None or epochs is None, "steps and epochs must not be given together", steps=steps, epochs=epochs)
    if batch is not None:
        require(sample_rate is None, "sample_rate and batch must not be given together", sample_rate=sample_rate)
        require(windows is not None, "windows must be given with batch", windows=windows)
        assert windows is not None
        sample_rate = sample_rate_for(windows, batch)
    rate = 1.0 if sample_rate is None else sample_rate
    count = steps_for_epochs(epochs, rate) if epochs is not None else steps or 1
    return WindowRelease(turns=turns or 1, steps=count, sample_rate=rate, expected_windows=windows)


def _print(console: Console, found: PrivacyPlan, users: int | None) -> None:
    from rich.table import Table

    table = Table("", "epsilon", "noise multiplier", "average", "rate", "sums", box=None, pad_edge=False)
    for row in (found.chosen, *found.alternatives):
        table.add_row(*_cells(row), style="bold" if row is found.chosen else "")
    console.print(f"Privacy of one {found.unit}, adding or removing it, at delta {found.dp_delta:g}.")
    console.print(table)
    console.print()
    curve = Table("delta", "epsilon", box=None, pad_edge=False)
    for delta, epsilon in found.curve:
        curve.add_row(f"{delta:g}", f"{epsilon:.3f}", style="bold" if delta == found.dp_delta else "")
    console.print(curve)
    for warning in found.warnings:
        console.print(f"Warning: {warning}", style="yellow")
    if users is None:
        console.print("Whether delta is far below 1/users was not checked: no --users.")


def _cells(row: PlanRow) -> tuple[str, ...]:
    average = "" if row.average_noise is None else f"{row.average_noise:.3g}"
    return (
        row.label,
        f"{row.epsilon:.3f}",
        f"{row.noise_multiplier:.4g}",
        average,
        f"{row.sample_rate:g}",
        f"{row.sums}",
    )
