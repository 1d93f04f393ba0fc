"""What local training minimises."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["softmax_loss"]


def softmax_loss(scores: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Full softmax cross-entropy, one number per window.

    Padding (item 0) takes no part in the softmax. A window without a valid position has loss 0 and no gradient.

    Args:
        scores: (batch, length, num_items + 1).
        target: (batch, length) item numbers; anything where not valid.
        valid: (batch, length) float, 1 where the target counts.

    Returns:
        (batch,) mean over the window's valid positions.
    """
    log_normaliser = torch.logsumexp(scores[..., 1:], dim=-1)  # (batch, length)
    picked = scores.gather(-1, target.unsqueeze(-1)).squeeze(-1)  # (batch, length)
    return ((log_normaliser - picked) * valid).sum(-1) / valid.sum(-1).clamp(min=1.0)
