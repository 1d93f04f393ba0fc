"""Full-catalogue evaluation of a base, with or without adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.context import pad_context
from ownlet.shared.errors import require
from ownlet.shared.interactions import History, pad_histories
from ownlet.shared.lora import applied
from ownlet.shared.metrics import PublicQuality, ndcg, ranks, top_k
from ownlet.shared.recommender import Recommender, last_scores, module_of
from ownlet.simulations.baselines import Scorer

__all__ = [
    "Answers",
    "Cases",
    "all_positions",
    "cases_at",
    "first_event_cases",
    "is_publishable",
    "mean_ndcg",
    "model_answers",
    "model_ranks",
    "model_scores",
    "positions",
    "public_quality",
    "scorer_answers",
    "scorer_ranks",
]

Scored = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows (b,) of some cases and their scores (b, num_items + 1)."""


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Questions with known answers: which item came next after this history.

    Args:
        histories: one per case, in time order, whole (the model reads the last ``max_length`` of them).
        targets: (n,) the item that came next.
        users: (n,) the user of each case, for whoever must know who is asked; None where nobody does.
        context: one per case, (events of the history, fields): rows from ``shared.context`` of the moment after each
            event, the last of them that of the question. None where nothing is known.
    """

    histories: tuple[History, ...]
    targets: NDArray[np.int64]
    users: NDArray[np.int64] | None = None
    context: tuple[NDArray[np.int64], ...] | None = None

    def __len__(self) -> int:
        return len(self.histories)

    def at(self, rows: NDArray[np.int64]) -> Cases:
        """Return some of the cases, in the order of ``rows``."""
        return Cases(
            histories=tuple(self.histories[row] for row in rows),
            targets=self.targets[rows],
            users=None if self.users is None else self.users[rows],
            context=None if self.context is None else tuple(self.context[row] for row in rows),
        )


def positions(
    lengths: Sequence[int], *, known: Sequence[int] | None = None, last: int | None = None, most: int | None = None
) -> list[tuple[int, int]]:
    """Return history and position of every event that has one before it.

    Args:
        lengths: of the histories, in events.
        known: how many events of each history are not asked for, its first ones; by default one.
        last: only so many of each history, its last ones; by default all.
        most: only so many in all, always the same ones, drawn evenly; by default all.
    """
    places = [
        (user, at)
        for user, length in enumerate(lengths)
        for at in range(max(1, known[user] if known else 1, length - last if last else 1), length)
    ]
    if most is None or len(places) <= most:
        return places
    drawn = np.sort(np.random.default_rng(0).choice(len(places), most, replace=False))
    return [places[place] for place in drawn.tolist()]


def all_positions(
    histories: Sequence[History],
    *,
    last: int | None = None,
    most: int | None = None,
    context: Sequence[NDArray[np.int64]] | None = None,
) -> Cases:
    """Make a case of every event that has one before it; see ``positions`` for less.

    Args:
        histories: whole ones.
        last: how many of each; by default all.
        most: how many of all; by default all.
        context: per history (events, fields), the moment of each event, where anything is known.
    """
    return cases_at(histories, positions([len(history) for history in histories], last=last, most=most), context)


def cases_at(
    histories: Sequence[History],
    places: Sequence[tuple[int, int]],
    context: Sequence[NDArray[np.int64]] | None = None,
) -> Cases:
    """Make a case of each event of ``positions``; other arguments as in ``all_positions``."""
    return Cases(
        histories=tuple(histories[user][:at] for user, at in places),
        targets=np.array([histories[user][at] for user, at in places], dtype=np.int64),
        context=None if context is None else tuple(context[user][1 : at + 1] for user, at in places),
    )


def first_event_cases(known: Sequence[History], later: Sequence[History]) -> Cases:
    """Make one case per user of what is known and the first event of what came later, where there is both.

    One case per user and not more, so that an interval over cases is one over users.
    """
    users = np.array([u for u, (a, b) in enumerate(zip(known, later, strict=True)) if len(a) and len(b)], np.int64)
    return Cases(
        histories=tuple(known[u] for u in users),
        targets=np.array([later[u][0] for u in users], np.int64),
        users=users,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What a recommender answered.

    Args:
        ranks: (n,) of the targets among all items that are not in the history, from 1, ties counted against it.
        lists: (n, k) the best items that are not in the history, 0 where there are fewer.
    """

    ranks: NDArray[np.int64]
    lists: NDArray[np.int64]


def model_ranks(
    model: Recommender,
    cases: Cases,
    *,
    spec: AdapterSpec | None = None,
    vectors: NDArray[np.float32] | None = None,
    batch_size: int = 256,
) -> NDArray[np.int64]:
    """Rank every case's target among all items that are not in its history.

    Args:
        model: the base, in eval mode; prepared with ``attach`` where vectors are given.
        cases: the questions.
        spec: the adapter's spec; with ``vectors``.
        vectors: (P,) one adapter for all cases, or (n, P) one for each.
        batch_size: cases at a time.

    Returns:
        (n,) ranks from 1, ties counted against the model.
    """
    result = np.zeros(len(cases), dtype=np.int64)
    for rows, scores in model_scores(model, cases, spec, vectors, batch_size):
        result[rows] = ranks(scores, cases.targets[rows], [cases.histories[row] for row in rows])
    return result


