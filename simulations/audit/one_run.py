"""The one-run audit: many canaries, one training, one lower bound on epsilon.

Each canary is put into the training by a fair coin. Afterwards an attacker guesses which were in, and how many guesses
are right bounds epsilon (``one_run_bounds``). How many guesses are made is fixed before anything is seen: a fifth of
the canaries, which is near the best for a correct trainer, and all of them, which tells most about one without noise.
Each of these two bounds is computed with half of what the confidence leaves to error, so the larger one holds.

White box: the attacker sees the noised sum of every step, knows each canary's contribution, and scores it by an inner
product with the release (``decode``). Any ``device.train.Engine`` can be audited, a bundle's program too.

Two bounds are computed and one is reported, by this rule and not by which is larger: the bound for the claimed
mechanism's whole trade-off curve, Mahloujifar et al. 2024. It asks how little noise a Poisson-sampled Gaussian of the
claimed rate and steps can have, and is turned into epsilon by the claim's own accountant. That of Steinke et al. 2023,
which assumes nothing about the mechanism, stands beside it as a figure, ``epsilon_any_mechanism``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.train import Engine
from ownlet.shared.adapter import Vector, load_adapter
from ownlet.shared.config import Plan
from ownlet.shared.manifest import ADAPTER_FILE, read_manifest
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.windows import Windows
from ownlet.simulations.audit.canaries import audit_start, gentle_rate, halves, window_canaries
from ownlet.simulations.audit.decode import correct_guesses, membership_scores
from ownlet.simulations.audit.engine_mechanism import claim_of_plan
from ownlet.simulations.audit.one_run_bounds import epsilon_of_guesses, sigma_of_guesses
from ownlet.simulations.audit.result import AuditResult, AuditSize, Check, Claim
from ownlet.simulations.progress import Progress, Silent

__all__ = ["NUM_CANARIES", "audit_one_run", "audit_one_run_bundle", "one_run_result", "released_sums"]

NUM_CANARIES: dict[AuditSize, int] = {"quick": 200, "thorough": 1000}
GUESSED_SHARES = (0.2, 1.0)  # of the canaries (docs/decisions.md)


def audit_one_run(
    engine: Engine,
    plan: Plan,
    *,
    num_items: int,
    window_length: int,
    name: str,
    vector: Vector | None = None,
    dp_delta: float = 1e-5,
    size: AuditSize = "quick",
    seed: int = 0,
    noise: NoiseSource | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit local training at window level.

    Args:
        engine: what is audited.
        plan: the public numbers of one training; the audit chooses learning rate and expected batch, which privacy does
            not depend on, and lowers the clip norm where canaries would not reach it.
        num_items: of the catalogue.
        window_length: positions of a window.
        name: of the engine, for the report.
        vector: (P,) the adapter to start from; by default a fresh one.
        dp_delta: of the claim.
        size: 200 or 1,000 canaries.
        seed: of canaries and coins.
        noise: the training's masks and noise; by default from the operating system.
        confidence: of the lower bound.
        progress: told of steps.

    Raises:
        ConfigError: the plan adds no noise, so that it claims nothing.
        PrivacyError: windows have no gradients.
    """
    start = audit_start(engine.spec, vector, seed)
    with (progress or Silent()).stage(f"one-run audit: {name}", plan.steps + 2) as step:
        canaries = window_canaries(
            engine, start, plan, NUM_CANARIES[size], num_items=num_items, window_length=window_length, seed=seed
        )
        step(f"{len(canaries)} canaries")
        plan = replace(plan, clip_norm=canaries.clip_norm, weight_decay=0.0, expected_batch=1.0)
        claim = claim_of_plan(plan, dp_delta=dp_delta)
        plan = replace(plan, learning_rate=gentle_rate(start, plan.noise_std, plan.steps))
        included = np.random.default_rng([seed, 1]).random(len(canaries)) < 0.5
        releases = []
        for release in released_sums(engine, start, canaries.windows[included], plan, noise or AesNoise()):
            releases.append(release)
            step("step", 1.0)
        scores = membership_scores(np.stack(releases), canaries.contributions, claim)
        result = one_run_result(name, claim, scores, included, confidence)
        step("bound")
    return result


