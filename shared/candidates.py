"""The items that stand for the catalogue in a batch of windows, and how they are drawn.

Every window has candidates of its own, shared by its positions, drawn anew in every step from the user's own source, so
that engines which are given equal sources agree number by number. The source gives uniform whole numbers only; a
popular item is one that owns more of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.shared.errors import require
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.windows import Windows

__all__ = ["Candidates", "CandidateSampler", "UniformSource"]


class UniformSource(Protocol):
    """Where candidates come from; every ``shared.noise.NoiseSource`` is one."""

    def negatives(self, windows: int, number: int, num_items: int) -> NDArray[np.int64]:
        """Return (windows, number) independent numbers, each of 1..num_items equally likely."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """What stands for the catalogue in a batch of windows.

    Args:
        config: the objective.
        items: (batch, n) item numbers.
        correction: (batch, n) float, ``-log(n q)`` of the softmax's logQ correction, q the chance to be drawn; 0 in all
            other objectives.
        positive_weight: beta of gBCE; 1 in all other objectives.
    """

    config: ObjectiveConfig
    items: Tensor
    correction: Tensor
    positive_weight: float

    def __getitem__(self, rows: Any) -> Candidates:
        """Return those of some of the windows."""
        return replace(self, items=self.items[rows], correction=self.correction[rows])

    def to(self, device: torch.device) -> Candidates:
        """Return the same on a device."""
        return replace(self, items=self.items.to(device), correction=self.correction.to(device))

    def corrections(self) -> Tensor:
        """Return (batch, 1, n), to be added to scores (batch, length, n)."""
        return self.correction.unsqueeze(1)

    @torch.no_grad()
    def kept(self, target: Tensor, scores: Tensor) -> Tensor:
        """Return which candidates take part, (batch, length, n) float.

        None that is the position's target; with hard negatives, of the others those that score highest. The choice is
        a constant: nothing is differentiated through it.

        Args:
            target: (batch, length) item numbers.
            scores: (batch, length, n) of the candidates; its dtype is that of the result.
        """
        kept = self.items.unsqueeze(1) != target.unsqueeze(2)
        if self.config.negatives == "hard":
            listed = scores.masked_fill(~kept, -torch.inf)
            hardest = listed.topk(self.config.num_negatives, dim=-1).indices
            kept = kept & torch.zeros_like(kept).scatter_(-1, hardest, True)
        return kept.to(scores.dtype)


class CandidateSampler:
    """Draws the candidates of windows."""

    def __init__(self, config: ObjectiveConfig, num_items: int, frequencies: NDArray[np.int64] | None = None) -> None:
        """Prepare to draw.

        Args:
            config: the objective; with ``num_negatives`` 0 nothing is ever drawn.
            num_items: items in the catalogue.
            frequencies: (num_items + 1,) how often public users chose each item; one more is added to each, so that
                every item can be drawn.

        Raises:
            ConfigError: the objective needs frequencies and there are none, or for another catalogue.
        """
        self.config, self._num_items = config, num_items
        self._log_chance = np.full(num_items + 1, -np.log(num_items), np.float32)
        self._ends: NDArray[np.int64] | None = None
        if not config.needs_frequencies:
            return
        require(
            frequencies is not None,
            "negatives must be uniform or hard where the base does not know how frequent items are",
            negatives=config.negatives,
        )
        assert frequencies is not None
        require(len(frequencies) == num_items + 1, "frequencies must be of every item", frequencies=len(frequencies))
        owned = frequencies[1:].astype(np.int64) + 1
        self._log_chance[1:] = np.log(owned / owned.sum())
        if config.negatives == "popularity":
            self._ends = np.cumsum(owned)

    def draw(self, source: UniformSource, windows: Windows, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Draw for one user and one step.

        Args:
            source: the user's own.
            windows: all of the user's windows.
            chosen: (windows,) which of them are in the step's batch.

        Returns:
            (windows, n) item numbers, for every window whether chosen or not.
        """
        shape = (len(windows), self.config.num_drawn)
        if self.config.negatives == "in-batch":
            targets = windows.target[chosen][windows.valid[chosen] > 0]
            return targets[source.negatives(*shape, len(targets)) - 1] if len(targets) else np.ones(shape, np.int64)
        if self._ends is None:
            return source.negatives(*shape, self._num_items)
        owners: NDArray[np.int64] = np.searchsorted(self._ends, source.negatives(*shape, int(self._ends[-1])))
        return owners + 1

    def candidates(self, drawn: NDArray[np.int64]) -> Candidates:
        """Return the candidates (batch, n) that were drawn, with what their objective needs to know of them."""
        number = drawn.shape[1]
        correction = np.zeros(drawn.shape, np.float32)
        if self.config.objective == "softmax":
            correction = -(self._log_chance[drawn] + np.float32(np.log(number)))
        return Candidates(
            config=self.config,
            items=torch.from_numpy(drawn),
            correction=torch.from_numpy(correction),
            positive_weight=self._positive_weight(),
        )

    def _positive_weight(self) -> float:
        """Return beta = alpha (t (1 - 1 / alpha) + 1 / alpha) with alpha = n / (N - 1), the share that is drawn."""
        alpha = min(1.0, self.config.num_negatives / max(1, self._num_items - 1))
        return self.config.calibration * (alpha - 1) + 1
