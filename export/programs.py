"""The device program's methods as pure functions of tensors.

Each method takes the adapter as one flat vector and the item table as a matrix, and closes over a frozen base, so it
can be run eagerly, compared, and traced by ``export.lower``. Beside each stands its reference: what the shared code,
which knows nothing of device programs, computes from the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ownlet.export.frozen import FrozenBase
from ownlet.export.objectives import EXTRA_ARGUMENTS, ProgramObjective, check_objective, extra_examples
from ownlet.export.serving import rank_columns, score_columns
from ownlet.export.training import loss_columns, step_columns
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.candidates import Candidates
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import require
from ownlet.shared.lora import applied
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.ranking import RankingHead
from ownlet.shared.step import dp_sgd_step

__all__ = ["BATCHES", "Method", "ProgramShape", "build_methods"]

BATCHES = (1, 4, 16)


@dataclass(frozen=True, kw_only=True)
class ProgramShape:
    """The static sizes of a device program.

    Args:
        windows: how a history is cut; ``row_length`` is the length of a row of ``step`` and ``loss``.
        batches: windows in one call of each variant of ``step``, rising.
        capacity: the most items that a catalogue may grow to.
        objective: what ``step`` minimises; ``loss`` is the full softmax whatever it is.
        num_negatives: candidates of a window that stand for the catalogue in it; 0 is the whole catalogue.
    """

    windows: WindowConfig
    batches: tuple[int, ...] = BATCHES
    capacity: int
    objective: ProgramObjective = "softmax"
    num_negatives: int = 0

    def __post_init__(self) -> None:
        rising = len(self.batches) > 0 and list(self.batches) == sorted(set(self.batches)) and self.batches[0] >= 1
        require(rising, "batches must be rising numbers, at least 1", batches=self.batches)
        check_objective(self.objective, self.num_negatives)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method.

    Args:
        name: its name in the program.
        function: what is traced.
        reference: what it must agree with: a function of the same arguments.
        arguments: names, in order; ``items`` is the table, whose columns only the device counts.
        example: one example of the arguments.
        results: names, in order.
    """

    name: str
    function: Callable[..., tuple[Tensor, ...]]
    reference: Callable[..., tuple[Tensor, ...]]
    arguments: tuple[str, ...]
    example: tuple[Tensor, ...]
    results: tuple[str, ...]


def build_methods(
    base: FrozenBase, spec: AdapterSpec, shape: ProgramShape, ranking: RankingHead | None = None
) -> tuple[Method, ...]:
    """Return the methods of a device program.

    * ``score(vector (P,), items (d, num_items), history (1, max_length), length (1,)) -> scores (1, num_items)``
    * ``step_B(vector, items, history (B, row_length), target, valid, noise (num_trainable,), clip (), rate ()) ->
      vector, norms (B,)`` for every B of ``shape.batches``: ``shared.step.dp_sgd_step``; with candidates, their
      arguments (``objectives.EXTRA_ARGUMENTS``) stand behind ``valid``.
    * ``loss(vector, items, history, target, valid) -> losses (B,)`` for the smallest B.
    * ``rank(vector, items, history, length, candidates (1, C)) -> ranking_scores (1, C)``, with a ranking head.

    Where the base reads context, each has one more argument, the last: ``context`` (1, max_length, fields) or
    (B, row_length, fields), the rows of each position's context.

    Args:
        base: the frozen base.
        spec: the adapter's spec.
        shape: the static sizes; the rows must fit the base's ``max_length``.
        ranking: the base's ranking head, if it has one.

    Raises:
        ConfigError: rows longer than the base reads, or a capacity below the catalogue.
    """
    max_length, row_length = base.config.max_length, shape.windows.row_length
    require(row_length <= max_length, f"row_length must be at most max_length {max_length}", row_length=row_length)
    enough = shape.capacity >= base.num_items
    require(enough, f"capacity must be at least num_items {base.num_items}", capacity=shape.capacity)
    steps = (_step(base, spec, batch, shape) for batch in shape.batches)
    stages = () if ranking is None else (_rank(base, spec, ranking),)
    return (_score(base, spec), *steps, _loss(base, spec, shape.batches[0], row_length), *stages)


