"""What Ctrl-C ends with: one sentence that says whether the work is lost, and the exit code 130 of an interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

__all__ = ["says_when_interrupted"]

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
