"""What Ctrl-C ends with: one sentence that says whether the work is lost, and the exit code 130 of an interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import typer

__all__ = ["says_how_to_go_on", "says_when_interrupted"]

_EXIT_CODE = 130


@contextmanager
def says_when_interrupted(sentence: str) -> Iterator[None]:
    """Say a sentence where Ctrl-C ends what the context does.

    Raises:
        typer.Exit: in place of the ``KeyboardInterrupt``.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\n{sentence}", err=True)
        raise typer.Exit(_EXIT_CODE) from None


def says_how_to_go_on(name: str | None, overwrite: bool) -> AbstractContextManager[None]:
    """Say what Ctrl-C leaves of a run in a run folder, which can be continued where it has a name.

    Args:
        name: of the run, as it was given.
        overwrite: whether the command moves an earlier run of this name aside.
    """
    if name is None:
        return says_when_interrupted("stopped; only a run with --name can go on")
    return says_when_interrupted(f"stopped; the same command {'without --overwrite ' if overwrite else ''}goes on")
