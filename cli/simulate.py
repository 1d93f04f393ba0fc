"""``ownlet simulate``: federated rounds on one machine."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ownlet.cli.interrupted import says_how_to_go_on
from ownlet.cli.options import (
    Columns,
    Core,
    Data,
    Name,
    Negatives,
    Objective,
    Overwrite,
    PublicBefore,
    Runs,
    Sampling,
    Seed,
    StatusPort,
    StatusRegistry,
    TensorBoard,
    Threads,
    check_registry,
    use_threads,
)
from ownlet.cli.settings import Config, Set, read_settings

if TYPE_CHECKING:
    from rich.console import Console

    from ownlet.server.metrics import RunStatus
    from ownlet.simulations.federated_run import FederatedRunConfig, FederatedRunResult

__all__ = ["OPTIONS", "simulate"]

OPTIONS = {
    "base": ("run.base",),
    "data": ("data.path",),
    "columns": ("data.columns",),
    "core": ("data.core",),
    "public_before": ("data.public_before",),
    "store": ("run.store",),
    "sampled_users": ("run.sampled_users",),
    "public_users": ("run.public_users",),
    "unit": ("federation.unit",),
    "target_epsilon": ("federation.target_epsilon",),
    "noise_multiplier": ("federation.noise_multiplier",),
    "robust": ("federation.robust.name",),
    "wire": ("federation.wire.name",),
    "noise_plan": ("federation.noise_plan.name",),
    "min_separation": ("federation.noise_plan.min_separation",),
    "dp_delta": ("federation.dp_delta",),
    "rounds": ("federation.rounds",),
    "cohort_rate": ("federation.cohort_rate",),
    "evaluate_every": ("run.evaluate_every",),
    "clip_norm": ("federation.clip_norm",),
    "clip_quantile": ("federation.adaptive_clip.quantile",),
    "steps": ("federation.plan.steps",),
    "learning_rate": ("federation.plan.learning_rate",),
    "window_clip_norm": ("federation.plan.clip_norm",),
    "window_rate": ("federation.plan.sample_rate",),
    "objective": ("federation.plan.objective",),
    "negatives": ("federation.plan.num_negatives",),
    "sampling": ("federation.plan.negatives",),
    "expected_batch": ("federation.plan.expected_batch",),
    "server_learning_rate": ("federation.server_learning_rate",),
    "server_optimizer": ("federation.server_optimizer.name",),
    "secure_aggregation": ("federation.secure.enabled",),
    "server_momentum": ("federation.server_momentum",),
    "schedule": ("federation.schedule",),
    "warmup_rounds": ("federation.warmup_rounds",),
    "patience": ("federation.patience",),
    "weight_decay": ("federation.plan.weight_decay",),
    "window_length": ("federation.windows.window_length",),
    "context_length": ("federation.windows.context_length",),
    "rank": ("adapter.rank",),
    "method": ("adapter.method",),
    "engine": ("run.engine",),
    "nodes": ("run.num_nodes",),
    "grid": ("run.grid",),
    "ray_address": ("run.ray_address",),
    "precision": ("run.precision",),
    "device": ("run.device",),
    "seed": ("data.seed", "federation.seed"),
}
"""Option -> the settings that it stands for."""


def simulate(
    ctx: typer.Context,
    config: Config = None,
    set_: Set = None,
    base: Annotated[Path | None, typer.Option(help="The base.pt that `ownlet pretrain` left.")] = None,
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
        Literal["user", "window", "none"],
        typer.Option(help="user: delta clipped, noise on the server. window: local DP-SGD. none: no privacy."),
    ] = "user",
    target_epsilon: Annotated[
        float | None,
        typer.Option(help="Stop before a round that would exceed it. It also sets the noise."),
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option(help="Noise standard deviation divided by the clip: server (user) or device (window)."),
    ] = None,
    robust: Annotated[
        Literal["none", "median", "trimmed-mean", "norm-bound"],
        typer.Option(help="What limits the harm of nodes that lie; norm-bound goes with unit user, the others do not."),
    ] = "none",
    wire: Annotated[
        Literal["float32", "float16", "int8", "sparse"], typer.Option(help="Form in which a device's delta travels.")
    ] = "float32",
    noise_plan: Annotated[
        Literal["independent", "blt"],
        typer.Option(help="blt: later noise takes back part of earlier noise; wants --min-separation."),
    ] = "independent",
    min_separation: Annotated[
        int, typer.Option(min=1, help="With blt: groups that take part in turn, in place of --cohort-rate.")
    ] = 1,
    dp_delta: Annotated[
        float, typer.Option(help="The delta at which epsilon is stated; `ownlet plan` and device budgets take 1e-6.")
    ] = 1e-5,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds.")] = 30,
    cohort_rate: Annotated[float, typer.Option(help="Chance of each user to be in a round.")] = 0.2,
    evaluate_every: Annotated[int, typer.Option(min=1, help="Rounds between evaluations on public users.")] = 5,
    clip_norm: Annotated[float, typer.Option(help="Largest L2 norm of a user's delta.")] = 0.3,
    clip_quantile: Annotated[
        float, typer.Option(help="Let the clip follow this quantile of the deltas' norms, from --clip-norm; 0: fixed.")
    ] = 0.0,
    steps: Annotated[int, typer.Option(min=1, help="Local steps in a round.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the local steps.")] = 0.3,
    window_clip_norm: Annotated[
        float | None,
        typer.Option(help="Largest norm of a window's gradient. Default: 0.1 with unit window."),
    ] = None,
    window_rate: Annotated[float | None, typer.Option(help="Chance of each window to be in a step.")] = None,
    objective: Objective = "softmax",
    negatives: Negatives = 0,
    sampling: Sampling = "uniform",
    expected_batch: Annotated[float, typer.Option(help="Public number that a gradient sum is divided by.")] = 1.0,
    server_learning_rate: Annotated[float, typer.Option(help="Of the server's step.")] = 1.0,
    server_optimizer: Annotated[
        Literal["fedavgm", "fedadam", "fedyogi"],
        typer.Option(help="What the server makes of the average; the last two want --server-learning-rate 0.01."),
    ] = "fedavgm",
    secure_aggregation: Annotated[
        bool,
        typer.Option(help="The server sees only the sum of all nodes, which add the noise; needs --nodes 3 or more."),
    ] = False,
    server_momentum: Annotated[float, typer.Option(help="Momentum (beta1) of the server's step.")] = 0.9,
    schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        typer.Option(help="How the server's learning rate falls over the rounds."),
    ] = "constant",
    warmup_rounds: Annotated[int, typer.Option(min=0, help="Rounds in which the server's learning rate rises.")] = 0,
    patience: Annotated[
        int,
        typer.Option(min=0, help="Stop after so many evaluations without a better one, and keep the best; 0: never."),
    ] = 0,
    weight_decay: Annotated[float, typer.Option(help="Of the local steps, towards the base.")] = 0.0,
    window_length: Annotated[int, typer.Option(min=2, help="Events in a window.")] = 20,
    context_length: Annotated[int, typer.Option(min=0, help="Earlier events a window may see; 0 for unit window.")] = 0,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    method: Annotated[
        Literal["lora", "lora-frozen-a", "fedsvd", "rolora", "iak", "bottleneck", "prefix"],
        typer.Option(help="How the base is adapted."),
    ] = "lora-frozen-a",
    engine: Annotated[Literal["cohort", "opacus", "executorch"], typer.Option(help="What trains a user.")] = "cohort",
    nodes: Annotated[int, typer.Option(min=1, help="Flower nodes; never changes the result.")] = 1,
    grid: Annotated[
        Literal["in-process", "ray"],
        typer.Option(help="in-process, or ray: nodes are processes, on one machine or a cluster."),
    ] = "in-process",
    ray_address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, auto for this machine's. Default: start one here.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(help="Of the cohort engine's arithmetic; bfloat16 is an approximation."),
    ] = "float32",
    device: Annotated[str, typer.Option(help="Of the cohort engine: cpu, cuda.")] = "cpu",
    seed: Seed = 0,
    tensorboard: TensorBoard = None,
    status_port: StatusPort = None,
    registry: StatusRegistry = None,
    runs: Runs = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
    threads: Threads = 0,
) -> None:
    """Run federated rounds over the device users, with the server and client apps that a deployment runs.

    Cohorts and noise are seeded, so a run can be repeated; a deployment draws both from the operating system. With
    --name an interrupted run is continued from its last round and ends with the same adapter. Whatever has no option
    here can be set by its name in the file that `ownlet config simulate` prints.
    """
    from rich.console import Console

    from ownlet.cli.progress import progress_bars
    from ownlet.server.metrics import RunStatus
    from ownlet.simulations.board import board_of
    from ownlet.simulations.derived import derived_settings, noise_for_target
    from ownlet.simulations.federated_run import FederatedRunConfig, run_federated
    from ownlet.simulations.results import RunFolder

    use_threads(threads)
    check_registry(registry)
    read = read_settings("simulate", FederatedRunConfig, ctx, OPTIONS, file=config, sets=set_, derive=derived_settings)
    settings = noise_for_target(read.config, read.given)
    folder = RunFolder.create(runs, "simulate", settings, settings.federation.seed, name=name, overwrite=overwrite)
    console = Console()
    status = RunStatus(settings.federation, f"ownlet simulate: {folder.path.name}")
    with (
        says_how_to_go_on(name, overwrite),
        folder.discarded_on_refusal(),
        _served(status, status_port, registry) as address,
        board_of(tensorboard, folder.path.name) as board,
        progress_bars(console) as progress,
    ):
        if address:
            console.print(f"Status: {address}", highlight=False, soft_wrap=True)
        result = run_federated(settings, folder, progress, board, status=status)
    _print_result(console, settings, result)


def _served(status: RunStatus, port: int | None, registry: Path | None) -> AbstractContextManager[str | None]:
    from ownlet.server.status import serve_status
    from ownlet.shared.errors import require

    require(port is not None or registry is None, "registry must go with --status-port", registry=registry)
    return nullcontext() if port is None else serve_status(status, port=port, registry=registry)


def _print_result(console: Console, settings: FederatedRunConfig, result: FederatedRunResult) -> None:
    from ownlet.simulations.findings import quality_row
    from ownlet.simulations.report import quality_table

    unit, gains = settings.federation.unit, {"federated": result.gain}
    rows = tuple(quality_row(label, metrics, gains.get(label)) for label, metrics in result.quality.items())
    privacy = "no privacy" if unit == "none" else f"{unit}-level privacy"
    console.print(quality_table(rows, {"base": "base", "federated": f"federated, {privacy}"}))
    if math.isfinite(result.federation.epsilon):
        console.print(
            f"Spent ε = {result.federation.epsilon:.3f} at δ = {settings.federation.dp_delta:g}, {unit} level, "
            f"{len(result.federation.rounds)} rounds.",
            highlight=False,
        )
    server_epsilon = result.federation.rounds[-1].server_epsilon if result.federation.rounds else None
    if server_epsilon is not None and math.isfinite(server_epsilon):
        console.print(
            f"Against the server, which sees each round's sum and knows whom it asked: ε = {server_epsilon:.3f}.",
            highlight=False,
        )
    if result.federation.stopped:
        console.print(f"Stopped: {result.federation.stopped}.", highlight=False)
    if unit == "window":
        console.print(f"Step chosen on public users: {result.length:g} of the rounds' way.", highlight=False)
    if result.published is None:
        console.print("Not published: the adapter is below the base on held-out public users.")
    else:
        console.print(f"Adapter: {result.published}", highlight=False, soft_wrap=True)
