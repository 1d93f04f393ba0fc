"""What ownlet asks of a base: four members, whatever is behind them.

``SASRec`` has them. Any other ``torch.nn.Module`` gets them in one of two ways: it defines them itself, or
``ScoredModule`` adds them to a module and a scoring function. ``shared.probe`` checks what a signature cannot say.
docs/your_model.md is the guide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.errors import require
from ownlet.shared.model import SASRec

__all__ = ["Recommender", "ScoredModule", "Scoring", "known_frequencies", "last_scores", "module_of", "scores"]

Scoring = Callable[[nn.Module, Tensor], Tensor]
"""Maps (module, history (batch, length)) to scores (batch, length, num_items + 1)."""


class Recommender(Protocol):
    """A ``torch.nn.Module`` that scores every item as the next one after every position of a history.

    Items are numbered from 1; 0 is padding and stands behind the last event. Scores at a position depend on the events
    up to it, and on nothing else: not on later events, not on other rows of the batch, not on chance. Linear layers
    that carry an adapter read inputs whose first axis is the batch, (batch, ..., in).
    """

    training: bool

    @property
    def num_items(self) -> int:
        """Items in the catalogue."""
        ...

    @property
    def max_length(self) -> int:
        """The longest history that is read."""
        ...

    def __call__(self, history: Tensor) -> Tensor:
        """Score after every position: history (batch, length) -> (batch, length, num_items + 1)."""
        ...

    def score_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Score after the last event: history (batch, length), lengths (batch,) -> (batch, num_items + 1)."""
        ...


class ScoredModule(nn.Module):
    """Makes a ``Recommender`` of a module and a function that scores with it.

    Args:
        module: any module with ``nn.Linear`` layers.
        scoring: a function of the module and a history. It must use the module that it is given, not one that it
            remembers: engines copy the module.
        num_items: items in the catalogue.
        max_length: the longest history that the module reads.
    """

    def __init__(self, module: nn.Module, scoring: Scoring, *, num_items: int, max_length: int) -> None:
        super().__init__()
        require(num_items >= 1, "num_items must be at least 1", num_items=num_items)
        require(max_length >= 1, "max_length must be at least 1", max_length=max_length)
        self.module, self.scoring = module, scoring
        self.num_items, self.max_length = num_items, max_length

    def forward(self, history: Tensor) -> Tensor:
        """Score the next item after every position: history (batch, length) -> (batch, length, num_items + 1)."""
        return self.scoring(self.module, history)

    def score_last(self, history: Tensor, lengths: Tensor) -> Tensor:
        """Score the next item after the last of ``lengths`` (batch,) events: (batch, num_items + 1)."""
        every = self.scoring(self.module, history)  # (batch, length, num_items + 1)
        return every[torch.arange(len(history), device=history.device), lengths - 1]


def scores(model: Recommender, history: Tensor, context: Tensor | None = None) -> Tensor:
    """Score after every position, (batch, length, num_items + 1), with context (batch, length, fields) if there is any.

    Raises:
        ConfigError: context for a base that reads none.
    """
    return model(history) if context is None else _reader(model)(history, context)


def last_scores(model: Recommender, history: Tensor, lengths: Tensor, context: Tensor | None = None) -> Tensor:
    """Score after the last event, (batch, num_items + 1); see ``scores``."""
    if context is None:
        return model.score_last(history, lengths)
    return _reader(model).score_last(history, lengths, context)


def _reader(model: Recommender) -> SASRec:
    require(isinstance(model, SASRec), "context must be None for a base that reads none", base=type(model).__name__)
    assert isinstance(model, SASRec)  # for the type checker
    return model


def module_of(model: Recommender) -> nn.Module:
    """Return the same model as a module: a protocol cannot ask for a base class.

    Raises:
        ConfigError: it is not a ``torch.nn.Module``.
    """
    require(isinstance(model, nn.Module), "model must be a torch.nn.Module", model=type(model).__name__)
    assert isinstance(model, nn.Module)  # for the type checker
    return model


def known_frequencies(model: Recommender) -> NDArray[np.int64] | None:
    """Return how often public users chose each item, (num_items + 1,), where the model says it in ``frequencies``."""
    found = getattr(module_of(model), "frequencies", None)
    return None if found is None else found.numpy(force=True)
