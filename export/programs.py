"""The device program's methods as pure functions of tensors.

Each method takes the adapter as one flat vector and closes over a frozen base, so it can be run eagerly, compared, and
traced by ``export.lower``. The item table is computed once here and is a constant of the program: what the base adds up
from id embeddings and content at every call, the device only looks up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import require
from ownlet.shared.lora import applied
from ownlet.shared.model import SASRec
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.step import dp_sgd_step

__all__ = ["FrozenBase", "Method", "ProgramShape", "build_methods"]


class FrozenBase(SASRec):
    """A copy of a base whose item table is a constant; its numbers are the base's own, bit for bit."""

    items: Tensor

    @classmethod
    def of(cls, model: SASRec) -> FrozenBase:
        """Return a frozen copy, in evaluation mode, of a base that was prepared with ``attach``."""
        frozen = copy.deepcopy(model)
        frozen.__class__ = cls
        assert isinstance(frozen, FrozenBase)  # for the type checker; the line above made it one
        with torch.no_grad():
            frozen.register_buffer("items", model.item_vectors().detach().clone())
        return frozen.requires_grad_(False).eval()

    def item_vectors(self) -> Tensor:
        """Return the table (num_items + 1, d) that was computed when the base was frozen."""
        return self.items


@dataclass(frozen=True, kw_only=True)
class ProgramShape:
    """The static sizes of a device program.

    Args:
        windows: how a history is cut; ``row_length`` is the length of a row of ``step`` and ``loss``.
        batch: windows in one call of ``step`` and ``loss``.
        top_k: items in one answer of ``recommend``; at most the catalogue.
    """

    windows: WindowConfig
    batch: int = 4
    top_k: int = 100

    def __post_init__(self) -> None:
        require(self.batch >= 1, "batch must be at least 1", batch=self.batch)
        require(self.top_k >= 1, "top_k must be at least 1", top_k=self.top_k)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method: a pure function, its argument names, one example of its arguments and its result names."""

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    arguments: tuple[str, ...]
    example: tuple[Tensor, ...]
    results: tuple[str, ...]


def build_methods(base: FrozenBase, spec: AdapterSpec, shape: ProgramShape) -> tuple[Method, ...]:
    """Return the four methods of a device program.

    * ``score(vector (P,), history (1, max_length), length (1,)) -> scores (num_items + 1,)``
    * ``recommend(vector, history, length, seen (num_items + 1,) bool) -> items (K,), scores (K,)``; padding and seen
      items score -inf, ties come in the order of ``torch.topk``.
    * ``step(vector, history (batch, row_length), target, valid, noise (num_trainable,), clip (), rate ()) -> vector,
      losses (batch,), norms (batch,)``: ``shared.step.dp_sgd_step``.
    * ``loss(vector, history, target, valid) -> losses (batch,)``

    Args:
        base: the frozen base.
        spec: the adapter's spec.
        shape: the static sizes; the rows must fit the base's ``max_length``.

    Raises:
        ConfigError: rows longer than the base reads, or a top-k larger than the catalogue.
    """
    max_length, row_length = base.config.max_length, shape.windows.row_length
    require(row_length <= max_length, f"row_length must be at most max_length {max_length}", row_length=row_length)
    require(shape.top_k <= base.num_items, f"top_k must be at most num_items {base.num_items}", top_k=shape.top_k)

    def score(vector: Tensor, history: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        with applied(base, spec.split(vector)):
            return (base.score_last(history, length)[0],)

    def recommend(vector: Tensor, history: Tensor, length: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        (scores,) = score(vector, history, length)
        scores = torch.where(seen | padding, -torch.inf, scores)  # (num_items + 1,)
        best, items = scores.topk(shape.top_k)
        return items, best

    def step(
        vector: Tensor, history: Tensor, target: Tensor, valid: Tensor, noise: Tensor, clip: Tensor, rate: Tensor
    ) -> tuple[Tensor, ...]:
        return dp_sgd_step(base, spec, vector, history, target, valid, noise, clip, rate)

    def loss(vector: Tensor, history: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        with applied(base, spec.split(vector)):
            return (softmax_loss(base(history), target, valid),)

    padding = torch.arange(base.num_items + 1) == 0
    vector = torch.zeros(spec.size)
    row = (torch.ones(1, max_length, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    rows = torch.ones(shape.batch, row_length, dtype=torch.int64)
    windows = (rows, rows.clone(), torch.ones(shape.batch, row_length))
    numbers = (torch.zeros(spec.num_trainable), torch.tensor(1.0), torch.tensor(0.1))
    window_names = ("vector", "history", "target", "valid")
    return (
        Method(
            name="score",
            function=score,
            arguments=("vector", "history", "length"),
            example=(vector, *row),
            results=("scores",),
        ),
        Method(
            name="recommend",
            function=recommend,
            arguments=("vector", "history", "length", "seen"),
            example=(vector, *row, padding.clone()),
            results=("items", "scores"),
        ),
        Method(
            name="step",
            function=step,
            arguments=(*window_names, "noise", "clip", "rate"),
            example=(vector, *windows, *numbers),
            results=("vector", "losses", "norms"),
        ),
        Method(
            name="loss",
            function=loss,
            arguments=window_names,
            example=(vector, *windows),
            results=("losses",),
        ),
    )
