"""The best guess at who was in, from all that was released: one score per canary.

A step releases ``x = sum_i a_i g_i + n``: canary i adds its known contribution ``g_i`` where ``a_i = 1``, and n is
Gaussian with standard deviation ``tau = sigma C``. For an attacker who knows all contributions but not who is in, the
others look like more noise, ``tau² I + v GᵀG`` with ``v = p (1 - p)`` and ``p = q / 2``. The logarithm of how much more
likely x is with canary i in the step than without it is then an inner product of the release with the canary's
contribution, cleaned of what the others add. Through the sampling, a canary that is in the training is in a step with
chance q only: ``log(1 - q + q exp(...))``, summed over steps. How large tau really is, the attacker reads off what was
released where no canary points: a trainer that adds less than it claims is then attacked with what it does add. All of
this looks at releases alone, so it is post-processing, and any mistake in it can only make the audit weaker.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.simulations.audit.result import Claim

__all__ = ["correct_guesses", "membership_scores"]

Floats = NDArray[np.float64]

_LEAST_NOISE = 0.03  # of the claimed: float32, and gradients that change a little on the way, are noise too


def membership_scores(releases: Floats, contributions: Floats, claim: Claim) -> Floats:
    """Return one score per canary, (m,): the log of how much likelier the releases are if it was in.

    Args:
        releases: (T, n) the noised sum of each step.
        contributions: (m, n) what each canary adds to a step that it is in, of norm C at most.
        claim: the sampling rate, noise and clip norm that are claimed.
    """
    require(releases.shape[1] == contributions.shape[1], "releases must be as wide as contributions")
    rate = claim.sample_rate
    spread = _noise_std(releases, contributions, claim.noise_multiplier * claim.clip_norm) ** 2
    if rate == 1:  # who is in, is in every step: their mean tells all
        releases, spread = releases.mean(axis=0, keepdims=True), spread / len(releases)
    present = rate / 2
    variance = present * (1 - present)
    products = contributions @ contributions.T  # (m, m)
    cleaned = np.linalg.inv(spread * np.eye(len(products)) + variance * products)
    strength = np.einsum("ij,ji->i", cleaned, products)  # (m,) what a canary's own contribution scores
    seen = cleaned @ (contributions @ releases.T - present * products.sum(axis=1, keepdims=True))  # (m, T)
    evidence = (seen + ((present - 0.5) * strength)[:, None]) / (1 - variance * strength)[:, None]
    absent = math.log1p(-rate) if rate < 1 else -math.inf
    scores: Floats = np.logaddexp(absent, math.log(rate) + evidence).sum(axis=1)
    return scores


def _noise_std(releases: Floats, contributions: Floats, claimed: float) -> float:
    """Return the noise's standard deviation outside of the span of the contributions; the claimed one at the most."""
    span, _ = np.linalg.qr(contributions.T)  # (n, m)
    free = releases.shape[1] - span.shape[1]
    if free < 1:
        return claimed
    outside = np.square(releases).sum() - np.square(releases @ span).sum()
    measured = math.sqrt(max(0.0, float(outside)) / (free * len(releases)))
    return min(claimed, max(measured, _LEAST_NOISE * claimed))


def correct_guesses(scores: Floats, included: NDArray[np.bool_], guesses: int) -> int:
    """Return how many guesses are right: about the canaries whose scores say most, "in" where the score is positive."""
    surest = np.argsort(-np.abs(scores), kind="stable")[:guesses]
    return int(((scores > 0) == included)[surest].sum())
