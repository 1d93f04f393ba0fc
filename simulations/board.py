"""Rows of metrics for whoever wants to watch them grow: TensorBoard.

It needs the extra ``[tensorboard]``, and is imported only where a folder for it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ownlet.shared.errors import ConfigError

__all__ = ["Board", "board_of"]


class Board(Protocol):
    """Is told a row of metrics as soon as there is one."""

    def row(self, step: int, values: Mapping[str, object], run: str = "") -> None:
        """Take a row.

        Args:
            step: round or epoch.
            values: what was measured; what is not a number is passed over.
            run: which run of several the row belongs to.
        """
        ...


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}

    def row(self, step: int, values: Mapping[str, object], run: str = "") -> None:
        if run not in self._writers:
            self._writers[run] = _summary_writer()(str(self._folder / run))
        writer = self._writers[run]
        for name, value in values.items():
            if (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and name not in ("round", "epoch", "seed")
            ):
                writer.add_scalar(name.replace("@", "_at_"), value, step)
        writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


@contextmanager
def board_of(folder: Path | None, run: str) -> Iterator[Board | None]:
    """Write what is told inside the block for TensorBoard.

    Args:
        folder: TensorBoard's ``--logdir``; None gives None: nobody watches.
        run: name of the run in it.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if folder is None:
        yield None
        return
    _summary_writer()  # before any work is done
    board = _TensorBoard(folder / run)
    try:
        yield board
    finally:
        board.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(f"tensorboard must be installed (pip install 'ownlet[tensorboard]'), got {error}") from error
    return SummaryWriter
