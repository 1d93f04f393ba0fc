"""``ownlet simulate``: federated rounds on one machine."""

from __future__ import annotations

import math
from enum import StrEnum
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

__all__ = ["simulate"]


class Unit(StrEnum):
    """What the privacy promise protects."""

    user = "user"
    window = "window"
    none = "none"


class ScheduleChoice(StrEnum):
    """How a learning rate falls."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class MethodChoice(StrEnum):
    """How the base is adapted."""

    lora = "lora"
    lora_frozen_a = "lora-frozen-a"
    fedsvd = "fedsvd"
    iak = "iak"
    bottleneck = "bottleneck"
    prefix = "prefix"


class EngineChoice(StrEnum):
    """What trains a user."""

    cohort = "cohort"
    opacus = "opacus"
    executorch = "executorch"


class PrecisionChoice(StrEnum):
    """Numbers that the cohort engine computes with."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class GridChoice(StrEnum):
    """Where the nodes live."""

    in_process = "in-process"
    ray = "ray"


def simulate(
    base: Annotated[Path, typer.Option(help="The base.pt that `ownlet pretrain` left.")],
    data: Data = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    store: Annotated[
        Path | None, typer.Option(help="Population of any size that `ownlet store` wrote, in place of --data.")
    ] = None,
    sampled_users: Annotated[
        int, typer.Option(min=1, help="With --store: devices, drawn at random, that the result is measured on.")
    ] = 2000,
    public_users: Annotated[
        int, typer.Option(min=1, help="With --store: users at its end that are public and decide about publication.")
    ] = 1000,
    unit: Annotated[
        Unit, typer.Option(help="user: delta clipped, noise on the server. window: local DP-SGD. none: no privacy.")
    ] = Unit.user,
    target_epsilon: Annotated[
        float | None,
        typer.Option(help="Stop before a round that would exceed it. With unit user it also sets the noise."),
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option(help="Noise standard deviation divided by the clip: server (user) or device (window)."),
    ] = None,
    dp_delta: Annotated[float, typer.Option(help="The delta at which epsilon is stated.")] = 1e-5,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds.")] = 30,
    cohort_rate: Annotated[float, typer.Option(help="Chance of each user to be in a round.")] = 0.2,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations on public users.")] = 5,
    clip_norm: Annotated[float, typer.Option(help="Largest L2 norm of a user's delta.")] = 0.3,
    steps: Annotated[int, typer.Option(min=1, help="Local steps in a round.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the local steps.")] = 0.3,
    window_clip_norm: Annotated[float, typer.Option(help="Unit window: largest norm of a window's gradient.")] = 0.3,
    window_rate: Annotated[float, typer.Option(help="Unit window: chance of each window to be in a step.")] = 0.5,
    negatives: Annotated[
        int, typer.Option(min=0, help="Random items per window that stand for the catalogue in the softmax; 0: all.")
    ] = 0,
    expected_batch: Annotated[float, typer.Option(help="Public number that a gradient sum is divided by.")] = 1.0,
    server_learning_rate: Annotated[float, typer.Option(help="Of the server's momentum step.")] = 1.0,
    server_momentum: Annotated[float, typer.Option(help="Of the server's momentum step.")] = 0.9,
    schedule: Annotated[
        ScheduleChoice, typer.Option(help="How the server's learning rate falls over the rounds.")
    ] = ScheduleChoice.constant,
    warmup_rounds: Annotated[int, typer.Option(min=0, help="Rounds in which the server's learning rate rises.")] = 0,
    patience: Annotated[
        int,
        typer.Option(min=0, help="Stop after so many evaluations without a better one, and keep the best; 0: never."),
    ] = 0,
    weight_decay: Annotated[float, typer.Option(help="Of the local steps, towards the base.")] = 0.0,
    window_length: Annotated[int, typer.Option(min=2, help="Events in a window.")] = 20,
    context_length: Annotated[int, typer.Option(min=0, help="Earlier events a window may see; 0 for unit window.")] = 0,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    method: Annotated[MethodChoice, typer.Option(help="How the base is adapted.")] = MethodChoice.lora_frozen_a,
    engine: Annotated[EngineChoice, typer.Option(help="What trains a user.")] = EngineChoice.cohort,
    nodes: Annotated[int, typer.Option(min=1, help="Flower nodes; never changes the result.")] = 1,
    grid: Annotated[
        GridChoice, typer.Option(help="in-process, or ray: nodes are processes, on one machine or a cluster.")
    ] = GridChoice.in_process,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, auto for this machine's. Default: start one here.")
    ] = None,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="Of the cohort engine's arithmetic; bfloat16 is an approximation.")
    ] = PrecisionChoice.float32,
    device: Annotated[str, typer.Option(help="Of the cohort engine: cpu, cuda.")] = "cpu",
    seed: Seed = 0,
    runs: Runs = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Run federated rounds over the device users, with the server and client apps that a deployment runs.

    Cohorts and noise are seeded, so a run can be repeated; a deployment draws both from the operating system. With
    --name an interrupted run is continued from its last round and ends with the same adapter.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.shared.config import AdapterConfig, FederationConfig, Plan, WindowConfig
    from ownlet.shared.errors import ConfigError
    from ownlet.shared.privacy import noise_multiplier_for
    from ownlet.simulations.federated_run import FederatedRunConfig, run_federated
    from ownlet.simulations.findings import quality_row
    from ownlet.simulations.report import quality_table
    from ownlet.simulations.results import RunFolder
    from ownlet.simulations.setting import DataConfig

    use_threads(threads)
    if store is not None and data is not None:
        raise ConfigError(f"data and store must not be given together, got {data} and {store}")
    if unit is not Unit.none and target_epsilon is None and noise_multiplier is None:
        raise ConfigError(f"unit {unit.value} must have --target-epsilon or --noise-multiplier, got neither")
    if unit is Unit.window and noise_multiplier is None:
        raise ConfigError("unit window must have --noise-multiplier, got none")
    server_noise = noise_multiplier if unit is Unit.user else 0.0
    if server_noise is None and target_epsilon is not None:
        server_noise = noise_multiplier_for(
            target_epsilon=target_epsilon, dp_delta=dp_delta, cohort_rate=cohort_rate, rounds=rounds
        )
    local = unit is Unit.window
    federation = FederationConfig(
        rounds=rounds,
        cohort_rate=cohort_rate,
        unit=unit.value,
        clip_norm=clip_norm,
        noise_multiplier=server_noise or 0.0,
        server_learning_rate=server_learning_rate,
        server_momentum=server_momentum,
        schedule=schedule.value,
        warmup_rounds=warmup_rounds,
        patience=patience,
        dp_delta=dp_delta,
        target_epsilon=math.inf if target_epsilon is None or unit is Unit.none else target_epsilon,
        seed=seed,
        plan=Plan(
            steps=steps,
            learning_rate=learning_rate,
            expected_batch=expected_batch,
            num_negatives=negatives,
            weight_decay=weight_decay,
            sample_rate=window_rate if local else 1.0,
            clip_norm=window_clip_norm if local else math.inf,
            noise_multiplier=noise_multiplier or 0.0 if local else 0.0,
        ),
        windows=WindowConfig(window_length=window_length, context_length=context_length),
    )
    config = FederatedRunConfig(
        base=base,
        store=store,
        public_users=public_users,
        sampled_users=sampled_users,
        data=DataConfig(path=data, columns=column_pairs(columns), core=core, seed=seed, public_before=public_before),
        adapter=AdapterConfig(method=method.value, rank=rank, alpha=2.0 * rank),
        federation=federation,
        engine=engine.value,
        precision=precision.value,
        device=device,
        num_nodes=nodes,
        grid=grid.value,
        ray_address=ray_address,
        evaluate_every=evaluate_every,
    )
    folder = RunFolder.create(runs, "simulate", config, seed, name=name, overwrite=overwrite)
    console = Console()
    with folder.discarded_on_refusal(), progress_bars(console) as progress:
        result = run_federated(config, folder, progress)
    gains = {"federated": result.gain}
    rows = tuple(quality_row(label, metrics, gains.get(label)) for label, metrics in result.quality.items())
    privacy = "no privacy" if unit is Unit.none else f"{unit.value}-level privacy"
    console.print(quality_table(rows, {"base": "base", "federated": f"federated, {privacy}"}))
    if math.isfinite(result.federation.epsilon):
        console.print(
            f"Spent ε = {result.federation.epsilon:.3f} at δ = {dp_delta:g}, {unit.value} level, "
            f"{len(result.federation.rounds)} rounds.",
            highlight=False,
        )
    if result.federation.stopped:
        console.print(f"Stopped: {result.federation.stopped}.", highlight=False)
    if result.published is None:
        console.print("Not published: the adapter is below the base on held-out public users.")
    else:
        console.print(f"Adapter: {result.published}", highlight=False, soft_wrap=True)
