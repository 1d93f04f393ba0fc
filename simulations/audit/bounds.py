"""Bounds and tests of the audit: exact ones, from the beta and chi-square distributions.

Clopper and Pearson 1934 (https://doi.org/10.1093/biomet/26.4.404) for proportions. For the standard deviation of a
normal with known mean 0, ``sum x² / std²`` is chi-square with as many degrees of freedom as there are numbers.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft, stats  # type: ignore[import-untyped]

__all__ = [
    "dispersion_p_value",
    "proportion_lower",
    "proportion_p_value",
    "repeat_of",
    "spread_p_value",
    "std_p_value",
    "std_upper",
]


def proportion_lower(successes: int, trials: int, alpha: float) -> float:
    """Return the Clopper-Pearson lower bound: the true proportion is below it with probability at most alpha."""
    return 0.0 if successes == 0 else float(stats.beta.ppf(alpha, successes, trials - successes + 1))


def proportion_p_value(successes: int, trials: int, proportion: float) -> float:
    """Return the two-sided p-value of a binomial count, exact."""
    return float(stats.binomtest(successes, trials, proportion).pvalue)


def std_upper(sum_of_squares: float, degrees: int, alpha: float) -> float:
    """Return an upper bound: the true standard deviation is above it with probability at most alpha."""
    return math.sqrt(sum_of_squares / float(stats.chi2.ppf(alpha, degrees)))


def std_p_value(sum_of_squares: float, degrees: int, std: float) -> float:
    """Return the two-sided p-value of a sum of squares of normals whose standard deviation should be ``std``."""
    return _two_sided(sum_of_squares / std**2, degrees)


def dispersion_p_value(sizes: NDArray[np.int64], units: int, rate: float) -> float:
    """Return the two-sided p-value of the variance of batch sizes, which independent coins make binomial.

    By the normal approximation of the variance of K binomials about their known mean, whose own variance is
    ``v² (2 + kappa) / K`` with ``v = n q (1 - q)`` and their excess kurtosis ``kappa = (1 - 6 q (1 - q)) / v``.

    Args:
        sizes: (K,) units in each batch.
        units: n.
        rate: q, below 1.
    """
    variance = units * rate * (1 - rate)
    kurtosis = (1 - 6 * rate * (1 - rate)) / variance
    measured = float(np.square(sizes - units * rate).mean())
    return _of_z((measured / variance - 1) / math.sqrt((2 + kurtosis) / len(sizes)))


def spread_p_value(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    """Return the two-sided p-value of how differently often units were chosen; too alike is as wrong as too unlike.

    Args:
        counts: (units,) in how many of the trials each was.
        trials: K, of which enough that ``K q`` is some dozens.
        rate: q, below 1.
    """
    squares = np.square(counts - trials * rate) / (trials * rate * (1 - rate))
    return _two_sided(float(squares.sum()), len(counts))


def repeat_of(values: NDArray[np.float64]) -> tuple[float, int, float]:
    """Search a series of independent numbers for a part of itself, at every shift.

    Args:
        values: (n,) of mean 0.

    Returns:
        (correlation, shift, p-value) at the shift where the series is most like itself; the p-value is for all shifts
        together. Two numbers or fewer, or all equal to 0, have nothing to find.
    """
    size = len(values)
    longest = size - max(16, size // 64)  # fewer pairs than that tell nothing
    power = float(np.square(values).mean()) if size else 0.0
    if longest < 2 or power == 0:
        return 0.0, 0, 1.0
    transformed = fft.rfft(values, n=fft.next_fast_len(2 * size, real=True))
    products = fft.irfft(np.abs(transformed) ** 2, n=fft.next_fast_len(2 * size, real=True))[1:longest]
    pairs = size - np.arange(1, longest)
    z = products / (power * np.sqrt(pairs))
    at = int(np.argmax(np.abs(z)))
    return float(products[at] / (power * pairs[at])), at + 1, min(1.0, _of_z(float(z[at])) * len(z))


def _two_sided(chi_square: float, degrees: int) -> float:
    return float(min(1.0, 2 * min(stats.chi2.cdf(chi_square, degrees), stats.chi2.sf(chi_square, degrees))))


def _of_z(z: float) -> float:
    return float(2 * stats.norm.sf(abs(z)))
