"""Sources of randomness that watch or steer a mechanism without changing its code."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.noise import NoiseSource

__all__ = ["Batch", "Recorded", "Silenced", "Steered"]

Batch = Literal["all", "none", "drawn"]
"""Who is in a step: every unit that is present, nobody, or whom the mechanism's own coins choose."""


class Steered:
    """Decides who is in a batch, and gives every window the same candidates, so that releases can be compared."""

    def __init__(self, inner: NoiseSource, batch: Batch) -> None:
        """Take the source of everything else."""
        self._inner, self._batch = inner, batch

    def poisson_mask(self, size: int, rate: float) -> NDArray[np.bool_]:
        """Return (size,) coins, real or forced."""
        drawn = self._inner.poisson_mask(size, rate)
        return drawn if self._batch == "drawn" else np.full(size, self._batch == "all")

    def gaussian(self, size: int, std: float) -> NDArray[np.float32]:
        """Return what the inner source draws."""
        return self._inner.gaussian(size, std)

    def negatives(self, windows: int, number: int, num_items: int) -> NDArray[np.int64]:
        """Return (windows, number), the same spread of items in every row."""
        row = 1 + (np.arange(number) * num_items) // max(1, number)
        return np.tile(row.astype(np.int64), (windows, 1))


class Silenced:
    """Real coins, no noise: who was in a batch shows in the sum."""

    def __init__(self, inner: NoiseSource) -> None:
        """Take the source of the coins."""
        self._inner = inner

    def poisson_mask(self, size: int, rate: float) -> NDArray[np.bool_]:
        """Return (size,) coins of the inner source."""
        return self._inner.poisson_mask(size, rate)

    def gaussian(self, size: int, std: float) -> NDArray[np.float32]:
        """Return zeros."""
        return np.zeros(size, np.float32)

    def negatives(self, windows: int, number: int, num_items: int) -> NDArray[np.int64]:
        """Return what the inner source draws."""
        return self._inner.negatives(windows, number, num_items)


class Recorded:
    """Keeps the normals that were drawn."""

    def __init__(self, inner: NoiseSource) -> None:
        """Take the source that draws."""
        self._inner = inner
        self._normals: list[NDArray[np.float32]] = []

    @property
    def normals(self) -> NDArray[np.float64]:
        """All normals so far, in order."""
        return np.concatenate([np.zeros(0), *self._normals])

    def poisson_mask(self, size: int, rate: float) -> NDArray[np.bool_]:
        """Return (size,) coins of the inner source."""
        return self._inner.poisson_mask(size, rate)

    def gaussian(self, size: int, std: float) -> NDArray[np.float32]:
        """Draw and keep."""
        drawn = self._inner.gaussian(size, std)
        self._normals.append(drawn.copy())
        return drawn

    def negatives(self, windows: int, number: int, num_items: int) -> NDArray[np.int64]:
        """Return what the inner source draws."""
        return self._inner.negatives(windows, number, num_items)
