"""What every method of the audit returns: a claim, a measured lower bound, and the checks that stood behind it.

Accounting gives an upper bound on epsilon that holds if the code does what the paper says. An audit measures a lower
bound, with a stated confidence, from what the code does. A lower bound above the claim proves that something is broken;
one below it proves nothing by itself, and says how much was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import dp_accounting as dp

from ownlet.shared.errors import require
from ownlet.shared.privacy import epsilon

__all__ = ["AuditMethod", "AuditResult", "AuditSize", "Check", "Claim"]

AuditMethod = Literal["component", "one-run", "federated", "membership"]

AuditSize = Literal["quick", "thorough"]
"""``quick``: some seconds on one core. ``thorough``: some minutes, for a bound closer to the truth."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is promised: Poisson-sampled Gaussians under adding or removing one unit.

    Args:
        unit: what one record is.
        sample_rate: q, the chance of each unit to be in a step (or, for users, in a round).
        noise_multiplier: sigma, standard deviation of the noise on the sum divided by C.
        clip_norm: C, the bound on what one unit adds to the sum.
        steps: T, how many noised sums are released.
        dp_delta: the privacy parameter delta.
    """

    unit: Literal["user", "window"]
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    steps: int
    dp_delta: float = 1e-5

    def __post_init__(self) -> None:
        require(0 < self.sample_rate <= 1, "sample_rate must be in (0, 1]", sample_rate=self.sample_rate)
        require(
            0 < self.noise_multiplier < math.inf,
            "noise_multiplier must be positive: without noise nothing is claimed",
            noise_multiplier=self.noise_multiplier,
        )
        require(0 < self.clip_norm < math.inf, "clip_norm must be positive and finite", clip_norm=self.clip_norm)
        require(self.steps >= 1, "steps must be at least 1", steps=self.steps)
        require(0 < self.dp_delta < 1, "dp_delta must be in (0, 1)", dp_delta=self.dp_delta)

    @property
    def epsilon(self) -> float:
        """The claimed epsilon: ``epsilon_at`` of the claimed numbers."""
        return self.epsilon_at(self.sample_rate, self.noise_multiplier)

    def epsilon_at(self, sample_rate: float, noise_multiplier: float) -> float:
        """Return epsilon of as many steps at another sampling rate and noise; infinite without noise."""
        if noise_multiplier <= 0:
            return math.inf
        step = dp.PoissonSampledDpEvent(sample_rate, dp.GaussianDpEvent(noise_multiplier))
        return epsilon(dp.SelfComposedDpEvent(step, self.steps), self.dp_delta)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that must hold.

    Args:
        name: short and fixed: a build may look for it.
        passed: whether it held.
        statement: one sentence in plain language: what was looked at and what came of it.
        measured: the number that was measured, where there is one.
        claimed: the number that it is held against.
    """

    name: str
    passed: bool
    statement: str
    measured: float | None = None
    claimed: float | None = None


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What one method found about one subject.

    Args:
        method: how it was measured.
        subject: what was measured: an engine, a program file, a federation.
        claim: what is promised.
        epsilon_lower: the measured lower bound; 0 where nothing was found, infinite where the noise can be removed.
        confidence: with which the bound holds.
        checks: what was looked at; any that failed flags the subject.
        scores: name of a group of canaries -> their scores, for histograms (``in`` and ``out`` where there are two).
        figures: further numbers by name, such as true and false positive rates.
    """

    method: AuditMethod
    subject: str
    claim: Claim
    epsilon_lower: float
    confidence: float
    checks: tuple[Check, ...] = ()
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def exceeds(self) -> bool:
        """Whether the measured lower bound contradicts the claim."""
        return self.epsilon_lower > self.claim.epsilon

    @property
    def flagged(self) -> bool:
        """Whether the subject is proven to break its claim, or failed a check."""
        return self.exceeds or any(not check.passed for check in self.checks)
