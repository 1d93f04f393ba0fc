"""Gradients of many windows, each with its own adapter, by autograd: for adapters without a written-out form.

Slower than ``sasrec_gradients``, which has LoRA with a frozen A. ``model_gradients`` is for bases other than SASRec.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.candidates import Candidates
from ownlet.shared.lora import applied
from ownlet.shared.model import SASRec
from ownlet.shared.step import window_leaves
from ownlet.simulations.catalogue_softmax import CatalogueSoftmax

__all__ = ["AutogradGradients", "Batch"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Windows that are trained together: (windows, length) each."""

    history: Tensor
    target: Tensor
    valid: Tensor
    context: Tensor | None

    def __getitem__(self, rows: Tensor) -> Batch:
        context = None if self.context is None else self.context[rows]
        return Batch(history=self.history[rows], target=self.target[rows], valid=self.valid[rows], context=context)


class AutogradGradients:
    """Computes window gradients; one object per thread, because adapters are applied to its copy of the modules."""

    def __init__(self, model: SASRec, spec: AdapterSpec, start: Tensor) -> None:
        """Copy the modules of a base prepared with ``attach``, but not its tensors.

        Args:
            model: the base.
            spec: the adapter's spec.
            start: (P,) the global adapter; what of it is not trained is read from here.
        """
        self._spec = spec
        self._before, self._after = start[: spec.trainable.start], start[spec.trainable.stop :]
        self._model = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
        with torch.no_grad():
            self._items = model.item_vectors()
        self._softmax = CatalogueSoftmax(self._items)

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
        with torch.enable_grad(), applied(self._model, weights):
            hidden = self._model.encode(batch.history, self._items, batch.context)  # (windows, length, d)
            to_hidden = self._softmax(hidden.detach(), batch.target, batch.valid, candidates)
            gradients = torch.autograd.grad(hidden, leaves, to_hidden)
        parts, at = [], 0
        for gradient in gradients:
            flat = gradient.flatten(1)
            parts.append((slice(at, at + flat.shape[1]), flat))
            at += flat.shape[1]
        return parts
