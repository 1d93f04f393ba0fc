"""``ownlet join``: a node of a deployed federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ownlet.cli.ledger import KeyFile
from ownlet.cli.options import Columns, PublicBefore, column_pairs

__all__ = ["join"]


def join(
    server: Annotated[str, typer.Option(help="HOST:PORT of `ownlet serve`.")],
    certs: Annotated[Path, typer.Option(help="Folder with ca.crt, the certificate of the server's CA.")],
    key: Annotated[Path, typer.Option(help="This node's private key; the server knows its public key.")],
    state: Annotated[Path, typer.Option(help="This node's folder: its users' ledgers. Keep it.")],
    partition: Annotated[int, typer.Option(min=0, help="Which part of the population this node hosts, from 0.")] = 0,
    partitions: Annotated[int, typer.Option(min=1, help="How many parts there are: the server's --nodes.")] = 1,
    base: Annotated[Path | None, typer.Option(help="The base.pt, for a node that hosts users.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The file of this node's own users, in any form that `ownlet pretrain` reads; with --base."),
    ] = None,
    columns: Columns = "",
    core: Annotated[
        int | None, typer.Option(help="As of `ownlet simulate`; by default 5 with --simulated, else 0: keep all.")
    ] = None,
    public_before: PublicBefore = None,
    bundle: Annotated[Path | None, typer.Option(help="The bundle, for one device: its user is --partition.")] = None,
    device_state: Annotated[
        Path | None, typer.Option(help="With --bundle: the device's state folder, as Personalizer keeps it.")
    ] = None,
    key_file: KeyFile = None,
    budget: Annotated[float, typer.Option(help="Epsilon that each user may ever spend; inf: no limit.")] = 8.0,
    budget_delta: Annotated[float, typer.Option(help="The delta of it; stricter than the run's own 1e-5.")] = 1e-6,
    peers: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all nodes' public keys (.pub), from somebody else than the server: take part in secure "
            "aggregation among these only, and in nothing else."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train only the first so many rows of every A and columns of every B, on a machine too weak for more. "
            "At most the run's rank for this partition (federation.ranks of the server), which is the default.",
        ),
    ] = None,
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulated",
            help="For comparison with `ownlet simulate` on the same --data: users as it divides them, and the server "
            "may choose their randomness. Never for real users.",
        ),
    ] = False,
    port: Annotated[int, typer.Option(help="Of this node's own processes, on this machine; 0: any free one.")] = 0,
    seed: Annotated[int, typer.Option(help="With --simulated: of the division into public users and devices.")] = 0,
) -> None:
    """Join a federation: train this node's users when the server asks, until interrupted.

    Every user has a ledger in --state, which is charged before training; a user whose budget is spent contributes
    nothing. Nothing leaves but the sum of clipped deltas. Start it again after a stop; it is used in the next round.
    """
    from ownlet.device.budget import Budget
    from ownlet.shared.wire import Place
    from ownlet.simulations.join import Connection, held_node, prepare_node, run_node
    from ownlet.simulations.setting import DataConfig

    source = DataConfig(
        path=data,
        columns=column_pairs(columns),
        core=core if core is not None else 5 * simulated,
        public_before=public_before,
        seed=seed,
    )
    connection = Connection(server=server, ca=certs / "ca.crt", key=key, port=port)
    connection.check()
    place = Place(partition=partition, num_partitions=partitions)
    with held_node(state):
        told = prepare_node(
            state,
            place,
            base=base,
            data=source,
            bundle=bundle,
            device_state=device_state,
            simulated=simulated,
            budget=Budget(epsilon=budget, dp_delta=budget_delta),
            key=key,
            peers=peers,
            rank=rank,
            key_file=key_file,
        )
        typer.echo(told)
        run_node(state, place, connection, typer.echo)
