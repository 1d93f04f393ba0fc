"""Correlated noise by matrix factorisation: which correlation, how sensitive it is, and what error it leaves.

What matters of a run is not each round's sum but the sum of all so far, for that is where the adapter is. Noise that
later rounds take back in part leaves less on those prefix sums than independent noise of the same privacy. With A the
n × n matrix of prefix sums and A = B C, the server releases ``x + C⁻¹ z``: one Gaussian mechanism over ``C x``, for
adaptively chosen x, too (Denisov et al. 2022, https://arxiv.org/abs/2202.08312, theorem 2.1). What is left on the
prefix sums is B z.

C is a buffered linear Toeplitz matrix (BLT; Dvijotham et al. 2024, https://arxiv.org/abs/2404.16706): lower triangular,
with ones on its diagonal and, i below it, ``sum over buffers of scale * decay^(i - 1)``. Noise then streams with one
vector per buffer. Its numbers are optimised for the number of rounds and the participation (McMahan, Xu and Zhang 2024,
https://arxiv.org/abs/2408.08868).

A user is in at most k rounds, any two of them at least b apart, with contributions of norm at most 1 (times the clip
norm). Where Toeplitz coefficients are not negative and do not rise, the worst pattern is rounds 0, b, 2b, ... with
equal contributions, so the sensitivity is the norm of the sum of those columns (Kalinin and Lampert 2024,
https://arxiv.org/abs/2405.13763, theorem 2). Neighbours differ in one user's contributions being there or zero; nothing
is gained from who is asked when, all of which may be known.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]

from ownlet.shared.errors import require

__all__ = ["INDEPENDENT", "Factor", "best_factor", "prefix_error", "sensitivity"]


@dataclass(frozen=True, kw_only=True)
class Factor:
    """C: a Toeplitz matrix of any size in a few numbers.

    Args:
        scales: one per buffer, positive, at most 1 together, so that coefficients do not rise.
        decays: one per buffer, in [0, 1).
    """

    scales: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.scales) == len(self.decays), "scales and decays must be as many", scales=self.scales)
        require(all(scale > 0 for scale in self.scales), "scales must be positive", scales=self.scales)
        require(sum(self.scales) <= 1 + 1e-12, "scales must be at most 1 together", scales=self.scales)
        require(all(0 <= decay < 1 for decay in self.decays), "decays must be in [0, 1)", decays=self.decays)

    def coefficients(self, rounds: int) -> NDArray[np.float64]:
        """Return the first column of C, (rounds,)."""
        steps = np.arange(rounds - 1)
        below = sum((s * d**steps for s, d in zip(self.scales, self.decays, strict=True)), np.zeros(rounds - 1))
        return np.concatenate([[1.0], below])

    def inverse_coefficients(self, rounds: int) -> NDArray[np.float64]:
        """Return the first column of C⁻¹, (rounds,): what the noise of one round does in later ones."""
        scales, decays = np.array(self.scales), np.array(self.decays)
        buffers, found = np.zeros(len(scales)), np.zeros(rounds)
        for row in range(rounds):
            found[row] = float(row == 0) - scales @ buffers
            buffers = decays * buffers + found[row]
        return found


INDEPENDENT = Factor()
"""C = 1: independent noise in every round."""


def sensitivity(factor: Factor, rounds: int, separation: int, participations: int) -> float:
    """Return the most that one user moves C x, where each contribution has norm at most 1.

    Args:
        factor: C.
        rounds: n.
        separation: b, the least distance of two rounds of one user.
        participations: k, the most rounds of one user; more than fit in n cost nothing.
    """
    column = factor.coefficients(rounds)
    total = np.zeros(rounds)
    for first in list(range(0, rounds, separation))[:participations]:
        total[first:] += column[: rounds - first]
    return float(np.linalg.norm(total))


def prefix_error(factor: Factor, rounds: int, separation: int, participations: int) -> float:
    """Return the root mean square, over rounds, of the noise on prefix sums, at noise multiplier 1 and clip 1.

    That is the sensitivity times the root mean square of the norms of the rows of ``B = A C⁻¹``, which is lower
    triangular and Toeplitz as well.
    """
    rows = np.cumsum(np.cumsum(factor.inverse_coefficients(rounds)) ** 2)  # (rounds,) squared norms
    return sensitivity(factor, rounds, separation, participations) * float(np.sqrt(rows.mean()))


@functools.lru_cache(maxsize=64)
def best_factor(rounds: int, separation: int, participations: int, buffers: int) -> Factor:
    """Return the factor with the least ``prefix_error``, to the optimiser's tolerance; always the same for the same n.

    Args:
        rounds: n.
        separation: b.
        participations: k.
        buffers: how many vectors the server keeps.

    Raises:
        ConfigError: a number is below 1.
    """
    for name, value in (("rounds", rounds), ("separation", separation), ("participations", participations)):
        require(value >= 1, f"{name} must be at least 1", **{name: value})
    require(buffers >= 1, "buffers must be at least 1", buffers=buffers)

    def error(point: NDArray[np.float64]) -> float:
        return float(np.log(prefix_error(_factor_at(point), rounds, separation, participations)))

    starts = (np.concatenate([np.full(buffers, -1.0), np.linspace(low, high, buffers)]) for low, high in _STARTS)
    options = {"maxiter": 400 * buffers, "xatol": 1e-4, "fatol": 1e-9}
    found = [minimize(error, start, method="Nelder-Mead", options=options) for start in starts]
    return _factor_at(min(found, key=lambda one: float(one.fun)).x)


_STARTS = ((0.0, 3.0), (1.0, 5.0), (3.0, -1.0))  # logits of the decays, first and last buffer


def _factor_at(point: NDArray[np.float64]) -> Factor:
    """Return the factor of any real numbers: shares of 1, with a rest, as scales; logistic values as decays."""
    half = len(point) // 2
    weights = np.exp(np.clip(point[:half], -30, 30))
    decays = 1 / (1 + np.exp(-np.clip(point[half:], -30, 30)))
    scales = weights / (1 + weights.sum())
    return Factor(scales=tuple(map(float, scales)), decays=tuple(float(min(d, 1 - 1e-9)) for d in decays))
