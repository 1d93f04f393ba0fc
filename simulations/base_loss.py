"""What the base minimises in a batch: the next item by any objective, and beside it the next genre where asked for.

Full cross-entropy is the default: it is what makes SASRec strong (Klenitskiy and Vasilev 2023,
https://arxiv.org/abs/2309.07602). The others are those of local training (``shared.objectives``); each history has
negatives of its own, and in-batch ones are targets of all histories of the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.candidates import Candidates, CandidateSampler
from ownlet.shared.errors import require
from ownlet.shared.model import SASRec
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.objectives import candidate_losses
from ownlet.shared.recommender import Recommender, known_frequencies, scores
from ownlet.shared.windows import Windows
from ownlet.simulations.genres import GenreHead

__all__ = ["BaseLoss", "item_frequencies"]


def item_frequencies(histories: list[NDArray[np.int64]], num_items: int) -> NDArray[np.int64]:
    """Count how often each item is in the histories, (num_items + 1,)."""
    return np.bincount(np.concatenate(histories), minlength=num_items + 1)


class _Seeded:
    """Candidates of an epoch; a continued training draws what an uninterrupted one would have drawn."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def negatives(self, windows: int, number: int, num_items: int) -> NDArray[np.int64]:
        return self._rng.integers(1, num_items + 1, (windows, number))


class BaseLoss:
    """Computes the loss of batches of one epoch."""

    def __init__(
        self,
        config: ObjectiveConfig,
        model: Recommender,
        *,
        seed: int,
        epoch: int,
        head: GenreHead | None = None,
        genre_weight: float = 0.0,
    ) -> None:
        """Start an epoch.

        Args:
            config: the objective of the next item.
            model: the base; it must know its items' frequencies where the negatives need them.
            seed: of the negatives, together with the epoch.
            epoch: counted from 1.
            head: of the auxiliary task; None where there is none.
            genre_weight: what its loss is multiplied by.

        Raises:
            ConfigError: the negatives need frequencies that the base does not know, or a head for a base whose hidden
                states are its own affair.
        """
        require(
            head is None or isinstance(model, SASRec), "head must be None but for SASRec", base=type(model).__name__
        )
        self._model, self._head, self._genre_weight = model, head, genre_weight
        self._sampler = CandidateSampler(config, model.num_items, known_frequencies(model))
        self._source = _Seeded(seed, epoch, 1)

    def __call__(self, rows: Tensor, target: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the mean loss over the targets of a batch, a scalar.

        Args:
            rows: (batch, length) item numbers, padded on the right with 0.
            target: (batch, length) the item after each position, 0 for none.
            context: (batch, length, fields) of the moment of each question, where the base reads any.
        """
        real = target > 0
        if not isinstance(self._model, SASRec):
            return self._loss_of_scores(scores(self._model, rows, context), rows, target)
        items = self._model.item_vectors()
        states = self._model.encode(rows, items, context)  # (batch, length, d)
        hidden = states[real]  # (targets, d): no work on padding
        if self._sampler.config.num_negatives == 0:
            loss = nn.functional.cross_entropy(hidden @ items[1:].T, target[real] - 1)
        else:
            candidates = self._candidates(rows, target)
            negative = torch.bmm(states, items[candidates.items].mT)  # (batch, length, n)
            positive = (states * items[target]).sum(-1, keepdim=True)  # (batch, length, 1)
            loss = _sampled(candidates, positive, negative, target)[real].mean()
        if self._head is None:
            return loss
        return loss + self._genre_weight * self._head.loss(hidden, target[real])

    def _loss_of_scores(self, table: Tensor, rows: Tensor, target: Tensor) -> Tensor:
        """Do the same for a base of which only its scores (batch, length, num_items + 1) are known."""
        real = target > 0
        if self._sampler.config.num_negatives == 0:
            return nn.functional.cross_entropy(table[real][:, 1:], target[real] - 1)
        candidates = self._candidates(rows, target)
        negative = table.gather(-1, candidates.items.unsqueeze(1).expand(-1, table.shape[1], -1))
        positive = table.gather(-1, target.unsqueeze(-1))
        return _sampled(candidates, positive, negative, target)[real].mean()

    def _candidates(self, rows: Tensor, target: Tensor) -> Candidates:
        valid = (target > 0).float().numpy()
        windows = Windows(history=rows.numpy(), target=target.numpy(), valid=valid)
        drawn = self._sampler.draw(self._source, windows, np.ones(len(windows), np.bool_))
        return self._sampler.candidates(drawn)


def _sampled(candidates: Candidates, positive: Tensor, negative: Tensor, target: Tensor) -> Tensor:
    """Return the loss at every position, (batch, length); anything where there is no target."""
    return candidate_losses(candidates, positive, negative, candidates.kept(target, negative.detach()))
