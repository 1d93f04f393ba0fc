"""What a recommender is worth where little is known: of items that nobody chose before, and of users it has just met.

Cold items are held out of training altogether: no public user's event of one teaches the base, none stops it early, and
none is read by a text encoder that is trained here. What is left to know them by is their content. A case is one
device user's last event of a cold item; it is ranked among all items, where it stands against items with a past, and
among the cold ones alone.

Cold users are the devices, of whom training saw nothing. A case is a user's eleventh event, and only the few events
just before it are known: the same users and the same answers for every number, so that only knowledge differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.shared.errors import DataError
from ownlet.shared.interactions import History, Interactions, pad_histories
from ownlet.shared.metrics import ranks
from ownlet.shared.model import SASRec
from ownlet.shared.splits import public_device_split
from ownlet.simulations.baselines import Scorer
from ownlet.simulations.cold import cold_item_split
from ownlet.simulations.evaluate import Cases, all_positions

__all__ = ["KNOWN_EVENTS", "ColdSetting", "cold_setting", "measure", "model_scorer"]

KNOWN_EVENTS = (1, 2, 3, 5, 10)
"""How many events of a cold user are known."""

_PUBLIC_FRACTION, _HELD_OUT_FRACTION = 0.3, 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdSetting:
    """Who trains, and what is asked.

    Args:
        cold: (num_items + 1,) which items were held out; padding is none.
        train: histories of public users, without cold items.
        held_out: histories of held-out public users, without cold items.
        validation: every position of the held-out public users.
        cases: what is asked -> the cases: ``cold among all`` (answers are cold items), ``warm`` (each device's last
            event of another item), ``known 1``, ``known 2``, ... (cold users).
    """

    cold: NDArray[np.bool_]
    train: tuple[History, ...]
    held_out: tuple[History, ...]
    validation: Cases
    cases: dict[str, Cases]

    @property
    def trained(self) -> NDArray[np.bool_]:
        """Which items occur in training, (num_items + 1,)."""
        found = np.zeros(len(self.cold), bool)
        found[np.concatenate([np.zeros(0, np.int64), *self.train])] = True
        return found


def cold_setting(data: Interactions, *, fraction: float, seed: int) -> ColdSetting:
    """Hold out items, and divide users into public ones and devices as every other experiment does.

    Args:
        data: all interactions.
        fraction: share of the items that is held out.
        seed: of both draws.

    Raises:
        DataError: nobody could be asked.
    """
    split = cold_item_split(data.histories, fraction=fraction, seed=seed)
    cold = np.zeros(data.num_items + 1, bool)
    cold[split.cold] = True
    warm = [history[~cold[history]] for history in data.histories]
    users = public_device_split(data, fraction=_PUBLIC_FRACTION, seed=seed)
    shuffled = np.random.default_rng([seed, 1]).permutation(users.public)
    num_held_out = round(_HELD_OUT_FRACTION * len(shuffled))
    held_out = tuple(warm[u] for u in np.sort(shuffled[:num_held_out]))
    cases = {
        "cold among all": _of_users(split.cases, users.devices),
        "warm": _last_events([warm[u] for u in users.devices]),
        **{f"known {known}": _known([warm[u] for u in users.devices], known) for known in KNOWN_EVENTS},
    }
    for name, asked in cases.items():
        if not len(asked):
            raise DataError(f"cold start must have device users to ask, got none for {name} in {data.name}")
    return ColdSetting(
        cold=cold,
        train=tuple(warm[u] for u in np.sort(shuffled[num_held_out:])),
        held_out=held_out,
        validation=all_positions(held_out),
        cases=cases,
    )


def measure(scorer: Scorer, setting: ColdSetting) -> dict[str, NDArray[np.int64]]:
    """Rank the answers of all cases.

    Returns:
        What is asked -> (cases,) ranks: those of ``cases``, and ``cold among cold`` besides.
    """
    found = {name: _ranks(scorer, cases, None) for name, cases in setting.cases.items()}
    return found | {"cold among cold": _ranks(scorer, setting.cases["cold among all"], setting.cold)}


def model_scorer(model: SASRec) -> Scorer:
    """Return a base as a scorer, so that it is asked in the same way as a baseline."""

    def score(histories: Sequence[History]) -> NDArray[np.float32]:
        longest = max(1, max(len(history) for history in histories))
        rows, lengths = pad_histories(histories, min(model.config.max_length, longest))
        with torch.no_grad():
            return model.score_last(torch.from_numpy(rows), torch.from_numpy(lengths)).numpy()

    return score


def _ranks(scorer: Scorer, cases: Cases, candidates: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Rank every answer among the candidates that are not in the history; by default among all items."""
    order = np.argsort([len(history) for history in cases.histories], kind="stable")  # equal lengths: less padding
    result = np.zeros(len(cases), np.int64)
    for rows in np.split(order, range(256, len(order), 256)):
        histories = [cases.histories[row] for row in rows]
        scores = scorer(histories)
        away = np.zeros(scores.shape, bool) if candidates is None else np.tile(~candidates, (len(rows), 1))
        for row, history in enumerate(histories):
            away[row, history] = True
        result[rows] = ranks(scores, cases.targets[rows], away)
    return result


def _of_users(cases: Cases, users: NDArray[np.int64]) -> Cases:
    assert cases.users is not None
    return cases.at(np.flatnonzero(np.isin(cases.users, users)))


def _last_events(histories: Sequence[History]) -> Cases:
    long = [history for history in histories if len(history) >= 2]
    return Cases(histories=tuple(h[:-1] for h in long), targets=np.array([h[-1] for h in long], np.int64))


def _known(histories: Sequence[History], known: int) -> Cases:
    """Ask every long history for the event behind its first ten, of which only the last few are known."""
    at = max(KNOWN_EVENTS)
    long = [history for history in histories if len(history) > at]
    return Cases(histories=tuple(h[at - known : at] for h in long), targets=np.array([h[at] for h in long], np.int64))
