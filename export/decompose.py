"""How the traced step's composite calls are spelled out so that XNNPACK takes all of them.

XNNPACK has no layer norm, no sum over the last axis, no comparison and no backward of anything. Left to the default
decompositions these stay outside the delegate and cut the step into dozens of delegated pieces, each with a call and
copies of its own. Written as below, forward and backward become one delegated piece each. Each rule is the textbook
formula; sums over the last axis are products with a constant row of ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["XNNPACK_DECOMPOSITIONS"]

_aten = torch.ops.aten


def _mean_of_last(x: Tensor) -> Tensor:
    """Mean over the last axis, (..., n) -> (..., 1)."""
    n = x.shape[-1]
    return torch.nn.functional.linear(x, torch.full((1, n), 1.0 / n))


def _sum_of_last(x: Tensor) -> Tensor:
    """Sum over the last axis, (..., n) -> (..., 1)."""
    return torch.nn.functional.linear(x, torch.ones(1, x.shape[-1]))


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = _mean_of_last(x)
    centred = x - mean
    inverse_std = torch.rsqrt(_mean_of_last(centred * centred) + eps)
    return centred * inverse_std * weight + bias, mean, inverse_std


def _layer_norm_backward(
    gradient: Tensor,
    x: Tensor,
    shape: list[int],
    mean: Tensor,
    inverse_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: list[bool],
) -> tuple[Tensor, None, None]:
    assert mask == [True, False, False], "the base is frozen: only the input's gradient is ever asked for"
    normal = (x - mean) * inverse_std
    scaled = gradient * weight
    inner = scaled - _mean_of_last(scaled) - normal * _mean_of_last(scaled * normal)
    return inner * inverse_std, None, None


def _softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    assert dim in (-1, output.dim() - 1), "attention's softmax runs over the last axis"
    product = gradient * output
    return product - output * _sum_of_last(product)


def _threshold_backward(gradient: Tensor, output: Tensor, threshold: float) -> Tensor:
    assert threshold == 0, "relu is the only threshold of the base"
    return gradient * torch.ceil(output.clamp(max=1.0))  # 1 where relu's output is positive, else 0, exactly


def _logsumexp(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    assert dims == [-1], "the loss normalises over the catalogue, the last axis"
    largest = x.amax(dim=-1, keepdim=True)  # (..., 1)
    total = largest + torch.log(_sum_of_last(torch.exp(x - largest)))
    return total if keepdim else total.squeeze(-1)


def _slice_backward(gradient: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int) -> Tensor:
    assert (dim, step) == (len(sizes) - 1, 1), "the loss drops leading scores of the last axis"
    assert end >= sizes[dim], "the loss keeps the last score"
    return torch.nn.functional.pad(gradient, [start, 0])


XNNPACK_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten._softmax_backward_data.default: _softmax_backward,
    _aten.threshold_backward.default: _threshold_backward,
    _aten.logsumexp.default: _logsumexp,
    _aten.slice_backward.default: _slice_backward,
}
