"""Whether the answer to a test question was in what a recommender learned from.

Three ways for a test item to leak to the user who is asked for it: as the target of a training window, as context that
a window reads, and among negatives, where choosing them by looking at the future tells the model what the future is.

An item that the user had before the question as well is no leak as long as it is trained on no more often than the
known history holds it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History
from ownlet.shared.windows import Windows
from ownlet.simulations.evaluate import Cases

__all__ = ["check_leakage"]

Repeats = Literal["as often", "any", "never"]


def check_leakage(
    train: Sequence[History] | Sequence[Windows], negatives: Sequence[NDArray[np.int64]] | None, cases: Cases
) -> None:
    """Raise if a test item reaches the training of its own user.

    Args:
        train: one entry per user number: the events that are trained on, or the windows.
        negatives: one entry per user number, item numbers of any shape, where a test item is forbidden: negatives that
            were chosen by looking at data (hard ones, or those of a file). None where they are drawn blindly: then a
            test item is among them by chance, and leaving it out would be the leak.
        cases: the questions, with ``users``.

    Raises:
        DataError: who is affected, the first such user and item, and the way it leaks.
        ConfigError: the cases do not say whose they are, or a user has no entry.
    """
    require(cases.users is not None, "cases must have users", cases=len(cases))
    assert cases.users is not None
    most = int(cases.users.max()) + 1 if len(cases) else 0
    require(len(train) >= most, "train must have one entry per user", entries=len(train), users=most)
    for where, events, repeats in _read(train):
        _raise_first(f"reaches the {where}", events, cases, cases.users, repeats)
    if negatives is not None:
        require(len(negatives) >= most, "negatives must have one entry per user", entries=len(negatives), users=most)
        drawn = [np.asarray(items, np.int64).ravel() for items in negatives]
        _raise_first("is drawn as a negative", drawn, cases, cases.users, "never")


def _read(train: Sequence[History] | Sequence[Windows]) -> list[tuple[str, list[History], Repeats]]:
    """Return the places where training reads items: the name, the items user by user, and what is no leak there."""
    windows = [entry for entry in train if isinstance(entry, Windows)]
    if windows:
        targets = [w.target[w.valid > 0] for w in windows]
        context = [w.history[w.history > 0] for w in windows]  # an event may be context of several windows
        return [("training windows", targets, "as often"), ("context of training windows", context, "any")]
    return [("training events", [np.asarray(history, np.int64) for history in train], "as often")]


def _raise_first(how: str, items: Sequence[History], cases: Cases, users: NDArray[np.int64], repeats: Repeats) -> None:
    """Raise if the items of a case's user hold its target.

    Args:
        how: it leaks there, for the message.
        items: one entry per user.
        cases: the questions.
        users: (n,) of the cases.
        repeats: of an item that the user had before the question too, no leak is: ``as often`` as then, ``any`` number,
            ``never``.
    """
    width = 1 + max([0, *(int(found.max()) for found in items if len(found)), *cases.targets.tolist()])
    keys = np.concatenate([np.zeros(0, np.int64), *(user * width + found for user, found in enumerate(items))])
    leaks = []
    for case in np.flatnonzero(np.isin(users * width + cases.targets, keys)):
        user, item = int(users[case]), int(cases.targets[case])
        before = int((cases.histories[case] == item).sum())
        allowed = {"as often": before, "any": math.inf if before else 0, "never": 0}[repeats]
        if int((items[user] == item).sum()) > allowed:
            leaks.append((user, item))
    if leaks:
        user, item = leaks[0]
        raise DataError(f"test items must stay unseen, got {len(leaks)} leaks: item {item} {how} of user {user}")
