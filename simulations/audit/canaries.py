"""Canaries of the one-run audit: windows of random items whose gradients are as distinct as possible.

What one canary adds to a step must not look like what others add, or the audit measures how well they hide each other
(Keinan et al. 2025, https://arxiv.org/abs/2503.07199). So more windows are drawn than are needed, and those are kept
whose gradients, one after the other, lie furthest from the span of the ones before: a QR decomposition with pivoting.
Their raw norms are at least twice the clip norm, so each adds exactly C in its own direction, spread over all tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg  # type: ignore[import-untyped]

from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import Plan
from ownlet.shared.delta import clip_to_norm, delta_of
from ownlet.shared.errors import PrivacyError
from ownlet.shared.noise import AesNoise
from ownlet.shared.windows import Windows
from ownlet.simulations.audit.engine_mechanism import canary_windows

__all__ = ["Canaries", "audit_start", "distinct_rows", "gentle_rate", "halves", "window_canaries"]

_CANDIDATES = 2  # times as many windows are drawn as are kept
_LOUD = 2.0  # raw norms are at least so many clip norms
_DRIFT = 3e-3  # how far a whole training moves the adapter, as a share of its typical number
_TYPICAL = 0.05  # of an adapter's numbers, where it has none yet


@dataclass(frozen=True, kw_only=True, eq=False)
class Canaries:
    """What is put into the training.

    Args:
        windows: (m) of them.
        contributions: (m, num_trainable) what each adds to a step's sum where it is in: its gradient, clipped.
        clip_norm: C; that of the plan, or lower where the gradients are not large enough for it.
    """

    windows: Windows
    contributions: NDArray[np.float64]
    clip_norm: float

    def __len__(self) -> int:
        return len(self.contributions)


def window_canaries(
    engine: Engine, start: Vector, plan: Plan, count: int, *, num_items: int, window_length: int, seed: int
) -> Canaries:
    """Draw windows and keep the most distinct ones; their gradients are the engine's own, without clip and noise.

    Args:
        engine: computes the gradients.
        start: (P,) where.
        plan: of the training that they are for.
        count: m; fewer where the adapter has too few numbers for so many directions.
        num_items: of the catalogue.
        window_length: positions of a window.
        seed: of the windows.

    Raises:
        PrivacyError: a window has no gradient, or one that is not finite.
    """
    count = min(count, max(1, engine.spec.num_trainable // 2))
    drawn = canary_windows(_CANDIDATES * count, num_items, window_length, seed)
    bare = replace(
        plan,
        steps=1,
        sample_rate=1.0,
        learning_rate=1.0,
        expected_batch=1.0,
        clip_norm=math.inf,
        noise_multiplier=0.0,
        weight_decay=0.0,
    )
    alone = [drawn[at : at + 1] for at in range(len(drawn))]
    trained = engine.train(start, alone, bare, [AesNoise.seeded("canary", at) for at in range(len(drawn))])
    gradients = -delta_of(engine.spec, trained, start)  # (2m, num_trainable)
    norms = np.linalg.norm(gradients, axis=1)
    if not (np.isfinite(norms).all() and norms.min() > 0):
        raise PrivacyError("canaries must have gradients, got a window without one")
    kept = distinct_rows(gradients / norms[:, None], count)
    clip_norm = min(plan.clip_norm, float(norms[kept].min()) / _LOUD)
    contributions = clip_to_norm(gradients[kept], clip_norm).astype(np.float64)
    return Canaries(windows=drawn[kept], contributions=contributions, clip_norm=clip_norm)


def distinct_rows(rows: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return which ``count`` rows (n, d) to keep so that each is far from the span of the others, in rising order."""
    if count >= len(rows):
        return np.arange(len(rows))
    _, order = linalg.qr(rows.T.astype(np.float64), mode="r", pivoting=True)
    kept: NDArray[np.int64] = np.sort(order[:count]).astype(np.int64)
    return kept


def audit_start(spec: AdapterSpec, vector: Vector | None, seed: int) -> Vector:
    """Return the adapter that an audit starts from: the given one, with random numbers for trained ones that are 0.

    Where A is trained too, B = 0 would hide every gradient of A.
    """
    start = initial_adapter(spec, seed) if vector is None else spec.check(vector).copy()
    own = start[spec.trainable]
    if not own.any() or (spec.train_a and not start[spec.size_a :].any()):
        drawn = np.random.default_rng(seed).normal(0, _TYPICAL, spec.size).astype(np.float32)
        start[spec.size_a :] = drawn[spec.size_a :]
    return start


def gentle_rate(start: Vector, noise_std: float, steps: int) -> float:
    """Return how far the adapter may go per number of a step's sum, so that canaries' gradients stay what they are.

    The rate is public and privacy does not depend on it. It is far above what float32 rounds away.
    """
    typical = float(np.sqrt(np.mean(np.square(start, dtype=np.float64)))) or _TYPICAL
    return _DRIFT * typical / (noise_std * math.sqrt(steps))


def halves(scores: Sequence[float] | NDArray[np.float64], included: NDArray[np.bool_]) -> dict[str, tuple[float, ...]]:
    """Return the scores of canaries that were ``in`` and ``out``, for histograms."""
    values = np.asarray(scores, np.float64)
    return {"in": tuple(values[included].tolist()), "out": tuple(values[~included].tolist())}
