"""Splits for cold start: items that training never saw, and users of whom next to nothing is known.

Both are pure functions of histories and a seed. They give what may be trained on, user by user, and one case per user
whose answer is asked for, so that ``leakage.check_leakage`` can hold one against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.interactions import History
from ownlet.simulations.evaluate import Cases

__all__ = ["ColdSplit", "cold_item_split", "cold_user_split"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdSplit:
    """What may be trained on, and what is asked.

    Args:
        train: per user, the events to train on; empty for a user who is held out.
        cases: at most one per user; ``cases.users`` says whose.
        cold: numbers of the items or of the users that were held out, in order.
    """

    train: tuple[History, ...]
    cases: Cases
    cold: NDArray[np.int64]


def cold_item_split(histories: Sequence[History], *, fraction: float = 0.1, seed: int = 0) -> ColdSplit:
    """Hold items out of training altogether, and ask for them.

    A user's case is the user's last event of a held-out item that has an event of another item before it. Its history,
    and what is trained on of this user, is every event before it that is not of a held-out item.

    Args:
        histories: one per user, in time order.
        fraction: share of the items that occur; the number is rounded to the nearest whole one.
        seed: of the draw.

    Returns:
        The split. No held-out item is in ``train`` or in the history of a case; every target is one.

    Raises:
        ConfigError: the fraction is not in [0, 1].
    """
    require(0 <= fraction <= 1, "fraction must be in [0, 1]", fraction=fraction)
    items = np.unique(np.concatenate([np.zeros(0, np.int64), *histories]))
    count = round(fraction * len(items))
    held_out = np.sort(np.random.default_rng(seed).permutation(items)[:count])
    train, known, targets, users = [], [], [], []
    for user, history in enumerate(histories):
        cold = np.isin(history, held_out)
        asked = np.flatnonzero(cold & (np.cumsum(~cold) > 0))
        end = int(asked[-1]) if len(asked) else len(history)
        warm = history[:end][~cold[:end]]
        train.append(warm)
        if len(asked):
            known.append(warm)
            targets.append(int(history[end]))
            users.append(user)
    return ColdSplit(train=tuple(train), cases=_cases(known, targets, users), cold=held_out)


def cold_user_split(
    histories: Sequence[History], *, known_events: int = 3, fraction: float = 0.2, seed: int = 0
) -> ColdSplit:
    """Hold users out of training altogether, and ask for their next event when only a few are known.

    Args:
        histories: one per user, in time order.
        known_events: at most so many events of a held-out user are known, the first ones; at least 1. A user with fewer
            events is asked for the last of them.
        fraction: share of the users with two events or more that is held out; rounded to the nearest whole number.
        seed: of the draw; it does not depend on ``known_events``, so that curves over it are of the same users.

    Returns:
        The split.

    Raises:
        ConfigError: a number breaks its rule.
    """
    require(0 <= fraction <= 1, "fraction must be in [0, 1]", fraction=fraction)
    require(known_events >= 1, "known_events must be at least 1", known_events=known_events)
    able = np.flatnonzero([len(history) >= 2 for history in histories])
    held_out = np.sort(np.random.default_rng(seed).permutation(able)[: round(fraction * len(able))])
    ends = [min(known_events, len(histories[user]) - 1) for user in held_out]
    known = [histories[user][:end] for user, end in zip(held_out, ends, strict=True)]
    targets = [int(histories[user][end]) for user, end in zip(held_out, ends, strict=True)]
    away = set(held_out.tolist())
    train = tuple(history[:0] if user in away else history for user, history in enumerate(histories))
    return ColdSplit(train=train, cases=_cases(known, targets, held_out.tolist()), cold=held_out)


def _cases(known: Sequence[History], targets: Sequence[int], users: Sequence[int]) -> Cases:
    return Cases(
        histories=tuple(known), targets=np.array(targets, dtype=np.int64), users=np.array(users, dtype=np.int64)
    )
