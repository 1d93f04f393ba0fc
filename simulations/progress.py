"""How a long job tells whoever watches what it is doing: stages with a known number of steps, each with a note."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

__all__ = ["Progress", "Silent", "Step"]


class Step(Protocol):
    """Says that a step is done, or some share of one, or several, with a note."""

    def __call__(self, note: str, share: float = 1.0, /) -> None:
        """Be told."""
        ...


class Progress(Protocol):
    """Whoever watches. Stages may overlap."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Step]:
        """Open a stage of at most ``total`` steps; it is over when the block is left."""
        ...


class Silent:
    """Nobody watches."""

    def stage(self, name: str, total: int) -> AbstractContextManager[Step]:
        """Open a stage that nobody sees."""
        return nullcontext(lambda note, share=1.0: None)
