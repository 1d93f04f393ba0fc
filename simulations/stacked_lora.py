"""LoRA for a cohort: A is shared and frozen, every window has its own B, and gradients come per window.

The forward is that of ``shared.lora``. Written as one autograd function it costs one large matmul with the frozen
weight, one with A and one batched matmul with B in each direction, and no table is expanded or reduced.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ownlet.shared.lora import LoRALinear
from ownlet.shared.model import SASRec

__all__ = ["StackedLoRALinear", "replicate"]


class _StackedLoRA(torch.autograd.Function):
    """y = x Wᵀ + bias + scale (x Aᵀ) Bᵀ for x (windows, length, in), A (r, in), B (windows, out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        down = nn.functional.linear(x, a)  # (windows, length, r)
        ctx.save_for_backward(down, weight, a, b)
        ctx.scale = scale
        y = nn.functional.linear(x, weight, bias)
        return y.baddbmm_(down, b.mT, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, Tensor, None]:
        down, weight, a, b = ctx.saved_tensors
        to_b = torch.bmm(gradient.mT, down).mul_(ctx.scale)  # (windows, out, r)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, to_b, None
        to_down = torch.bmm(gradient, b)  # (windows, length, r)
        to_x = gradient.flatten(0, 1) @ weight  # (windows * length, in)
        to_x.addmm_(to_down.flatten(0, 1), a, alpha=ctx.scale)
        return to_x.view(*gradient.shape[:2], -1), None, None, None, to_b, None


class StackedLoRALinear(LoRALinear):
    """A ``LoRALinear`` for A (r, in) without and B (windows, out, r) with a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (windows, length, in) to (windows, length, out)."""
        if self.lora is None:
            return nn.functional.linear(x, self.weight, self.bias)
        a, b = self.lora
        y: Tensor = _StackedLoRA.apply(x, self.weight, self.bias, a, b, self.scale)  # type: ignore[no-untyped-call]
        return y


def replicate(model: SASRec, *, stacked: bool) -> SASRec:
    """Return a second model on the same tensors, so that two threads can apply adapters at once.

    Args:
        model: prepared with ``attach``.
        stacked: make its adapted layers ``StackedLoRALinear``.
    """
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    replica = copy.deepcopy(model, tensors)
    if stacked:
        for name, module in list(replica.named_modules()):
            if isinstance(module, LoRALinear):
                replica.set_submodule(name, StackedLoRALinear.wrap(module, module.scale))
    return replica
