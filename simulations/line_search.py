"""How far to go in the direction that private rounds gave: chosen afterwards, on held-out public users.

What the rounds released is noised, so anything computed from it and from public data is post-processing and costs no
privacy. A step that is right without noise is too long with it; 0 is among the lengths, so the result is never below
the start on those users.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.recommender import Recommender
from ownlet.simulations.evaluate import Cases, mean_ndcg

__all__ = ["LENGTHS", "best_length", "chosen_length", "scaled"]

LENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0)


def chosen_length(
    config: FederationConfig, model: Recommender, spec: AdapterSpec, start: Vector, vector: Vector, validation: Cases
) -> tuple[Vector, float]:
    """Return what a run ends with, (P,), and the length of its way: chosen under the unit ``window``, else 1.

    Args:
        config: of the run.
        model: the base, prepared with ``attach``.
        spec: the adapter's spec.
        start: (P,) the adapter that the rounds began with.
        vector: (P,) the adapter that they ended with.
        validation: held-out public cases.
    """
    if config.unit != "window":
        return vector, 1.0
    return best_length(model, spec, start, vector, validation)


def best_length(
    model: Recommender,
    spec: AdapterSpec,
    start: Vector,
    vector: Vector,
    validation: Cases,
    lengths: Sequence[float] = LENGTHS,
) -> tuple[Vector, float]:
    """Return ``start + length * (vector - start)`` with the best NDCG@10 on public users, and the length.

    Args:
        model: the base, prepared with ``attach``.
        spec: the adapter's spec.
        start: (P,) the adapter that the rounds began with.
        vector: (P,) the adapter that they ended with.
        validation: held-out public cases.
        lengths: rising; of equals the shortest wins.
    """
    require(len(lengths) > 0, "lengths must be at least one", lengths=lengths)
    quality = [
        mean_ndcg(model, validation, spec=spec, vector=scaled(spec, start, vector, length)) for length in lengths
    ]
    best = lengths[int(np.argmax(quality))]
    return scaled(spec, start, vector, best), best


def scaled(spec: AdapterSpec, start: Vector, vector: Vector, length: float) -> Vector:
    """Return the adapter (P,) at a share of the way from one to another; what is not trained is the second's."""
    moved = vector.copy()
    moved[spec.trainable] = start[spec.trainable] + np.float32(length) * (
        vector[spec.trainable] - start[spec.trainable]
    )
    return moved
