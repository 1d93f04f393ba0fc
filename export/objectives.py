"""The gradient of objectives of a few candidates, in the operations that XNNPACK takes whole.

The closed forms of ``shared.objectives.candidate_gradients``, with sums over the last axis as products with ones. The
host draws the candidates and says which take part, so nothing is compared or sorted here. For that reason ``lambda`` is
missing: its weights come from ranks, and a sort of every position's scores would run outside of the delegates; and so
are hard negatives, which are chosen by scores that only the program knows. The item table is read at the candidates and
at nothing else: a step's cost does not grow with the catalogue.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ownlet.export.frozen import look_up
from ownlet.export.parts import sum_of_last
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.objectives import LISTNET_GRADE

__all__ = [
    "EXTRA_ARGUMENTS",
    "ProgramObjective",
    "candidate_gradient",
    "check_objective",
    "extra_examples",
    "program_objective",
]

ProgramObjective = Literal["softmax", "bpr", "bce", "listnet"]

EXTRA_ARGUMENTS = {
    "softmax": ("negatives", "kept", "correction"),
    "bpr": ("negatives", "kept"),
    "bce": ("negatives", "kept", "positive_weight"),
    "listnet": ("negatives", "kept"),
}
"""Arguments of ``step`` between ``valid`` and ``noise`` where candidates stand for the catalogue, by objective."""


def program_objective(objective: str) -> ProgramObjective:
    """Return the objective, if a program can have it.

    Raises:
        ConfigError: it is ``lambda``, or nothing that exists.
    """
    for known in get_args(ProgramObjective):
        if objective == known:
            return known  # type: ignore[no-any-return]
    names = get_args(ProgramObjective)
    raise ConfigError(f"objective must be one of {names} in a program, which cannot rank scores, got {objective!r}")


def check_objective(objective: str, num_negatives: int) -> None:
    """Raise ConfigError where a program cannot have the objective with so many negatives."""
    program_objective(objective)
    enough = num_negatives >= (0 if objective == "softmax" else 1)
    require(enough, "num_negatives must be at least 1 but for the full softmax", num_negatives=num_negatives)


def extra_examples(objective: str, batch: int, row_length: int, num_negatives: int) -> tuple[Tensor, ...]:
    """Return examples of ``EXTRA_ARGUMENTS``: negatives (batch, n), kept (batch, length, n), correction (batch, n)."""
    examples = {
        "negatives": torch.ones(batch, num_negatives, dtype=torch.int64),
        "kept": torch.ones(batch, row_length, num_negatives),
        "correction": torch.zeros(batch, num_negatives),
        "positive_weight": torch.tensor(1.0),
    }
    return tuple(examples[name] for name in EXTRA_ARGUMENTS[objective])


def candidate_gradient(objective: str, hidden: Tensor, columns: Tensor, target: Tensor, *extra: Tensor) -> Tensor:
    """Return d loss / d hidden at every position, (batch, length, d).

    Args:
        objective: one of ``EXTRA_ARGUMENTS``.
        hidden: (batch, length, d).
        columns: (d, num_items) the item table.
        target: (batch, length) item numbers.
        *extra: the objective's ``EXTRA_ARGUMENTS``.
    """
    negatives, kept, *rest = extra
    batch, number = negatives.shape
    others = look_up(columns, negatives).view(batch, number, hidden.shape[-1])  # (batch, n, d)
    answers = look_up(columns, target).view(hidden.shape)
    negative = torch.bmm(hidden, torch.permute_copy(others, (0, 2, 1)))  # (batch, length, n)
    positive = sum_of_last(hidden * answers)  # (batch, length, 1)
    if objective == "softmax":
        to_positive, to_negative = _softmax(positive, negative + rest[0].view(batch, 1, number), kept)
    elif objective == "listnet":
        to_positive, to_negative = _listnet(positive, negative, kept)
    elif objective == "bce":
        count = sum_of_last(kept) + 1.0
        to_positive = (torch.sigmoid(positive) - 1.0) * rest[0] / count
        to_negative = torch.sigmoid(negative) * kept / count
    else:
        to_negative = torch.sigmoid(negative - positive) * kept / sum_of_last(kept).clamp(min=1.0)
        to_positive = sum_of_last(to_negative) * -1.0
    return torch.bmm(to_negative, others) + answers * to_positive


def _softmax(positive: Tensor, negative: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the softmax over target and kept negatives with respect to their scores."""
    masked = negative + (kept - 1.0) * 1e9  # what is left out is so low that its share is 0
    chances = torch.softmax(torch.cat([positive, masked], dim=-1), dim=-1)  # (batch, length, 1 + n)
    return chances[..., :1] - 1.0, chances[..., 1:]


def _listnet(positive: Tensor, negative: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    number = sum_of_last(kept)
    total = number + math.exp(LISTNET_GRADE)
    to_positive, chances = _softmax(positive, negative, kept)
    return to_positive + number / total, chances - kept / total  # the target's share is 1 - number / total
