"""delta = local - global, over the adapter's trainable part. Said here once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import require

__all__ = ["Update", "clip_to_norm", "count_within", "delta_of"]


@dataclass(frozen=True, kw_only=True)
class Update:
    """What leaves a device. Losses, norms and counts are private and are not in it.

    Args:
        delta: (num_trainable,) clipped and, in window mode, noised: what the server adds up, so what ``coded`` decodes
            to and, where the form is sparse, zero where a number does not travel.
        adapter_version: the global adapter that it is relative to.
        base_hash: the base that it was trained on.
        event: the privacy event that was spent on it, as ``privacy.event_to_json`` writes it; empty where the server
            adds the noise.
        ledger_seq: number of the device's ledger entry that charged it; a server refuses one that goes back.
        ledger_head: MAC of that entry.
        coded: the message itself, where the terms ask for ``float16`` or ``int8``; send it in place of the delta.
        count: plus or minus one half, where the terms have an adaptive clip (``count_within``).
    """

    delta: Vector
    adapter_version: int
    base_hash: str
    event: str
    ledger_seq: int
    ledger_head: str
    coded: NDArray[np.uint8] | None = None
    count: float | None = None


def delta_of(spec: AdapterSpec, local: NDArray[np.float32], reference: Vector) -> NDArray[np.float32]:
    """Return local - global over the trainable part: of one adapter (P,), or of several (users, P)."""
    return local[..., spec.trainable] - reference[spec.trainable]


def clip_to_norm(deltas: NDArray[np.float32], clip_norm: float) -> NDArray[np.float32]:
    """Return one delta (n,), or each of several (users, n), scaled down if needed to L2 norm at most ``clip_norm``."""
    require(clip_norm > 0, "clip_norm must be positive", clip_norm=clip_norm)
    factors = np.minimum(1.0, clip_norm / np.maximum(_norms(deltas), np.finfo(np.float64).tiny))  # (...)
    clipped: NDArray[np.float32] = deltas * factors[..., None].astype(np.float32)
    return clipped


def count_within(deltas: NDArray[np.float32], clip_norm: float) -> float:
    """Return how many of several deltas (users, n) are within ``clip_norm``, less half their number.

    Each adds one half or takes one half away, so adding or removing a user changes it by one half and not by one
    (Andrew et al. 2021, https://arxiv.org/abs/1905.03871, section 2.2). A delta that is not finite is not within.
    """
    return float(np.sum(_norms(deltas) <= clip_norm) - 0.5 * len(deltas))


def _norms(deltas: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the L2 norm of one delta (n,), (), or of each of several (users, n), (users,)."""
    norms: NDArray[np.float64] = np.sqrt(np.einsum("...i,...i->...", deltas, deltas, dtype=np.float64))
    return norms
