"""The DP-SGD step that every engine takes (Abadi et al. 2016, https://arxiv.org/abs/1607.00133, algorithm 1).

A pure function of tensors. The adapter is an input, so expanding it over the batch and differentiating once yields one
gradient per window, without hooks. ``export`` traces this very function into the device program; the simulation's
cohort engine calls its parts with many users stacked; the Opacus engine is the independent reference for both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.candidates import Candidates
from ownlet.shared.lora import applied
from ownlet.shared.objectives import training_loss
from ownlet.shared.recommender import Recommender, module_of, scores

__all__ = ["clip_factors", "dp_sgd_step", "factors_of", "window_gradients", "window_leaves"]


def window_leaves(
    spec: AdapterSpec, vectors: Tensor, batch: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
    """Expand an adapter over the batch into autograd leaves, so that one backward pass gives per-window gradients.

    Args:
        spec: the adapter's spec.
        vectors: (batch, P) one adapter per window, or (P,) one for all.
        batch: windows.

    Returns:
        weights for ``applied``, and those of them that are trained, each (batch, rows, columns), in vector order.
    """
    weights = {name: (a.detach(), b.detach()) for name, (a, b) in spec.split(vectors).items()}
    leaves: list[Tensor] = []

    def leaf(matrix: Tensor) -> Tensor:
        per_window = matrix if matrix.dim() == 3 else matrix.expand(batch, *matrix.shape)
        leaves.append(per_window.clone().requires_grad_())  # (batch, rows, columns)
        return leaves[-1]

    if spec.train_a:  # the order of the vector: every A, then every B
        weights = {name: (leaf(a), b) for name, (a, b) in weights.items()}
    if spec.train_b:
        weights = {name: (a, leaf(b)) for name, (a, b) in weights.items()}
    return weights, leaves


def window_gradients(
    model: Recommender,
    spec: AdapterSpec,
    vectors: Tensor,
    history: Tensor,
    target: Tensor,
    valid: Tensor,
    context: Tensor | None = None,
    *,
    candidates: Candidates | None = None,
) -> tuple[Tensor, Tensor]:
    """Return every window's loss and gradient with respect to its own adapter.

    Args:
        model: the frozen base, prepared with ``attach``.
        spec: the adapter's spec.
        vectors: (batch, P) one adapter per window, or (P,) one for all.
        history: (batch, length) item numbers.
        target: (batch, length) item numbers.
        valid: (batch, length) float, 1 where the target counts.
        context: (batch, length, fields) rows of the context of each position, where the base reads any.
        candidates: what stands for the catalogue; None is the full softmax.

    Returns:
        losses (batch,) and gradients (batch, num_trainable), both detached.
    """
    weights, leaves = window_leaves(spec, vectors, history.shape[0])
    with torch.enable_grad(), applied(module_of(model), weights):
        losses = training_loss(scores(model, history, context), target, valid, candidates)
        gradients = torch.autograd.grad(losses.sum(), leaves)
    return losses.detach(), torch.cat([g.flatten(1) for g in gradients], dim=1)


def clip_factors(gradients: Tensor, clip: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the factors min(1, clip / norm) and the norms, both (batch,), of gradients (batch, n)."""
    norms = gradients.square().sum(dim=1).sqrt()
    return factors_of(norms, clip), norms


def factors_of(norms: Tensor, clip: Tensor | float) -> Tensor:
    """Return the factors min(1, clip / norm), (batch,), of norms (batch,)."""
    return (clip / norms.clamp(min=1e-12)).clamp(max=1.0)


def dp_sgd_step(
    model: Recommender,
    spec: AdapterSpec,
    vector: Tensor,
    history: Tensor,
    target: Tensor,
    valid: Tensor,
    noise: Tensor,
    clip: Tensor,
    rate: Tensor,
    context: Tensor | None = None,
    *,
    candidates: Candidates | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of DP-SGD on the adapter's trainable part.

    ``trainable' = trainable - rate * (sum of clipped window gradients + noise)``. It is linear in the gradient sum, so
    a batch larger than one call holds is several calls from the same vector whose changes add up.

    Args:
        model: the frozen base, prepared with ``attach``.
        spec: the adapter's spec.
        vector: (P,) the adapter.
        history: (batch, length) item numbers; a row whose ``valid`` is all 0 contributes nothing.
        target: (batch, length) item numbers.
        valid: (batch, length) float, 1 where the target counts.
        noise: (num_trainable,) noise for the gradient sum, standard deviation sigma * C, drawn by the host.
        clip: () C.
        rate: () learning rate divided by the plan's expected batch.
        context: (batch, length, fields) rows of the context of each position, where the base reads any.
        candidates: what stands for the catalogue; None is the full softmax.

    Returns:
        the new vector (P,), losses (batch,) and gradient norms (batch,). The last two are private: they stay where
        the data is.
    """
    losses, gradients = window_gradients(model, spec, vector, history, target, valid, context, candidates=candidates)
    factors, norms = clip_factors(gradients, clip)
    total = factors @ gradients + noise  # (num_trainable,)
    frozen, trainable = vector[: spec.trainable.start], vector[spec.trainable]
    rest = () if spec.train_b else (vector[spec.trainable.stop :],)
    return torch.cat([frozen, trainable - rate * total, *rest]), losses, norms
