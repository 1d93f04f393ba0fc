"""The component audit: each part of a Gaussian mechanism measured on its own, then composed by the accountant.

Sensitivity is measured exactly, by replaying a step with and without a canary under common noise; the noise per tensor
by a chi-square bound; the sampler by a Clopper-Pearson bound. The canary's effective noise multiplier is
``1 / mu`` with ``mu² = sum over tensors of |c_t|² / sigma_hi,t²``, and ``epsilon_lower`` is what the accountant gives
for it at ``q_lo``. So the bound has the power of a white box: it is near the claim where the claim is right, which no
attack on a trained model is.

All bounds hold together with the audit's confidence; how many releases are made is fixed before the first one. That
the T steps compose is the accountant's theorem, whose premises (fresh noise, fresh coins, one sensitivity) are checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ownlet.device.train import Engine
from ownlet.shared.adapter import Vector, initial_adapter
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.simulations.audit.engine_mechanism import EngineMechanism, canary_windows, claim_of_plan
from ownlet.simulations.audit.mechanism import Mechanism
from ownlet.simulations.audit.noise_checks import NoiseFound, measure_noise, noise_checks, replay_checks
from ownlet.simulations.audit.result import AuditResult, Claim
from ownlet.simulations.audit.sampler import SamplingFound, measure_sampling, sampling_checks
from ownlet.simulations.audit.sensitivity import Contributions, measure_contributions, sensitivity_checks
from ownlet.simulations.progress import Progress, Silent

__all__ = ["QUICK", "THOROUGH", "Trials", "audit_component", "audit_engine"]

_NOTHING = 1e-5  # of C, and of the promised noise: less is rounding


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How much is measured, fixed beforehand.

    Args:
        units: candidate windows or users.
        noise: releases without data, and as many with data.
        sampling: releases whose batches are counted.
        confidence: with which the lower bound holds.
        false_alarm: the chance that a correct mechanism fails a statistical check, at the most.

    A build fails where the lower bound is above the claim, so its confidence is such that this hardly ever happens to
    a correct mechanism: at 0.95 it did in one audit of 100 or 200.
    """

    units: int = 60
    noise: int = 60
    sampling: int = 1200
    confidence: float = 0.999
    false_alarm: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("units", "noise", "sampling"):
            require(getattr(self, name) >= 10, f"{name} must be at least 10", **{name: getattr(self, name)})
        require(0.5 < self.confidence < 1, "confidence must be in (0.5, 1)", confidence=self.confidence)
        require(0 < self.false_alarm < 0.05, "false_alarm must be in (0, 0.05)", false_alarm=self.false_alarm)


QUICK = Trials()
THOROUGH = Trials(units=100, noise=400, sampling=4000)


def audit_engine(
    engine: Engine,
    plan: Plan,
    *,
    num_items: int,
    window_length: int,
    name: str,
    vector: Vector | None = None,
    claim: Claim | None = None,
    trials: Trials = QUICK,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit a training engine at window level.

    Args:
        engine: what is audited.
        plan: the public numbers of a training; learning rate and weight decay play no part.
        num_items: items in its catalogue.
        window_length: positions of a window.
        name: of the engine, for the report.
        vector: (P,) an adapter whose A is the start's, but for its scale; by default a fresh one.
        claim: what is promised; by default what the plan promises to a device that runs it once.
        trials: how much is measured.
        progress: told of the four stages.

    Raises:
        ConfigError: the plan adds no noise.
        PrivacyError: no canaries were found that are loud enough; nothing can be said.
    """
    mechanism = EngineMechanism(
        engine,
        canary_windows(trials.units, num_items, window_length),
        plan,
        claim or claim_of_plan(plan),
        name=name,
        vector=initial_adapter(engine.spec, 0) if vector is None else vector,
    )
    return audit_component(mechanism, trials=trials, progress=progress)


def audit_component(mechanism: Mechanism, *, trials: Trials = QUICK, progress: Progress | None = None) -> AuditResult:
    """Measure sensitivity, noise and sampling of a mechanism, and bound its epsilon from below."""
    with (progress or Silent()).stage(f"component audit of {mechanism.name}", 4) as step:
        contributions = measure_contributions(mechanism)
        step("sensitivity")
        noise = measure_noise(mechanism, trials.noise)
        step("noise")
        sampling = measure_sampling(mechanism, contributions, trials.sampling)
        step("sampling")
        checked, copied = noise_checks(mechanism, noise, trials.false_alarm / 2)
        checks = (
            *sensitivity_checks(mechanism, contributions),
            *checked,
            *replay_checks(mechanism),
            *sampling_checks(mechanism, sampling, trials.false_alarm / 2),
        )
        alpha = 1 - trials.confidence
        rate = min(1.0, sampling.rate_lower(alpha / 2))
        mu = math.inf if copied and contributions.sensitivity > 0 else _mu(mechanism, contributions, noise, alpha / 2)
        epsilon_lower = _epsilon(mechanism.claim, rate, mu)
        step("accounting")
    return AuditResult(
        method="component",
        subject=mechanism.name,
        claim=mechanism.claim,
        epsilon_lower=epsilon_lower,
        confidence=trials.confidence,
        checks=checks,
        figures=_figures(mechanism, contributions, sampling, rate, mu, trials),
    )


def _mu(mechanism: Mechanism, contributions: Contributions, noise: NoiseFound, alpha: float) -> float:
    """Return the largest signal-to-noise ratio of any difference between neighbours, at the noise's upper bounds."""
    promised = mechanism.claim.noise_multiplier * mechanism.claim.clip_norm
    squares = np.zeros(len(contributions.differences))
    for part in mechanism.tensors.values():
        told = np.square(contributions.differences[:, part]).sum(axis=1)  # (differences,)
        told[told < (_NOTHING * mechanism.claim.clip_norm) ** 2] = 0
        if not told.any():
            continue
        std = noise.upper(part, alpha / len(mechanism.tensors))
        if std < _NOTHING * promised:
            return math.inf
        squares += told / std**2
    return float(math.sqrt(squares.max(initial=0.0)))


def _epsilon(claim: Claim, rate: float, mu: float) -> float:
    if rate == 0 or mu == 0:
        return 0.0
    return math.inf if math.isinf(mu) else claim.epsilon_at(rate, 1 / mu)


def _figures(
    mechanism: Mechanism,
    contributions: Contributions,
    sampling: SamplingFound,
    rate: float,
    mu: float,
    trials: Trials,
) -> dict[str, float]:
    raw = np.linalg.norm(mechanism.raw_norms(), axis=1)
    return {
        "sensitivity": contributions.sensitivity,
        "sample_rate_lower": rate,
        "noise_multiplier_upper": 0.0 if mu == 0 or math.isinf(mu) else 1 / mu,
        "raw_norm_over_clip_norm": float(raw.min()) / mechanism.claim.clip_norm,
        "units": float(trials.units),
        "noise_releases": float(2 * trials.noise),
        "sampling_releases": float(trials.sampling if sampling.taken is not None else 0),
    }
