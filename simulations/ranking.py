"""Trains and measures a ranking head (``shared/ranking.py``) on public users.

Two rules make the difference, both measured (docs/decisions.md): the users are not those that the base was trained on,
because to those the first stage looks better than it is to anybody else; and the examples are what the head meets when
it serves, cases whose target is among the candidates, with other candidates as negatives. All of these are hard
negatives; items that the first stage did not find are never asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, hash_state
from ownlet.shared.context import pad_context
from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History, pad_histories
from ownlet.shared.lora import applied
from ownlet.shared.metrics import ndcg
from ownlet.shared.model import SASRec
from ownlet.shared.ranking import RankingConfig, RankingHead, popularity_of
from ownlet.simulations.evaluate import Cases
from ownlet.simulations.pretrain import Epoch

__all__ = ["Retrieved", "TrainRankingConfig", "count_items", "retrieve", "train_ranking", "two_stage_ranks"]


@dataclass(frozen=True, kw_only=True)
class TrainRankingConfig:
    """How a ranking head is trained.

    Args:
        max_epochs: the most passes over the cases.
        patience: stop after this many epochs without a better NDCG@10 on held-out users.
        batch_size: cases in a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        num_negatives: candidates beside the target in a softmax, drawn anew in every epoch.
        seed: of initialisation, order and negatives.
    """

    max_epochs: int = 60
    patience: int = 8
    batch_size: int = 256
    learning_rate: float = 1e-2
    weight_decay: float = 0.01
    num_negatives: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "patience", "batch_size", "num_negatives"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(self.learning_rate > 0, "learning_rate must be positive", learning_rate=self.learning_rate)
        require(self.weight_decay >= 0, "weight_decay must not be negative", weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True, eq=False)
class Retrieved:
    """What the first stage makes of cases.

    Args:
        hidden: (n, d) hidden states after each history.
        history: (n, max_length) the last events of each, 0 behind them.
        candidates: (n, C) the best items that are not in the history, best first, 0 where there are fewer.
        targets: (n,) the item that came next.
        ranks: (n,) the target's rank in the first stage, from 1.
    """

    hidden: Tensor
    history: Tensor
    candidates: Tensor
    targets: Tensor
    ranks: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)


@torch.no_grad()
def retrieve(
    model: SASRec,
    cases: Cases,
    num_candidates: int,
    *,
    spec: AdapterSpec | None = None,
    vector: NDArray[np.float32] | None = None,
    batch_size: int = 256,
) -> Retrieved:
    """Run the first stage.

    Args:
        model: the base, in eval mode; prepared with ``attach`` where a vector is given.
        cases: the questions. A target that is in its own history may be a candidate all the same.
        num_candidates: C.
        spec: the adapter's spec; with ``vector``.
        vector: (P,) an adapter for all cases.
        batch_size: cases at a time.
    """
    require((spec is None) == (vector is None), "spec and vector must be given together", spec=spec)
    weights = {} if spec is None or vector is None else spec.split(torch.from_numpy(vector))
    items, targets, parts = model.item_vectors(), torch.from_numpy(cases.targets), []
    for start in range(0, len(cases), batch_size):
        part = slice(start, start + batch_size)
        rows, lengths = map(torch.from_numpy, pad_histories(cases.histories[part], model.config.max_length))
        moments = None
        if cases.context is not None:
            width = len(model.config.context)
            moments = torch.from_numpy(pad_context(cases.context[part], model.config.max_length, width))
        with applied(model, weights):
            hidden = model.encode_last(rows, lengths, items, moments)
        found = _candidates(hidden @ items.T, cases.histories[part], targets[part], num_candidates)
        parts.append((hidden, rows, *found))
    hidden, history, candidates, ranks = (torch.cat(column) for column in zip(*parts, strict=True))
    return Retrieved(hidden=hidden, history=history, candidates=candidates, targets=targets, ranks=ranks.numpy())


def _candidates(scores: Tensor, histories: Sequence[History], targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return candidates (n, count) and the targets' ranks (n,) of scores (n, num_items + 1)."""
    row = torch.arange(len(scores))
    target_scores = scores[row, targets]
    scores[:, 0] = -torch.inf
    for at, history in enumerate(histories):
        scores[at, torch.from_numpy(history)] = -torch.inf
    scores[row, targets] = target_scores
    ranks = (scores >= target_scores[:, None]).sum(dim=1)
    best, found = scores.topk(min(count, scores.shape[1] - 1), dim=1)
    candidates = torch.zeros(len(scores), count, dtype=torch.int64)
    candidates[:, : found.shape[1]] = torch.where(best > -torch.inf, found, 0)
    return candidates, ranks


def count_items(histories: Sequence[History], num_items: int) -> Tensor:
    """Count the events of every item, (num_items + 1,)."""
    return torch.from_numpy(np.bincount(np.concatenate(histories), minlength=num_items + 1))


