"""What training minimises: losses of scores, one number per window.

The full softmax takes the scores of all items. Every other objective is a pure function of a few candidates' scores at
a position: that of the target, s, and those of n sampled items, s_j, of which some are left out (a sampled item that is
the target, or one that is not hard enough). A window's loss is the mean over its valid positions, so it depends on that
window alone, which is what clipping window by window rests on.

* ``softmax``: ``log(exp s + sum_j exp(s_j - log(n q_j))) - s`` with q_j the chance to be drawn: the logQ correction of
  Yi et al. 2019 (https://doi.org/10.1145/3298689.3346996) for sampled items only, because the target is there for sure
  (Jean et al. 2015, https://arxiv.org/abs/1412.2007; Khrylchenko et al. 2025, https://arxiv.org/abs/2507.09331).
* ``bpr``: mean over j of ``-log sigmoid(s - s_j)`` (Rendle et al. 2009, https://arxiv.org/abs/1205.2618).
* ``bce``: mean over target and negatives of binary cross-entropy, the target's chance to the power beta: gBCE (Petrov
  and Macdonald 2023, https://arxiv.org/abs/2308.07192); with beta 1 and n = 1, half of SASRec's loss.
* ``listnet``: cross-entropy from the top-one probabilities of relevance, the softmax of a grade for the target and of 0
  for the others, to those of the scores (Cao et al. 2007, https://doi.org/10.1145/1273496.1273513).
* ``lambda``: sum over j of ``w_j log2(1 + exp(s_j - s))``, with weights of NDCG-Loss2++ from the current ranking, as
  constants (Wang et al. 2018, LambdaLoss, https://doi.org/10.1145/3269206.3271784), for pairs that touch the top K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ownlet.shared.candidates import Candidates

__all__ = ["candidate_gradients", "candidate_losses", "sampled_loss", "softmax_loss", "training_loss"]

LISTNET_GRADE = 6.0
"""Relevance of the target in ``listnet``, others having 0: its share of the list is e^6 in e^6 + n."""

LAMBDA_TOP = 10
"""K of ``lambda``: a pair counts where the better placed of the two is among the first K."""

LAMBDA_MU = 10.0
"""Weight of LambdaRank's part in NDCG-Loss2++."""

_MASKED = -1e9  # a score that no item has: exp of it is 0, and it stays finite where it is multiplied by 0


def training_loss(scores: Tensor, target: Tensor, valid: Tensor, candidates: Candidates | None) -> Tensor:
    """Return the loss of every window, (batch,): the full softmax, or that of candidates; see ``softmax_loss``."""
    if candidates is None:
        return softmax_loss(scores, target, valid)
    return sampled_loss(scores, target, valid, candidates)


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
    return _window_mean(log_normaliser - picked, valid)


def sampled_loss(scores: Tensor, target: Tensor, valid: Tensor, candidates: Candidates) -> Tensor:
    """Return the loss of every window by its candidates, (batch,); other arguments as in ``softmax_loss``."""
    positive = scores.gather(-1, target.unsqueeze(-1))  # (batch, length, 1)
    others = candidates.items.unsqueeze(1).expand(-1, scores.shape[1], -1)
    negative = scores.gather(-1, others)  # (batch, length, n)
    kept = candidates.kept(target, negative)
    return _window_mean(candidate_losses(candidates, positive, negative, kept), valid)


def _window_mean(losses: Tensor, valid: Tensor) -> Tensor:
    return (losses * valid).sum(-1) / valid.sum(-1).clamp(min=1.0)


