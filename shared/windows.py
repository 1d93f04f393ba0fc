"""Windows: slices of a history, the examples of local training.

Many histories are cut at once, into arrays in which one user's windows follow another's: a simulation cuts thousands
per second, and a device is the same thing with one user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import require
from ownlet.shared.interactions import History

__all__ = ["WindowStack", "Windows", "cut_histories", "cut_windows", "stack_windows"]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows as arrays.

    Args:
        history: (n, row_length) item numbers, padded on the right with 0.
        target: (n, row_length) the item after each position.
        valid: (n, row_length) float32, 1 where the target belongs to this window.
        context: (n, row_length, fields) rows from ``shared.context`` of the moment of each target; None where nothing
            is known.
    """

    history: NDArray[np.int64]
    target: NDArray[np.int64]
    valid: NDArray[np.float32]
    context: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.history)

    def __getitem__(self, rows: Any) -> Windows:
        """Return some of the windows: a slice, a mask or indices."""
        context = None if self.context is None else self.context[rows]
        return Windows(history=self.history[rows], target=self.target[rows], valid=self.valid[rows], context=context)


@dataclass(frozen=True, kw_only=True)
class WindowStack(Sequence[Windows]):
    """The windows of several users in the same arrays: a sequence with one ``Windows`` per user.

    Args:
        windows: user after user.
        counts: (users,) windows of each user, possibly 0.
    """

    windows: Windows
    counts: NDArray[np.int64]

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """The user of every window, (windows,), from 0."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each user's windows begin, and the total: (users + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, user: int) -> Windows: ...

    @overload
    def __getitem__(self, user: slice) -> WindowStack: ...

    def __getitem__(self, user: int | slice) -> Windows | WindowStack:
        if isinstance(user, slice):
            return self.take(np.arange(len(self))[user])
        if not -len(self) <= user < len(self):
            raise IndexError(user)
        user %= len(self)
        return self.windows[self.offsets[user] : self.offsets[user + 1]]

    def take(self, users: NDArray[np.int64]) -> WindowStack:
        """Return the stack of some users, in the order given."""
        counts = self.counts[users]
        first = np.repeat(self.offsets[users] - np.cumsum(counts) + counts, counts)
        return WindowStack(windows=self.windows[first + np.arange(len(first))], counts=counts)


def cut_windows(events: History, config: WindowConfig, context: NDArray[np.int64] | None = None) -> Windows:
    """Cut a history into windows.

    Consecutive windows hold ``window_length`` events each; the last may be shorter. Every event is the target in at
    most one window. With ``context_length`` 0 no event occurs in two windows, so the window can be the privacy unit.

    Args:
        events: (num_events,) item numbers in time order.
        config: lengths.
        context: (num_events, fields) of the moment of each event, where anything is known.

    Returns:
        Only windows with at least one target; possibly none.
    """
    return cut_histories(events, np.zeros(1, np.int64), np.array([len(events)]), config, context).windows


def cut_histories(
    events: NDArray[Any],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    config: WindowConfig,
    context: NDArray[Any] | None = None,
) -> WindowStack:
    """Cut many histories at once, each as ``cut_windows`` does.

    Args:
        events: (num_events,) item numbers of many users; may be a memory map, of which only these histories are read.
        starts: (users,) where each history begins.
        lengths: (users,) how many events it has.
        config: lengths of windows.
        context: (num_events, fields) of the moment of each event, where anything is known.

    Returns:
        One entry per user.
    """
    size, earlier = config.window_length, config.context_length
    slices = -(-lengths // size)  # (users,) windows, were one without a target a window too
    user = np.repeat(np.arange(len(lengths)), slices)
    number = np.arange(len(user)) - np.repeat(np.cumsum(slices) - slices, slices)  # of the window within its user
    begin = number * size
    stop = np.minimum(begin + size, lengths[user])
    first = np.maximum(0, begin - earlier)  # earlier events that the window may see
    kept = stop - first >= 2
    user, begin, stop, first = user[kept], begin[kept], stop[kept], first[kept]
    column = np.arange(config.row_length)  # (row_length,)
    within = column < (stop - first - 1)[:, None]  # (windows, row_length) positions that have a target
    at = np.where(within, (starts[user] + first)[:, None] + column, 0)
    history, target = np.zeros(at.shape, np.int64), np.zeros(at.shape, np.int64)
    history[within], target[within] = events[at[within]], events[at[within] + 1]
    valid = within & (column >= (begin - first - 1)[:, None])  # targets from events[begin] on
    moments = None
    if context is not None:
        moments = np.zeros((*at.shape, context.shape[1]), np.int64)
        moments[within] = context[at[within] + 1]  # the target's, which is when its position is asked
    return WindowStack(
        windows=Windows(history=history, target=target, valid=valid.astype(np.float32), context=moments),
        counts=np.bincount(user, minlength=len(lengths)),
    )


def stack_windows(many: Sequence[Windows]) -> WindowStack:
    """Put the windows of several users into one stack; a stack is returned as it is. At least one user.

    Raises:
        ConfigError: some come with context and some without.
    """
    if isinstance(many, WindowStack):
        return many
    contexts = [w.context for w in many if w.context is not None]
    require(len(contexts) in (0, len(many)), "windows must all have context, or none", with_context=len(contexts))
    windows = Windows(
        history=np.concatenate([w.history for w in many]),
        target=np.concatenate([w.target for w in many]),
        valid=np.concatenate([w.valid for w in many]),
        context=np.concatenate(contexts) if contexts else None,
    )
    return WindowStack(windows=windows, counts=np.array([len(w) for w in many], dtype=np.int64))
