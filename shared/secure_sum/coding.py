"""How deltas become whole numbers: scale, rounding, noise, and what of it is left to privacy.

A user's delta of norm at most C is multiplied by 2^scale and rounded up or down at random, so that nothing is lost on
average. Rounding can make it longer, so it is done again until the squared norm is at most

    min{ (s + sqrt(d))^2, s^2 + d / 4 + sqrt(2 ln(1 / beta)) (s + sqrt(d) / 2) },   s = 2^scale C, beta = exp(-1/2),

which a rounding exceeds with probability below beta (Kairouz et al. 2021, https://arxiv.org/abs/2102.06387, algorithm 1
and theorem 1). That bound, and not C, is what noise is measured by: ``share_noise`` is a multiplier of it.

The scale is the finest at which no sum can wrap around: every user at its bound in one and the same coordinate, plus 12
standard deviations of noise, stays below half the modulus, whatever the data. It is a power of two, so multiplying by
it is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.distributed_noise import share_noise_multiplier
from ownlet.shared.errors import require
from ownlet.shared.secure_sum.discrete_gaussian import LEAST_VARIANCE, MOST_VARIANCE, SMOOTHING, WordSource
from ownlet.shared.secure_sum.terms import SumTerms

__all__ = ["Coding", "choose_coding", "decode", "quantise", "rounded_bound"]

_BETA = math.exp(-0.5)
_TAIL = 12.0  # standard deviations: exceeded with probability 1e-32
_MOST_STRETCH = 1.25  # of the norm by rounding; more would be paid for in noise
_SCALES = range(52, -53, -1)
_ROUNDING = 2.0**-53


@dataclass(frozen=True, kw_only=True)
class Coding:
    """The numbers that a client codes its users' deltas with.

    Args:
        scale: deltas are multiplied by 2^scale.
        bound: the largest squared norm of one user's whole numbers.
        variance: of the discrete Gaussian that each client adds, once for all its users; 0 adds none.
    """

    scale: int
    bound: int
    variance: int

    def __post_init__(self) -> None:
        require(self.scale in _SCALES, "scale must be in -52..52", scale=self.scale)
        require(self.bound >= 1, "bound must be at least 1", bound=self.bound)
        known = self.variance == 0 or LEAST_VARIANCE <= self.variance <= MOST_VARIANCE
        require(known, "variance must be 0 or in the sampler's range", variance=self.variance)

    @property
    def share_noise(self) -> float:
        """Standard deviation of one client's noise divided by the largest norm of a user: for ``distributed_noise``."""
        return math.sqrt((self.variance - SMOOTHING) / self.bound) if self.variance else 0.0


def rounded_bound(norm: float, size: int) -> int:
    """Return the largest squared norm that a rounded vector is let through with.

    Args:
        norm: of the vector before rounding, scaled.
        size: its length d.
    """
    always = (norm + math.sqrt(size)) ** 2
    mostly = norm**2 + size / 4 + math.sqrt(2 * math.log(1 / _BETA)) * (norm + math.sqrt(size) / 2)
    return math.floor(min(always, mostly) * (1 + 1e-9))


def choose_coding(terms: SumTerms, clip_norm: float, noise_multiplier: float, num_users: int) -> Coding:
    """Return the finest coding whose sum cannot wrap around.

    Args:
        terms: of the sum.
        clip_norm: C, the largest norm of a user's delta.
        noise_multiplier: sigma that the sum must have if as few clients survive as may, and of these as many collude.
        num_users: in all clients together.

    Raises:
        ConfigError: the modulus is too small for so many users.
    """
    require(0 < clip_norm < math.inf, "clip_norm must be positive and finite", clip_norm=clip_norm)
    share = share_noise_multiplier(noise_multiplier, terms.least, terms.num_colluding)
    for scale in _SCALES:
        norm = 2.0**scale * clip_norm
        bound = rounded_bound(norm, terms.size)
        variance = max(LEAST_VARIANCE, math.ceil(share**2 * bound) + SMOOTHING) if share else 0
        largest = num_users * (norm + 1) + _TAIL * math.sqrt(terms.num_clients * variance)
        if largest < 2 ** (terms.bits - 1) and variance <= MOST_VARIANCE:
            require(
                bound <= (_MOST_STRETCH * norm) ** 2,
                "bits must be more for so many users and numbers",
                bits=terms.bits,
                num_users=num_users,
            )
            return Coding(scale=scale, bound=bound, variance=variance)
    require(False, "bits must be more for so many users", bits=terms.bits, num_users=num_users)
    raise AssertionError


def quantise(deltas: NDArray[np.float32], clip_norm: float, coding: Coding, source: WordSource) -> NDArray[np.int64]:
    """Return each user's delta as whole numbers within the coding's bound.

    Args:
        deltas: (users, size), finite; longer ones are clipped.
        clip_norm: C.
        coding: from ``choose_coding``.
        source: of the randomness that decides between up and down.

    Returns:
        (users, size).
    """
    scaled = deltas.astype(np.float64)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)  # (users, 1)
    scaled *= 2.0**coding.scale * np.minimum(1.0, clip_norm / np.maximum(norms, np.finfo(np.float64).tiny))
    lower = np.floor(scaled)
    part = scaled - lower
    rounded = lower.astype(np.int64)
    waiting = np.arange(len(deltas))
    while len(waiting):
        words = source.words(len(waiting) * deltas.shape[1]).reshape(len(waiting), -1)
        up = (words >> np.uint64(11)).astype(np.float64) * _ROUNDING < part[waiting]
        rounded[waiting] = lower[waiting].astype(np.int64) + up
        squared = np.einsum("ui,ui->u", rounded[waiting], rounded[waiting])  # whole numbers, so exact
        waiting = waiting[squared > coding.bound]
    return rounded


def decode(total: NDArray[np.int64], coding: Coding) -> NDArray[np.float64]:
    """Return the sum that whole numbers stand for."""
    return np.ldexp(total.astype(np.float64), -coding.scale)
