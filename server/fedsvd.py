"""FedSVD: turn A between rounds (Lee et al. 2025, https://arxiv.org/abs/2505.12805, section 3).

Devices train B against a shared A. After a round the server writes the product of the averaged B with A as ``U S Vᵀ``
and goes on with A = Vᵀ, whose rows are orthonormal, and B = U S. The product, and so what the adapter does, stays as it
was. Only noised values are read, so it is free post-processing.

The rows of Vᵀ span what the rows of A spanned: devices that train B alone never leave that space. Where A's rows are
orthonormal from the start, as ours are, the turn is a rotation within it, which plain gradient steps, norms, clipping,
isotropic noise and a rotated momentum all commute with. Such a run equals one with a frozen A to rounding, which a test
holds; it differs where A starts otherwise or an optimiser scales coordinates one by one. ``docs/decisions.md`` has this
with figures.

So FedAvgM's momentum need not be thrown away: it is turned with B and goes on in the same direction. The squares of
FedAdam and FedYogi belong to single coordinates that no longer exist after a turn; those two start anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ownlet.server.optimizer import OptimizerState
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import require
from ownlet.shared.server_config import ServerOptimizer

__all__ = ["turn", "turn_a"]


def turn(
    spec: AdapterSpec, vector: Vector, state: OptimizerState, optimizer: ServerOptimizer
) -> tuple[Vector, OptimizerState]:
    """Return the adapter as ``turn_a`` gives it, and the optimiser's state that goes with it.

    Momentum is turned; an optimiser with squares starts anew.

    Raises:
        ConfigError: devices train A as well, or the form is not ``lora``.
    """
    turned, momentum = turn_a(spec, vector, state.momentum)
    if optimizer.name == "fedavgm":
        return turned, OptimizerState(momentum=momentum, squares=state.squares)
    return turned, OptimizerState.start(optimizer, spec.num_trainable)


def turn_a(spec: AdapterSpec, vector: Vector, momentum: NDArray[np.float64]) -> tuple[Vector, NDArray[np.float64]]:
    """Return the adapter with A's rows orthonormal and ordered by weight, and the momentum in the same coordinates.

    A layer whose B is 0 has no directions yet and keeps its A.

    Args:
        spec: the adapter's spec, of the form ``lora`` with A frozen.
        vector: (P,) the adapter; not changed.
        momentum: (num_trainable,) the server optimiser's, over B.

    Raises:
        ConfigError: devices train A as well, or the form is not ``lora``.
    """
    require(spec.form == "lora" and not spec.train_a, "fedsvd must have a LoRA whose A is frozen", form=spec.form)
    turned, moved = vector.copy(), momentum.copy()
    at_a, at_b, rank = 0, spec.size_a, spec.rank
    for layer in spec.layers:
        rows_a = slice(at_a, at_a + rank * layer.in_features)
        rows_b = slice(at_b, at_b + rank * layer.out_features)
        rows_m = slice(rows_b.start - spec.size_a, rows_b.stop - spec.size_a)
        at_a, at_b = rows_a.stop, rows_b.stop
        b = vector[rows_b].reshape(-1, rank).astype(np.float64)  # (out, r)
        if not b.any():
            continue
        a = vector[rows_a].reshape(rank, -1).astype(np.float64)  # (r, in)
        q, upper = np.linalg.qr(a.T)  # A = upperᵀ qᵀ, with q (in, r) orthonormal
        u, s, vt = np.linalg.svd(b @ upper.T, full_matrices=False)  # B A = (u s) (vt qᵀ): r × r, whatever B's rank
        turned[rows_a] = (vt @ q.T).ravel()
        turned[rows_b] = (u * s).ravel()
        moved[rows_m] = (momentum[rows_m].reshape(-1, rank) @ upper.T @ vt.T).ravel()
    return turned, moved
