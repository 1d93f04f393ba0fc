"""Full-catalogue evaluation of a base, with or without adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.errors import require
from ownlet.shared.interactions import History, pad_histories
from ownlet.shared.lora import applied
from ownlet.shared.metrics import ndcg, ranks
from ownlet.shared.model import SASRec
from ownlet.simulations.baselines import Scorer

__all__ = ["Cases", "all_positions", "is_publishable", "mean_ndcg", "model_ranks", "scorer_ranks"]


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Questions with known answers: which item came next after this history.

    Args:
        histories: one per case, in time order, whole (the model reads the last ``max_length`` of them).
        targets: (n,) the item that came next.
    """

    histories: tuple[History, ...]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.histories)


def all_positions(histories: Sequence[History], *, last: int | None = None) -> Cases:
    """Make a case of every event that has one before it, or of the ``last`` such events of each history."""
    pairs = [
        (history[:at], history[at])
        for history in histories
        for at in range(max(1, len(history) - last) if last else 1, len(history))
    ]
    return Cases(histories=tuple(h for h, _ in pairs), targets=np.array([t for _, t in pairs], dtype=np.int64))


@torch.no_grad()
def model_ranks(
    model: SASRec,
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
    require((spec is None) == (vectors is None), "spec and vectors must be given together", spec=spec)
    require(not model.training, "the model must be in eval mode", training=model.training)
    order = np.argsort([len(h) for h in cases.histories], kind="stable")  # equal lengths together: less padding
    result = np.zeros(len(cases), dtype=np.int64)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        histories = [cases.histories[row] for row in rows]
        longest = max(1, max(len(h) for h in histories))
        items, lengths = pad_histories(histories, min(model.config.max_length, longest))
        weights = {}
        if spec is not None and vectors is not None:
            chosen = vectors if vectors.ndim == 1 else vectors[rows]
            weights = spec.split(torch.from_numpy(chosen))
        with applied(model, weights):
            scores = model.score_last(torch.from_numpy(items), torch.from_numpy(lengths))
        result[rows] = ranks(scores.numpy(), cases.targets[rows], histories)
    return result


def mean_ndcg(
    model: SASRec, cases: Cases, *, spec: AdapterSpec | None = None, vector: NDArray[np.float32] | None = None
) -> float:
    """Return the mean NDCG@10 over cases, of the base or of an adapter (P,) on it."""
    return float(ndcg(model_ranks(model, cases, spec=spec, vectors=vector), 10).mean())


def is_publishable(model: SASRec, spec: AdapterSpec, vector: NDArray[np.float32], public: Cases) -> bool:
    """Tell whether an adapter's NDCG@10 on public cases is at least the base's: one below it is never published."""
    return mean_ndcg(model, public, spec=spec, vector=vector) >= mean_ndcg(model, public)


def scorer_ranks(scorer: Scorer, cases: Cases, *, batch_size: int = 1024) -> NDArray[np.int64]:
    """Rank every case's target by a baseline; see ``model_ranks``."""
    parts = []
    for start in range(0, len(cases), batch_size):
        histories = cases.histories[start : start + batch_size]
        parts.append(ranks(scorer(histories), cases.targets[start : start + batch_size], histories))
    return np.concatenate(parts)
