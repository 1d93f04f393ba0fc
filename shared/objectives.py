"""What local training minimises."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["sampled_softmax_loss", "softmax_loss"]


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


def sampled_softmax_loss(scores: Tensor, target: Tensor, valid: Tensor, negatives: Tensor) -> Tensor:
    """Softmax cross-entropy in which a few random items stand for all others, one number per window.

    With n negatives drawn uniformly from a catalogue of N items, ``(N - 1) / n`` times the sum of their exponentials
    estimates that of all items but the target (Jean et al. 2015, https://arxiv.org/abs/1412.2007, section 3). A
    negative that is a position's target is left out there.

    Args:
        scores: (batch, length, num_items + 1).
        target: (batch, length) item numbers; anything where not valid.
        valid: (batch, length) float, 1 where the target counts.
        negatives: (batch, n) item numbers, shared by all positions of a window.

    Returns:
        (batch,) mean over the window's valid positions.
    """
    length, num_items = scores.shape[1], scores.shape[2] - 1
    others = scores.gather(-1, negatives.unsqueeze(1).expand(-1, length, -1))  # (batch, length, n)
    others = others + math.log((num_items - 1) / negatives.shape[1])
    others = others.masked_fill(negatives.unsqueeze(1) == target.unsqueeze(2), -torch.inf)
    picked = scores.gather(-1, target.unsqueeze(-1))  # (batch, length, 1)
    log_normaliser = torch.logsumexp(torch.cat([picked, others], -1), dim=-1)  # (batch, length)
    return ((log_normaliser - picked.squeeze(-1)) * valid).sum(-1) / valid.sum(-1).clamp(min=1.0)
