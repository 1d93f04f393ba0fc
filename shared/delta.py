"""delta = local - global, over the adapter's trainable suffix. Said here once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import require

__all__ = ["Update", "clip_to_norm", "delta_of"]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What leaves a device. Losses, norms and counts are private and are not in it.

    Args:
        delta: (num_trainable,) clipped and, in window mode, noised.
        adapter_version: the global adapter that it is relative to.
        base_hash: the base that it was trained on.
        event: the privacy event that was spent on it, as ``privacy.event_to_json`` writes it; empty where the server
            adds the noise.
    """

    delta: Vector
    adapter_version: int
    base_hash: str
    event: str


def delta_of(spec: AdapterSpec, local: Vector, reference: Vector) -> Vector:
    """Return local - global over the trainable suffix, (num_trainable,)."""
    return local[spec.trainable] - reference[spec.trainable]


def clip_to_norm(delta: NDArray[np.float32], clip_norm: float) -> Vector:
    """Return the delta scaled down, if needed, to L2 norm at most ``clip_norm``."""
    require(clip_norm > 0, "clip_norm must be positive", clip_norm=clip_norm)
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    factor = min(1.0, clip_norm / norm) if norm > 0 else 1.0
    return (delta * np.float32(factor)).astype(np.float32)
