"""How the sums of single nodes become one sum.

``ExactSum`` adds them up one by one, in whole numbers: each number of a reply is rounded to a multiple of a quantum
that only public numbers decide, and integers add up to the same sum in any order. So a round holds one running sum,
however many nodes answer, and its result does not depend on who is faster. Other combiners are in
``server/robust.py``.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import Vector
from ownlet.shared.errors import require

__all__ = ["Combiner", "ExactSum"]

_BITS = 62  # of a 64-bit integer; one is the sign, one is room for rounding


class Combiner(Protocol):
    """Takes the admitted sums of a round, one after the other, and says what stands for the sum of all."""

    def add(self, total: Vector, num_users: int) -> None:
        """Take the sum of one node's users, (n,), of which ``num_users`` were asked."""
        ...

    def result(self) -> NDArray[np.float64]:
        """Return what stands for the sum over all users, (n,)."""
        ...


class ExactSum:
    """The sum, equal to the last bit in any order of arrival. 8 bytes per number."""

    def __init__(self, size: int, bound: float) -> None:
        """Start at zero.

        Args:
            size: numbers in a reply.
            bound: no number of the sum may be larger than this in size; with it the quantum is at most ``bound`` 2^-61.

        Raises:
            ConfigError: the bound is not a positive finite number.
        """
        require(0 < bound < math.inf, "bound must be positive and finite", bound=bound)
        self._quantum = math.ldexp(1.0, math.frexp(bound)[1] - _BITS)
        self._sum = np.zeros(size, dtype=np.int64)

    def add(self, total: Vector | NDArray[np.float64], num_users: int) -> None:
        """Take the sum of one node's users, (n,). A power of two divides a float32 without an error."""
        self._sum += np.rint(total.astype(np.float64) / self._quantum).astype(np.int64)

    def result(self) -> NDArray[np.float64]:
        """Return the sum, (n,)."""
        return self._sum.astype(np.float64) * self._quantum