def candidate_losses(candidates: Candidates, positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
    """Return the loss at every position, (...).

    Args:
        candidates: the objective, and what its formula needs beside scores.
        positive: (..., 1) score of the target.
        negative: (..., n) scores of the sampled items.
        kept: (..., n) float, 0 where a sampled item takes no part.
    """
    match candidates.config.objective:
        case "softmax":
            others = negative + candidates.corrections().to(negative.dtype)
            return _log_sum(positive, others, kept) - positive.squeeze(-1)
        case "bpr":
            return (kept * softplus(negative - positive)).sum(-1) / kept.sum(-1).clamp(min=1.0)
        case "bce":
            wrong = (kept * softplus(negative)).sum(-1)
            right = candidates.positive_weight * softplus(-positive).squeeze(-1)
            return (right + wrong) / (1.0 + kept.sum(-1))
        case "listnet":
            truth = _grades(kept)
            listed = torch.cat([positive, negative.masked_fill(kept == 0, _MASKED)], -1)
            return -(truth * torch.log_softmax(listed, -1)).sum(-1)
        case "lambda":
            return (_lambda_weights(positive, negative, kept) * softplus(negative - positive)).sum(-1)


def candidate_gradients(
    candidates: Candidates, positive: Tensor, negative: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """Return d loss / d positive (..., 1) and d loss / d negative (..., n) of ``candidate_losses``, in closed form."""
    match candidates.config.objective:
        case "softmax":
            others = (negative + candidates.corrections().to(negative.dtype)).masked_fill(kept == 0, -torch.inf)
            chances = torch.softmax(torch.cat([positive, others], -1), -1)
            return chances[..., :1] - 1, chances[..., 1:]
        case "bpr":
            to_negative = kept * torch.sigmoid(negative - positive) / kept.sum(-1, keepdim=True).clamp(min=1.0)
        case "bce":
            number = 1.0 + kept.sum(-1, keepdim=True)
            to_positive = -candidates.positive_weight * torch.sigmoid(-positive) / number
            return to_positive, kept * torch.sigmoid(negative) / number
        case "listnet":
            listed = torch.cat([positive, negative.masked_fill(kept == 0, -torch.inf)], -1)
            gradient = torch.softmax(listed, -1) - _grades(kept)
            return gradient[..., :1], gradient[..., 1:]
        case "lambda":
            to_negative = _lambda_weights(positive, negative, kept) * torch.sigmoid(negative - positive)
    return -to_negative.sum(-1, keepdim=True), to_negative


def _log_sum(positive: Tensor, others: Tensor, kept: Tensor) -> Tensor:
    return torch.logsumexp(torch.cat([positive, others.masked_fill(kept == 0, -torch.inf)], -1), -1)


def _grades(kept: Tensor) -> Tensor:
    """Return the top-one probabilities of the relevance grades, (..., 1 + n), the target first."""
    listed = torch.cat([torch.full_like(kept[..., :1], math.exp(LISTNET_GRADE)), kept], -1)
    return listed / listed.sum(-1, keepdim=True)


@torch.no_grad()
def _lambda_weights(positive: Tensor, negative: Tensor, kept: Tensor) -> Tensor:
    """Return the weights (..., n) of NDCG-Loss2++ with one relevant item, whose best NDCG is 1, divided by log 2.

    With ranks i of the target and j of a negative and D_k = log2(1 + k): ``|1/D_|i-j| - 1/D_|i-j|+1|`` (NDCG-Loss2),
    plus mu times ``|1/D_i - 1/D_j|`` (LambdaRank). Where scores tie, the target comes last.
    """
    listed = negative.masked_fill(kept == 0, -torch.inf)
    order = torch.argsort(listed, dim=-1, descending=True, stable=True)
    among = torch.argsort(order, dim=-1) + 1  # (..., n) rank among the negatives
    ranks = (among + (positive > listed)).float()
    rank = 1.0 + (kept * (listed >= positive)).sum(-1, keepdim=True).float()  # (..., 1) of the target
    apart = (rank - ranks).abs()
    loss_2 = 1 / torch.log2(1 + apart) - 1 / torch.log2(2 + apart)
    lambda_rank = (1 / torch.log2(1 + rank) - 1 / torch.log2(1 + ranks)).abs()
    touches_top = (torch.minimum(rank, ranks) <= LAMBDA_TOP).float()
    weights = (loss_2 + LAMBDA_MU * lambda_rank) * touches_top / math.log(2)
    return weights.to(negative.dtype) * kept