@torch.no_grad()
def two_stage_ranks(model: SASRec, head: RankingHead, found: Retrieved, *, batch_size: int = 1024) -> NDArray[np.int64]:
    """Rank every case's target after the second stage, ties counted against it.

    The head orders the candidates; a target that is none of them keeps the rank that the first stage gave it.

    Args:
        model: the base.
        head: in eval mode.
        found: what the first stage made of the cases, with as many candidates as the head takes.
        batch_size: cases at a time.

    Returns:
        (n,) ranks from 1.
    """
    items, parts = model.item_vectors(), []
    for start in range(0, len(found), batch_size):
        part = slice(start, start + batch_size)
        candidates, targets = found.candidates[part], found.targets[part, None]
        features = head.features(found.hidden[part], found.history[part], candidates, items)
        scores = head(features).masked_fill(candidates == 0, -torch.inf)
        is_target = candidates == targets
        own = scores.masked_fill(~is_target, -torch.inf).amax(dim=1, keepdim=True)
        ranks = ((scores >= own) & (candidates > 0)).sum(dim=1)
        parts.append(torch.where(is_target.any(dim=1), ranks, torch.from_numpy(found.ranks[part])))
    return torch.cat(parts).numpy()


def train_ranking(
    model: SASRec,
    cases: Cases,
    validation: Cases,
    counts: Tensor,
    shape: RankingConfig,
    config: TrainRankingConfig,
    *,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> RankingHead:
    """Train a head on a frozen base; return it in eval mode, as it was at its best epoch.

    Epoch 0 is the untrained head, which keeps the first stage's order: a head that never beats it is never returned.

    Args:
        model: the base, in eval mode.
        cases: what it is trained on.
        validation: cases of other users, for early stopping.
        counts: (num_items + 1,) events of each item among the users of ``cases``, from ``count_items``.
        shape: of the head.
        config: the recipe.
        on_epoch: called after each epoch, 0 included.

    Raises:
        DataError: no case whose target is a candidate.
    """
    base_hash = hash_state(model.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = RankingHead(shape, popularity_of(counts), base_hash)
    train, judged = (retrieve(model, part, shape.num_candidates) for part in (cases, validation))
    train = _where_found(train)
    if len(train) == 0 or len(judged) == 0:
        raise DataError(f"a ranking head needs cases, got {len(train)} to train on and {len(judged)} to judge by")
    items = model.item_vectors().detach()
    _standardise(head, train, items)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_state, since_best = -1.0, head.state_dict(), 0
    for number in range(config.max_epochs + 1):
        loss = _train_epoch(head, items, train, optimizer, config, number) if number else float("nan")
        score = float(ndcg(two_stage_ranks(model, head.eval(), judged), 10).mean())
        since_best += 1
        if score > best:
            best, best_state, since_best = score, {k: v.clone() for k, v in head.state_dict().items()}, 0
        on_epoch(Epoch(number=number, loss=loss, ndcg=score, best=since_best == 0))
        if since_best >= config.patience:
            break
    head.load_state_dict(best_state)
    return head.requires_grad_(False).eval()


def _where_found(found: Retrieved) -> Retrieved:
    """Keep the cases whose target is among the candidates."""
    kept = (found.candidates == found.targets[:, None]).any(dim=1)
    return Retrieved(
        hidden=found.hidden[kept],
        history=found.history[kept],
        candidates=found.candidates[kept],
        targets=found.targets[kept],
        ranks=found.ranks[kept.numpy()],
    )


def _standardise(head: RankingHead, train: Retrieved, items: Tensor) -> None:
    """Take mean and deviation of the features of some cases' candidates."""
    some = slice(0, 2000)
    features = head.features(train.hidden[some], train.history[some], train.candidates[some], items)
    real = features[train.candidates[some] > 0]  # (candidates, NUM_FEATURES)
    head.mean.copy_(real.mean(dim=0))
    head.std.copy_(real.std(dim=0, correction=0).clamp(min=1e-3))


def _train_epoch(
    head: RankingHead,
    items: Tensor,
    train: Retrieved,
    optimizer: torch.optim.Optimizer,
    config: TrainRankingConfig,
    number: int,
) -> float:
    generator = torch.Generator().manual_seed(config.seed * 1000 + number)
    total = 0.0
    for rows in torch.randperm(len(train), generator=generator).split(config.batch_size):
        chosen = _with_negatives(train, rows, config.num_negatives, generator)  # (batch, 1 + negatives)
        scores = head.train()(head.features(train.hidden[rows], train.history[rows], chosen, items))
        loss = nn.functional.cross_entropy(scores.masked_fill(chosen == 0, -torch.inf), torch.zeros_like(rows))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(train)


def _with_negatives(train: Retrieved, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the target and other candidates in random order, (batch, 1 + count), 0 where there are fewer."""
    pool = train.candidates[rows]
    order = torch.rand(pool.shape, generator=generator).masked_fill(pool == train.targets[rows, None], 2.0)
    places = order.argsort(dim=1)[:, : min(count, pool.shape[1] - 1)]  # the target comes last, and is not among them
    return torch.cat([train.targets[rows, None], pool.gather(1, places)], dim=1)
