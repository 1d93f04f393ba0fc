"""Noise that is made of whole numbers: the discrete Gaussian, sampled exactly.

P[X = x] is proportional to exp(-x^2 / (2 variance)) over all whole numbers. The sampler is that of Canonne, Kamath and
Steinke 2020 (https://arxiv.org/abs/2004.00010, algorithms 1 to 3), for many numbers at once: coins whose chance is
exp(-a / b) for whole a and b, from comparisons of whole random numbers. No number here has a fractional part, so there
are no low bits that could tell what was noised (Mironov 2012).

Why its privacy is that of a Gaussian: rounding a Gaussian of variance v - 4 to whole numbers, at random with a discrete
Gaussian of variance 4 around it, gives the discrete Gaussian of variance v up to a factor of 1 +- 1e-33 (Peikert 2010,
https://eprint.iacr.org/2010/088, theorem 3.1, smoothing error 2 exp(-2 pi^2 4)). What follows from a Gaussian mechanism
costs no more than it. The sum of n of them is the discrete Gaussian of the sum of variances up to 10 n exp(-pi^2 v) in
privacy loss for each coordinate (Kairouz et al. 2021, https://arxiv.org/abs/2102.06387, theorem 1). Both are below what
the accountant's own arithmetic resolves, for every variance from ``LEAST_VARIANCE`` on.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require

__all__ = ["LEAST_VARIANCE", "MOST_VARIANCE", "SMOOTHING", "WordSource", "discrete_gaussian"]

SMOOTHING = 4
"""What of a discrete Gaussian's variance is not counted as a Gaussian's."""

LEAST_VARIANCE = 9
MOST_VARIANCE = 2**26
"""With more, the products of whole numbers below would not fit into 64 bits."""

_MOST_STEPS = 60  # in units of the standard deviation; what is beyond has probability below exp(-1800)


class WordSource(Protocol):
    """Where randomness comes from: ``shared.noise.AesNoise``."""

    def words(self, size: int) -> NDArray[np.uint64]:
        """Return (size,) independent whole numbers of 64 bits."""
        ...


def discrete_gaussian(source: WordSource, size: int, variance: int) -> NDArray[np.int64]:
    """Return (size,) independent discrete Gaussians.

    Args:
        source: of randomness.
        size: how many.
        variance: the parameter sigma^2, a whole number; the variance is that, from 9 on, to 1e-70. 0 gives zeros.

    Raises:
        ConfigError: the variance is out of its range.
    """
    if variance == 0:
        return np.zeros(size, dtype=np.int64)
    require(
        LEAST_VARIANCE <= variance <= MOST_VARIANCE,
        f"variance must be 0 or in {LEAST_VARIANCE}..{MOST_VARIANCE}",
        variance=variance,
    )
    scale = int(np.sqrt(variance)) + 1  # t of algorithm 3; any t gives the same distribution
    found: list[NDArray[np.int64]] = []
    missing = size
    while missing > 0:
        tried = _discrete_laplace(source, 2 * missing + 16, scale)
        distance = np.abs(np.abs(tried) * scale - variance).astype(np.uint64)  # below 2^33
        kept = _coins(source, distance * distance, 2 * variance * scale * scale)
        found.append(tried[kept][:missing])
        missing -= len(found[-1])
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _discrete_laplace(source: WordSource, size: int, scale: int) -> NDArray[np.int64]:
    """Return at most ``size`` independent numbers with P[x] proportional to exp(-|x| / scale); algorithm 2."""
    rest = _below(source, size, scale)  # 0..scale-1
    rest = rest[_coins(source, rest, scale)].astype(np.int64)
    steps = np.zeros(len(rest), dtype=np.int64)
    going = np.arange(len(rest))
    while len(going):
        going = going[_coins(source, np.ones(len(going), dtype=np.uint64), 1)]  # exp(-1) to go on
        steps[going] += 1
    found = rest + scale * steps
    negative = (source.words(len(found)) & np.uint64(1)).astype(bool)
    kept = ~(negative & (found == 0)) & (steps < _MOST_STEPS)  # or zero would be twice as likely
    signed: NDArray[np.int64] = np.where(negative, -found, found)[kept]
    return signed


def _coins(source: WordSource, above: NDArray[np.uint64], below: int) -> NDArray[np.bool_]:
    """Return coins that are true with probability exp(-above / below), each on its own; algorithm 1."""
    whole, rest = above // np.uint64(below), above % np.uint64(below)
    result = _coins_up_to_one(source, rest, below)
    going = np.flatnonzero(result & (whole > 0))
    left = whole[going]
    while len(going):  # exp(-1) once for each whole
        passed = _coins_up_to_one(source, np.ones(len(going), dtype=np.uint64), 1)
        result[going[~passed]] = False
        going, left = going[passed], left[passed] - np.uint64(1)
        going, left = going[left > 0], left[left > 0]
    return result


def _coins_up_to_one(source: WordSource, above: NDArray[np.uint64], below: int) -> NDArray[np.bool_]:
    """Return coins of probability exp(-above / below), where above <= below: whether a run of successes is even."""
    result = np.zeros(len(above), dtype=bool)
    going = np.arange(len(above))
    number = 1
    while len(going):
        succeeded = _below(source, len(going), below * number) < above[going]
        result[going[~succeeded]] = number % 2 == 1
        going = going[succeeded]
        number += 1  # stays below 2^10: a run of k successes has probability at most 1 / k!
    return result


def _below(source: WordSource, size: int, bound: int) -> NDArray[np.uint64]:
    """Return (size,) independent numbers, each of 0..bound-1 equally likely."""
    words = source.words(size)
    fair = np.uint64((2**64 // bound) * bound - 1)
    while len(again := np.flatnonzero(words > fair)):
        words[again] = source.words(len(again))
    return words % np.uint64(bound)
