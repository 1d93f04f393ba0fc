"""How many correct guesses about many canaries of one training contradict a claim.

Each of m canaries is in the training by a coin of its own; an attacker who sees what was released makes a number of
guesses, fixed beforehand, about which are in, and some are correct.

Two bounds. ``epsilon_of_guesses`` assumes nothing but (epsilon, delta) differential privacy: Steinke, Nasr and
Jagielski 2023 (https://arxiv.org/abs/2305.08846), theorem 2.1, computed as in their appendix D. ``refutes`` asks about
a whole trade-off curve: Mahloujifar, Melis and Chaudhuri 2024 (https://arxiv.org/abs/2410.22235), the recursion that
their appendix calls ``audit_rh_with_cap``, which is tight for many canaries where the former loses. Its curve is that
of the claimed mechanism, Poisson-sampled Gaussians: in closed form where everybody takes part in every step (Dong et
al. 2019, https://arxiv.org/abs/1905.02383), otherwise from the mechanism's privacy loss distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from dp_accounting.pld import privacy_loss_distribution as losses
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from ownlet.shared.errors import require
from ownlet.simulations.audit.result import Claim

__all__ = ["Curve", "claimed_curve", "epsilon_of_guesses", "refutes", "sigma_of_guesses"]

Curve = Callable[[float], float]
"""The inverse of 1 - f, for the trade-off function f: the least chance, out, of what has this chance, in."""

_NARROWEST, _WIDEST = 1 / 4, 16.0  # of the claimed noise: what is looked for between
_PRECISION = 1.02  # of the noise that is found
_POINTS = 150  # epsilons at which a privacy loss distribution is read; each is a valid bound, more are closer
_LARGEST_EPSILON = 500.0  # e to it is still far from the largest float
_TAIL = 1e-9  # delta up to which the curve is read


def epsilon_of_guesses(canaries: int, guesses: int, correct: int, dp_delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon that so many correct guesses refute; 0 where they refute none.

    Args:
        canaries: m, each in by a fair coin.
        guesses: r, fixed before looking.
        correct: v of them were.
        dp_delta: the privacy parameter delta.
        confidence: with which the bound holds.
    """
    _check(canaries, guesses, correct)
    low, high = 0.0, 1.0
    if _p_value(canaries, guesses, correct, low, dp_delta) >= 1 - confidence:
        return 0.0
    while _p_value(canaries, guesses, correct, high, dp_delta) < 1 - confidence and high < _LARGEST_EPSILON:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        refuted = _p_value(canaries, guesses, correct, middle, dp_delta) < 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def _p_value(canaries: int, guesses: int, correct: int, epsilon: float, dp_delta: float) -> float:
    """Return the largest chance of as many correct guesses under (epsilon, delta) differential privacy."""
    rate = 1 / (1 + math.exp(-epsilon))  # of randomised response
    chance = float(stats.binom.sf(correct - 1, guesses, rate))
    fewer = np.arange(1, correct + 1)  # (v,)
    nearly = stats.binom.sf(correct - fewer - 1, guesses, rate) - chance
    return min(1.0, chance + 2 * canaries * dp_delta * float(np.max(nearly / fewer, initial=0.0)))


def claimed_curve(claim: Claim) -> Curve:
    """Return the curve of the claimed mechanism, under adding or removing one unit."""
    if claim.sample_rate == 1:
        shift = math.sqrt(claim.steps) / claim.noise_multiplier
        return lambda chance: float(stats.norm.cdf(stats.norm.ppf(chance) - shift))
    return _sampled_curve(claim.sample_rate, claim.noise_multiplier, claim.steps)


@functools.lru_cache(maxsize=256)
def _sampled_curve(sample_rate: float, noise_multiplier: float, steps: int) -> Curve:
    width = 1e-3 if noise_multiplier > 0.4 else 1e-2  # of the grid; pessimistic at any width
    step = losses.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=width, sampling_prob=sample_rate
    )
    total = step.self_compose(steps)
    epsilons = np.linspace(0.0, min(_LARGEST_EPSILON, float(total.get_epsilon_for_delta(_TAIL))), _POINTS)
    with np.errstate(over="ignore", invalid="ignore"):
        deltas = np.nan_to_num(np.asarray(total.get_delta_for_epsilon(epsilons.tolist())), nan=1.0)
    return _curve_of(epsilons, np.clip(deltas, 0.0, 1.0))


def _curve_of(epsilons: NDArray[np.float64], deltas: NDArray[np.float64]) -> Curve:
    """Return the curve of a mechanism that is (epsilon, delta) private for every one of these pairs."""
    shrink, grow = np.exp(-epsilons), np.exp(epsilons)

    def least(chance: float) -> float:
        direct, complement = shrink * (chance - deltas), 1 - deltas - grow * (1 - chance)
        return max(0.0, float(direct.max()), float(complement.max()))

    return least


def refutes(curve: Curve, canaries: int, guesses: int, correct: int, confidence: float = 0.95) -> bool:
    """Return whether a mechanism with this curve allows so many correct guesses less often than 1 - ``confidence``.

    Args:
        curve: of the mechanism in question.
        canaries: m.
        guesses: fixed before looking.
        correct: how many of them were.
        confidence: of a refutation.
    """
    _check(canaries, guesses, correct)
    right = (1 - confidence) * correct / canaries  # the chance that a canary is guessed, and right, in such an outcome
    wrong = (1 - confidence) * (guesses - correct) / canaries
    for number in range(correct - 1, -1, -1):
        more = max(wrong, curve(right))
        if more == wrong:
            break  # nothing changes any more
        right = min(1.0, right + number / (guesses - number) * (more - wrong))
        wrong = more
    return right + wrong > guesses / canaries


def sigma_of_guesses(claim: Claim, canaries: int, guesses: int, correct: int, confidence: float = 0.95) -> float:
    """Return the least noise multiplier that so many correct guesses refute, to 2 %.

    The sampling rate and the number of steps are those of the claim. More noise is refuted as well.

    Returns:
        sigma, a quarter of the claimed one at the least; infinity where nothing up to 16 times the claim is refuted.
    """

    def refuted(share: float) -> bool:
        other = replace(claim, noise_multiplier=claim.noise_multiplier * share)
        return refutes(claimed_curve(other), canaries, guesses, correct, confidence)

    low, high = (_NARROWEST, 1.0) if refuted(1.0) else (1.0, _WIDEST)  # low is to be unrefuted, high refuted
    if high == _WIDEST and not refuted(high):
        return math.inf
    if low == _NARROWEST and refuted(low):
        return claim.noise_multiplier * low
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return claim.noise_multiplier * high


def _check(canaries: int, guesses: int, correct: int) -> None:
    require(1 <= guesses <= canaries, f"guesses must be in 1..{canaries}", guesses=guesses)
    require(0 <= correct <= guesses, f"correct must be in 0..{guesses}", correct=correct)