def audit_one_run_bundle(
    bundle: Path,
    plan: Plan,
    *,
    dp_delta: float = 1e-5,
    size: AuditSize = "quick",
    seed: int = 0,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit the training step of a bundle's program, opened alone: see ``audit_one_run``.

    Raises:
        BundleError: the bundle is incomplete, altered or of another format.
    """
    manifest = read_manifest(bundle)
    spec, vector, _ = load_adapter(bundle / ADAPTER_FILE, base_hash=manifest.base_hash)
    return audit_one_run(
        ExecutorchEngine.of_bundle(bundle, manifest, spec),
        replace(plan, objective=manifest.objective, num_negatives=manifest.num_negatives),
        num_items=manifest.num_items,
        window_length=manifest.windows.row_length,
        name=f"executorch, {bundle.name}",
        vector=vector,
        dp_delta=dp_delta,
        size=size,
        seed=seed,
        progress=progress,
    )


def released_sums(
    engine: Engine, start: Vector, windows: Windows, plan: Plan, noise: NoiseSource
) -> Sequence[NDArray[np.float64]]:
    """Train one device and return the noised sum of every step, each (num_trainable,).

    An engine that shows its steps is asked for them; another one is asked for one step at a time, from where the last
    one ended and with the same source of noise, which is the same training.
    """
    spec, scale = engine.spec, plan.expected_batch / plan.learning_rate
    steps = getattr(engine, "steps", None)
    if steps is not None:
        path = [start, *steps(start, windows, plan, noise)]
    else:
        path, one = [start], replace(plan, steps=1)
        for _ in range(plan.steps):
            path.append(engine.train(path[-1], [windows], one, [noise])[0])
    trained = np.stack(path)[:, spec.trainable].astype(np.float64)  # (T + 1, num_trainable)
    return list(-np.diff(trained, axis=0) * scale)


def one_run_result(
    name: str, claim: Claim, scores: NDArray[np.float64], included: NDArray[np.bool_], confidence: float = 0.95
) -> AuditResult:
    """Return what the scores of canaries say.

    Args:
        name: of what was audited.
        claim: what is promised.
        scores: (m,) log likelihood ratios, positive where it looks in.
        included: (m,) who was in, by fair coins.
        confidence: of the bound.
    """
    canaries, each = len(scores), 1 - (1 - confidence) / len(GUESSED_SHARES)
    tried = [max(2, round(share * canaries)) for share in GUESSED_SHARES]
    right = [correct_guesses(scores, included, guesses) for guesses in tried]
    pairs = list(zip(tried, right, strict=True))
    sigma = min(sigma_of_guesses(claim, canaries, guesses, correct, each) for guesses, correct in pairs)
    lower = claim.epsilon_at(claim.sample_rate, sigma) if math.isfinite(sigma) else 0.0
    told = " and ".join(f"{correct} of {guesses}" for guesses, correct in pairs)
    statement = (
        f"{canaries} canaries were put in by coins. An attacker who saw every step guessed {told} right: with "
        f"{confidence:.0%} confidence epsilon is at least {lower:.2f}, where {claim.epsilon:.2f} is claimed."
    )
    check = Check(
        name="one-run-bound",
        passed=lower <= claim.epsilon,
        statement=statement,
        measured=lower,
        claimed=claim.epsilon,
    )
    return AuditResult(
        method="one-run",
        subject=name,
        claim=claim,
        epsilon_lower=lower,
        confidence=confidence,
        checks=(check,),
        scores=halves(scores, included),
        figures={
            "canaries": canaries,
            "guesses": tried[0],
            "correct": right[0],
            "accuracy": right[1] / tried[1],
            "epsilon_any_mechanism": max(
                epsilon_of_guesses(canaries, guesses, correct, claim.dp_delta, each) for guesses, correct in pairs
            ),
        },
    )