def _score(base: FrozenBase, spec: AdapterSpec) -> Method:
    def function(vector: Tensor, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return (score_columns(base, spec, vector, items, *rest),)

    def reference(vector: Tensor, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        with applied(base, spec.split(vector)):
            return (base.score_last(*rest)[:, 1:],)

    more = _context(base, 1, base.config.max_length)
    return Method(
        name="score",
        function=function,
        reference=reference,
        arguments=("vector", "items", "history", "length", *more),
        example=(torch.zeros(spec.size), base.item_columns(), *_history(base), *more.values()),
        results=("scores",),
    )


def _step(base: FrozenBase, spec: AdapterSpec, batch: int, shape: ProgramShape) -> Method:
    extra = EXTRA_ARGUMENTS[shape.objective] if shape.num_negatives else ()

    first, last = 3, 3 + len(extra)  # places of the candidates

    def function(vector: Tensor, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        others, given = (*rest[:first], *rest[last:]), rest[first:last]
        return step_columns(base, spec, vector, items, *others, extra=given, objective=shape.objective)

    def reference(vector: Tensor, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        others, given = (*rest[:first], *rest[last:]), dict(zip(extra, rest[first:last], strict=True))
        candidates = _candidates(shape, given) if extra else None
        stepped, _, norms = dp_sgd_step(base, spec, vector, *others, candidates=candidates)
        return stepped, norms

    row_length = shape.windows.row_length
    examples = extra_examples(shape.objective, batch, row_length, shape.num_negatives) if extra else ()
    numbers = (torch.zeros(spec.num_trainable), torch.tensor(1.0), torch.tensor(0.1))
    start, more = (torch.zeros(spec.size), base.item_columns()), _context(base, batch, row_length)
    return Method(
        name=f"step_{batch}",
        function=function,
        reference=reference,
        arguments=("vector", "items", "history", "target", "valid", *extra, "noise", "clip", "rate", *more),
        example=(*start, *_windows(batch, row_length), *examples, *numbers, *more.values()),
        results=("vector", "norms"),
    )


def _candidates(shape: ProgramShape, given: dict[str, Tensor]) -> Candidates:
    """Return what the shared code makes of a step's arguments; which candidates take part it sees for itself."""
    return Candidates(
        config=ObjectiveConfig(objective=shape.objective, num_negatives=shape.num_negatives),
        items=given["negatives"],
        correction=given.get("correction", torch.zeros_like(given["negatives"], dtype=torch.float32)),
        positive_weight=float(given.get("positive_weight", 1.0)),
    )


def _loss(base: FrozenBase, spec: AdapterSpec, batch: int, row_length: int) -> Method:
    def function(vector: Tensor, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return (loss_columns(base, spec, vector, items, *rest),)

    def reference(
        vector: Tensor, items: Tensor, history: Tensor, target: Tensor, valid: Tensor, *context: Tensor
    ) -> tuple[Tensor, ...]:
        with applied(base, spec.split(vector)):
            return (softmax_loss(base(history, *context), target, valid),)

    more = _context(base, batch, row_length)
    return Method(
        name="loss",
        function=function,
        reference=reference,
        arguments=("vector", "items", "history", "target", "valid", *more),
        example=(torch.zeros(spec.size), base.item_columns(), *_windows(batch, row_length), *more.values()),
        results=("losses",),
    )


def _rank(base: FrozenBase, spec: AdapterSpec, head: RankingHead) -> Method:
    def function(vector: Tensor, items: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return (rank_columns(base, spec, head, vector, items, *rest),)

    def reference(
        vector: Tensor, items: Tensor, history: Tensor, length: Tensor, candidates: Tensor, *context: Tensor
    ) -> tuple[Tensor, ...]:
        with applied(base, spec.split(vector)):
            return (head.rank(base, candidates, history, length, *context),)

    candidates = torch.ones(1, head.config.num_candidates, dtype=torch.int64)
    more = _context(base, 1, base.config.max_length)
    return Method(
        name="rank",
        function=function,
        reference=reference,
        arguments=("vector", "items", "history", "length", "candidates", *more),
        example=(torch.zeros(spec.size), base.item_columns(), *_history(base), candidates, *more.values()),
        results=("ranking_scores",),
    )


def _history(base: FrozenBase) -> tuple[Tensor, Tensor]:
    return torch.ones(1, base.config.max_length, dtype=torch.int64), torch.ones(1, dtype=torch.int64)


def _windows(batch: int, row_length: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.ones(batch, row_length, dtype=torch.int64)
    return rows, rows.clone(), torch.ones(batch, row_length)


def _context(base: FrozenBase, batch: int, length: int) -> dict[str, Tensor]:
    """Return the argument that a base has only if it reads context, with an example."""
    fields = len(base.config.context)
    return {"context": torch.zeros(batch, length, fields, dtype=torch.int64)} if fields else {}
