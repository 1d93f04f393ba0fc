"""The command ``ownlet``: one thin file per subcommand, registered here.

Subcommands import what is heavy (torch, flwr, polars) inside their functions, so ``ownlet --help`` answers at once.
Errors that ownlet raises on purpose end in one line on stderr and exit code 2; anything else is a bug and shows where.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import ownlet.shared.quiet  # noqa: F401  (turns telemetry off; must come before anything that imports flwr or ray)
from ownlet.cli.adapter import export_adapter, import_adapter
from ownlet.cli.audit import audit
from ownlet.cli.bench import quality
from ownlet.cli.certs import certs
from ownlet.cli.compare import compare
from ownlet.cli.config import config
from ownlet.cli.demo import demo
from ownlet.cli.domains import domains
from ownlet.cli.evaluate import evaluate
from ownlet.cli.experiment import collect, count, observe, stop_count, verdict, watch
from ownlet.cli.export import export
from ownlet.cli.grow import grow
from ownlet.cli.join import join
from ownlet.cli.ledger import show, verify
from ownlet.cli.plan import plan
from ownlet.cli.pretrain import pretrain
from ownlet.cli.rank_head import rank_head
from ownlet.cli.registry import deliver, keygen, list_versions, pause, promote, publish, restore, resume, rollback
from ownlet.cli.registry import show as show_registry
from ownlet.cli.serve import serve
from ownlet.cli.simulate import simulate
from ownlet.cli.store import store
from ownlet.cli.sweep import sweep
from ownlet.shared.errors import OwnletError

__all__ = ["COMMANDS", "GROUPS", "build_app", "main"]

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "config": config,
    "compare": compare,
    "domains": domains,
    "sweep": sweep,
    "plan": plan,
    "pretrain": pretrain,
    "rank-head": rank_head,
    "store": store,
    "simulate": simulate,
    "evaluate": evaluate,
    "export": export,
    "certs": certs,
    "serve": serve,
    "join": join,
    "audit": audit,
    "grow": grow,
    "adapter export": export_adapter,
    "adapter import": import_adapter,
    "bench quality": quality,
    "ledger show": show,
    "ledger verify": verify,
    "registry list": list_versions,
    "registry show": show_registry,
    "registry publish": publish,
    "registry promote": promote,
    "registry rollback": rollback,
    "registry pause": pause,
    "registry resume": resume,
    "registry restore": restore,
    "registry deliver": deliver,
    "registry keygen": keygen,
    "registry count": count,
    "registry stop-count": stop_count,
    "registry collect": collect,
    "registry verdict": verdict,
    "registry watch": watch,
    "registry observe": observe,
}
"""Subcommand -> function; a name of two words is a command of a group."""

GROUPS = {
    "bench": "Measure how good something is.",
    "adapter": "Exchange adapters with the library PEFT.",
    "ledger": "Show or verify what a device spent on privacy.",
    "registry": "Publish adapters, roll them out, take them back.",
}
"""Group -> help."""


class _Command(TyperCommand):
    r"""Shows defaults as ``[default: 5]``: typer escapes the bracket for rich also where rich markup is off."""

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        return super().get_help(ctx).replace("\\[", "[")


class _Group(TyperGroup):
    """Ends an ``OwnletError`` of any subcommand in one line, unless ``--debug`` asks for the traceback."""

    def get_help(self, ctx: Any) -> str:
        """Return the help."""
        return super().get_help(ctx).replace("\\[", "[")

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except OwnletError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from error


def build_app(commands: Mapping[str, Callable[..., None]]) -> typer.Typer:
    """Return the application with these subcommands.

    Args:
        commands: subcommand -> function; its signature and docstring become the options and the help. ``group name``
            stands in a group, whose help is in ``GROUPS``.
    """
    app = typer.Typer(
        name="ownlet",
        cls=_Group,
        callback=_root,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    groups: dict[str, typer.Typer] = {}
    for path, function in commands.items():
        group, _, name = path.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(help=GROUPS.get(group), no_args_is_help=True, rich_markup_mode=None)
            app.add_typer(groups[group], name=group)
        (groups[group] if group else app).command(name, cls=_Command)(function)
    return app


def main() -> None:
    """Run the command line; never returns normally."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build_app(COMMANDS)(prog_name="ownlet")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ownlet {importlib.metadata.version('ownlet')}")
        raise typer.Exit


def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """On-device personalization of recommenders under differential privacy."""
