"""Which loss a training minimises, and which items stand for the catalogue in it. Public settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ownlet.shared.errors import require

__all__ = ["ObjectiveConfig"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """An objective and its negatives; local training (``Plan``) and the base's own extend it.

    Args:
        objective: ``softmax`` (full with ``num_negatives`` 0, else sampled with logQ correction), ``bpr``, ``bce``,
            ``listnet`` or ``lambda``; ``shared.objectives`` has the formulas.
        num_negatives: items that stand for the catalogue at a position; 0 is the whole catalogue, softmax only.
        negatives: where they come from. ``uniform``: every item is equally likely. ``popularity``: as likely as it is
            frequent among public users. ``in-batch``: drawn from the targets of the step's batch, on a device those of
            the same user; refused where windows are clipped one by one, since a window's gradient would depend on the
            others. ``hard``: of ``hard_pool`` times as many uniform ones, those that score highest at the position.
        hard_pool: with ``hard``, items drawn for each one that is kept.
        calibration: of ``bce``: t of gBCE, 0 is plain binary cross-entropy, 1 corrects for the sampling in full.
    """

    objective: Literal["softmax", "bpr", "bce", "listnet", "lambda"] = "softmax"
    num_negatives: int = 0
    negatives: Literal["uniform", "popularity", "in-batch", "hard"] = "uniform"
    hard_pool: int = 8
    calibration: float = 0.0

    def __post_init__(self) -> None:
        names, sources = ("softmax", "bpr", "bce", "listnet", "lambda"), ("uniform", "popularity", "in-batch", "hard")
        require(self.objective in names, f"objective must be one of {names}", objective=self.objective)
        require(self.negatives in sources, f"negatives must be one of {sources}", negatives=self.negatives)
        require(self.num_negatives >= 0, "num_negatives must not be negative", num_negatives=self.num_negatives)
        full = self.objective == "softmax" and self.negatives == "uniform"
        require(
            self.num_negatives >= 1 or full,
            "num_negatives must be at least 1 but for the full softmax",
            num_negatives=self.num_negatives,
            objective=self.objective,
            negatives=self.negatives,
        )
        require(self.hard_pool >= 1, "hard_pool must be at least 1", hard_pool=self.hard_pool)
        require(0 <= self.calibration <= 1, "calibration must be in [0, 1]", calibration=self.calibration)
        require(
            self.calibration == 0 or self.objective == "bce",
            "calibration must be 0 but for bce",
            calibration=self.calibration,
            objective=self.objective,
        )

    @property
    def num_drawn(self) -> int:
        """Items that are drawn for a window."""
        return self.num_negatives * (self.hard_pool if self.negatives == "hard" else 1)

    @property
    def needs_frequencies(self) -> bool:
        """Whether the public frequencies of items take part: in the drawing, or in the logQ correction."""
        return self.negatives == "popularity" or (self.negatives == "in-batch" and self.objective == "softmax")
