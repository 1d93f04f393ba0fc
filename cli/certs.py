"""``ownlet certs``: keys for a federation in development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["certs"]


def certs(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name or address under which nodes reach the server; may be repeated. localhost is always one."
        ),
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="How many node key pairs.")] = 4,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Make a CA, a server certificate and a key pair per node, for development.

    In production take the server's certificate from your own CA, and let each node make its own key
    (`ssh-keygen -t ecdsa -b 384`). Nothing is overwritten without --force.
    """
    from ownlet.server.certificates import make_certificates

    for path in make_certificates(out, hosts=host or (), num_nodes=nodes, force=force):
        typer.echo(path)
    typer.echo("For development, valid for a year. A node needs ca.crt and its own key, the server all but those.")
