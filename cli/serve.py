"""``ownlet serve``: the server of a deployed federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ownlet.cli import simulate
from ownlet.cli.interrupted import says_when_interrupted
from ownlet.cli.options import Columns, Core, PublicBefore, StatusPort, StatusRegistry, check_registry
from ownlet.cli.settings import Config, Set, read_settings

__all__ = ["OPTIONS", "serve"]

_AS_SIMULATE = (
    *("base", "data", "columns", "core", "public_before", "nodes", "unit", "target_epsilon", "noise_multiplier"),
    *("rounds", "cohort_rate", "clip_norm", "steps", "learning_rate", "server_learning_rate", "secure_aggregation"),
    "wire",
    *("window_length", "rank", "method"),
)
OPTIONS = {
    **{name: simulate.OPTIONS[name] for name in _AS_SIMULATE},
    "reply_seconds": ("federation.reply_timeout_seconds",),
}
"""Option -> the settings that it stands for; they are those of ``ownlet simulate``."""


def serve(
    ctx: typer.Context,
    certs: Annotated[Path, typer.Option(help="Folder with ca.crt, server.crt, server.key and nodes/*.pub.")],
    state: Annotated[Path, typer.Option(help="Folder of this run; start again with it to go on after a stop.")],
    config: Config = None,
    set_: Set = None,
    base: Annotated[Path | None, typer.Option(help="The base.pt that `ownlet pretrain` left.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="In place of --base: start from a bundle's adapter.")] = None,
    num_users: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Public size of the population, over all nodes. Needed where nodes bring files of their own; by "
            "default the device users of --data, which are right for --simulated only.",
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that the population is spread over.")] = 1,
    min_nodes: Annotated[
        int | None, typer.Option(min=1, help="Nodes that a round waits for. Default: the quorum of --nodes.")
    ] = None,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for them before giving up.")] = 600.0,
    reply_seconds: Annotated[float, typer.Option(help="How long a round waits for replies.")] = 600.0,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port for nodes and for control.")] = 8443,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Public data that adapters are judged with, in any form that `ownlet pretrain` reads; without it "
            "nothing is judged. Give --num-users with it."
        ),
    ] = None,
    columns: Columns = "",
    core: Core = 5,
    public_before: PublicBefore = None,
    unit: Annotated[
        Literal["user", "window", "none"],
        typer.Option(help="user: delta clipped, noise on the server. window: local DP-SGD. none: no privacy."),
    ] = "user",
    target_epsilon: Annotated[
        float | None, typer.Option(help="Stop before a round that would exceed it. It also sets the noise.")
    ] = None,
    noise_multiplier: Annotated[
        float | None,
        typer.Option(help="Noise standard deviation divided by the clip: server (user) or device (window)."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds.")] = 30,
    cohort_rate: Annotated[float, typer.Option(help="Chance of each user to be in a round.")] = 0.2,
    clip_norm: Annotated[float, typer.Option(help="Largest L2 norm of a user's delta.")] = 0.3,
    steps: Annotated[int, typer.Option(min=1, help="Local steps in a round.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of the local steps.")] = 0.3,
    server_learning_rate: Annotated[float, typer.Option(help="Of the server's step.")] = 1.0,
    secure_aggregation: Annotated[
        bool, typer.Option(help="The server sees only the sum of all nodes, which add the noise; three nodes or more.")
    ] = False,
    wire: Annotated[
        Literal["float32", "float16", "int8", "sparse"],
        typer.Option(help="How deltas travel: 4, 2 or 1 byte per number, or a share of them."),
    ] = "float32",
    window_length: Annotated[int, typer.Option(min=2, help="Events in a window.")] = 20,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 8,
    method: Annotated[
        Literal["lora", "lora-frozen-a", "fedsvd", "iak", "bottleneck", "prefix"],
        typer.Option(help="How the base is adapted."),
    ] = "lora-frozen-a",
    status_port: StatusPort = None,
    registry: StatusRegistry = None,
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulated", help="For comparison with `ownlet simulate`: allows a seed, which only simulated nodes take."
        ),
    ] = False,
) -> None:
    """Run federated rounds on nodes that `ownlet join` starts, over TLS, with registered keys.

    --data is public data that adapters are judged with, as `ownlet simulate` does; without it the adapter is not
    judged. Exit code 0: the run is finished, also where its adapter was not published; 2: it is not, start it again.
    Settings are those of `ownlet simulate` (`ownlet config simulate`). Whoever can reach the port can also
    submit code: see docs/deployment.md before you open it to a network.
    """
    from ownlet.server.deployment import ServeFolder
    from ownlet.server.serve import Link
    from ownlet.server.serve import serve as serve_run
    from ownlet.shared.errors import ConfigError
    from ownlet.simulations.derived import derived_settings, noise_for_target
    from ownlet.simulations.federated_run import FederatedRunConfig
    from ownlet.simulations.serve_run import prepare_server, without_default_seed

    if (base is None) == (bundle is None) and config is None:
        raise ConfigError(f"one of base and bundle must be given, got base={base}, bundle={bundle}")
    node_keys = sorted((certs / "nodes").glob("*.pub"), key=lambda path: (len(path.name), path.name))
    link = Link(host=host, port=port, certs=certs, node_keys=node_keys)
    link.check()
    check_registry(registry)
    stands_in = [] if bundle is None else [f'run.base="{bundle}"']  # a run from a bundle reads no base
    sets = [*(set_ or ()), *stands_in]
    read = read_settings("simulate", FederatedRunConfig, ctx, OPTIONS, file=config, sets=sets, derive=derived_settings)
    settings = without_default_seed(noise_for_target(read.config, read.given), read.given)
    folder = ServeFolder(state)
    deployment = prepare_server(
        folder,
        settings,
        bundle=bundle,
        num_users=num_users,
        min_nodes=min_nodes,
        wait_seconds=wait_seconds,
        simulated=simulated,
        status_port=status_port,
        registry=registry,
    )
    typer.echo(
        f"{deployment.num_users} users on {deployment.num_nodes} nodes; a round waits for {deployment.min_nodes} of "
        f"them, at most {wait_seconds:g} s"
    )
    if deployment.config.correlated:
        typer.echo("blt noise covers no round by itself: users whose node has a finite --budget contribute zero")
    if folder.is_finished:
        typer.echo(f"This run is finished (more --rounds go on, another --state begins anew): {folder.root}")
    else:
        with says_when_interrupted("stopped; the same command goes on"):
            serve_run(folder, link, typer.echo)
    typer.echo(f"Adapter: {folder.adapter}" if folder.adapter.exists() else "No adapter was published.")