def model_answers(
    model: Recommender,
    cases: Cases,
    *,
    spec: AdapterSpec | None = None,
    vectors: NDArray[np.float32] | None = None,
    k: int = 10,
    batch_size: int = 256,
    on_cases: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Rank every case's target and list the k best items.

    Args:
        model: see ``model_ranks``, as for the arguments up to ``vectors``.
        cases: the questions.
        spec: the adapter's spec.
        vectors: the adapter's numbers.
        k: length of a list.
        batch_size: cases at a time.
        on_cases: told of the number of cases of each batch.
    """
    return _answers(model_scores(model, cases, spec, vectors, batch_size), cases, k, on_cases)


@torch.no_grad()
def model_scores(
    model: Recommender,
    cases: Cases,
    spec: AdapterSpec | None = None,
    vectors: NDArray[np.float32] | None = None,
    batch_size: int = 256,
) -> Iterator[Scored]:
    """Score all cases, batch by batch, in order of their length: the only place where a model answers."""
    require((spec is None) == (vectors is None), "spec and vectors must be given together", spec=spec)
    require(not model.training, "the model must be in eval mode", training=model.training)
    order = np.argsort([len(h) for h in cases.histories], kind="stable")  # equal lengths together: less padding
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        histories = [cases.histories[row] for row in rows]
        longest = max(1, max(len(h) for h in histories))
        items, lengths = pad_histories(histories, min(model.max_length, longest))
        weights = {}
        if spec is not None and vectors is not None:
            chosen = vectors if vectors.ndim == 1 else vectors[rows]
            weights = spec.split(torch.from_numpy(chosen))
        with applied(module_of(model), weights):
            context = _context_of(cases, rows, items.shape[1])
            scores = last_scores(model, torch.from_numpy(items), torch.from_numpy(lengths), context)
        yield rows, scores.numpy()


def _answers(scored: Iterator[Scored], cases: Cases, k: int, on_cases: Callable[[int], None]) -> Answers:
    found, lists = np.zeros(len(cases), np.int64), np.zeros((len(cases), k), np.int64)
    for rows, scores in scored:
        histories = [cases.histories[row] for row in rows]
        found[rows] = ranks(scores, cases.targets[rows], histories)
        lists[rows] = top_k(scores, histories, k)
        on_cases(len(rows))
    return Answers(ranks=found, lists=lists)


def _context_of(cases: Cases, rows: NDArray[np.int64], length: int) -> Tensor | None:
    """Return (rows, length, fields), padded as the histories are, or None where the cases have none."""
    if cases.context is None:
        return None
    found = [cases.context[row] for row in rows]
    return torch.from_numpy(pad_context(found, length, found[0].shape[1]))


def mean_ndcg(
    model: Recommender, cases: Cases, *, spec: AdapterSpec | None = None, vector: NDArray[np.float32] | None = None
) -> float:
    """Return the mean NDCG@10 over cases, of the base or of an adapter (P,) on it."""
    return float(ndcg(model_ranks(model, cases, spec=spec, vectors=vector), 10).mean())


def public_quality(model: Recommender, spec: AdapterSpec, vector: NDArray[np.float32], public: Cases) -> PublicQuality:
    """Measure an adapter (P,) on public cases, beside the base."""
    return PublicQuality(base=mean_ndcg(model, public), adapter=mean_ndcg(model, public, spec=spec, vector=vector))


def is_publishable(model: Recommender, spec: AdapterSpec, vector: NDArray[np.float32], public: Cases) -> bool:
    """Tell whether an adapter's NDCG@10 on public cases is at least the base's: one below it is never published."""
    return public_quality(model, spec, vector, public).publishable


def scorer_ranks(scorer: Scorer, cases: Cases, *, batch_size: int = 1024) -> NDArray[np.int64]:
    """Rank every case's target by a baseline; see ``model_ranks``."""
    result = np.zeros(len(cases), dtype=np.int64)
    for rows, scores in _scorer_scores(scorer, cases, batch_size):
        result[rows] = ranks(scores, cases.targets[rows], [cases.histories[row] for row in rows])
    return result


def scorer_answers(
    scorer: Scorer,
    cases: Cases,
    *,
    k: int = 10,
    batch_size: int = 1024,
    on_cases: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Rank every case's target by a baseline and list its k best items; see ``model_answers``."""
    return _answers(_scorer_scores(scorer, cases, batch_size), cases, k, on_cases)


def _scorer_scores(scorer: Scorer, cases: Cases, batch_size: int) -> Iterator[Scored]:
    for start in range(0, len(cases), batch_size):
        rows = np.arange(start, min(start + batch_size, len(cases)))
        yield rows, scorer([cases.histories[row] for row in rows])
