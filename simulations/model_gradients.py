"""Gradients of many windows, each with its own adapter, for any base that scores: by autograd through all its scores.

``AutogradGradients`` starts from hidden states and needs SASRec's form, a product with an item table, for it. Here the
whole table of scores (windows, length, num_items + 1) is held, so it is slower and takes more memory.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.candidates import Candidates
from ownlet.shared.lora import applied
from ownlet.shared.objectives import softmax_loss, training_loss
from ownlet.shared.recommender import Recommender, module_of, scores
from ownlet.shared.step import window_leaves
from ownlet.simulations.autograd_gradients import Batch

__all__ = ["ModelGradients", "held_bytes"]


class ModelGradients:
    """Computes window gradients; one object per thread, because adapters are applied to its copy of the modules."""

    def __init__(self, model: Recommender, spec: AdapterSpec, start: Tensor) -> None:
        """Copy the modules of a base prepared with ``attach``, but not its tensors.

        Args:
            model: the base.
            spec: the adapter's spec.
            start: (P,) the global adapter; what of it is not trained is read from here.
        """
        self._spec = spec
        self._before, self._after = start[: spec.trainable.start], start[spec.trainable.stop :]
        module = module_of(model)
        self._model = copy.deepcopy(model, {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())})

    def batch(self, history: Tensor, target: Tensor, valid: Tensor, context: Tensor | None = None) -> Batch:
        """Prepare windows."""
        return Batch(history=history, target=target, valid=valid, context=context)

    def __call__(
        self, batch: Batch, own: Tensor, owner: Tensor, candidates: Candidates | None = None
    ) -> list[tuple[slice, Tensor]]:
        """Return the gradient of each window at its owner's vector; see ``cohort.WindowGradients``."""
        rest = (self._before.expand(len(owner), -1), self._after.expand(len(owner), -1))
        vectors = torch.cat([rest[0], own[owner], rest[1]], dim=1)  # (windows, P)
        weights, leaves = window_leaves(self._spec, vectors, len(owner))
        with torch.enable_grad(), applied(module_of(self._model), weights):
            table = scores(self._model, batch.history, batch.context)  # (windows, length, num_items + 1)
            losses = training_loss(table, batch.target, batch.valid, candidates)
            gradients = torch.autograd.grad(losses.sum(), leaves)
        parts, at = [], 0
        for gradient in gradients:
            flat = gradient.flatten(1)  # (windows, numbers of a matrix)
            parts.append((slice(at, at + flat.shape[1]), flat))
            at += flat.shape[1]
        return parts


def held_bytes(model: Recommender, spec: AdapterSpec) -> int:
    """Return how many bytes one window's pass keeps for its way back: counted in a pass over one window.

    Args:
        model: a base prepared with ``attach``.
        spec: its adapter's spec.
    """
    history = torch.ones(1, model.max_length, dtype=torch.int64, device=next(module_of(model).parameters()).device)
    shared = {tensor.untyped_storage().data_ptr() for tensor in module_of(model).parameters()}
    kept: dict[int, int] = {}  # storage -> bytes; several saved tensors may view one

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in shared:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights, _ = window_leaves(spec, torch.zeros(spec.size, device=history.device), 1)
    with torch.enable_grad(), applied(module_of(model), weights):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            losses = softmax_loss(model(history), history, torch.ones_like(history, dtype=torch.float32))
        del losses
    return sum(kept.values()) + 8 * spec.num_trainable  # its own vector and its gradient
