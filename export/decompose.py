"""How composite calls of a traced training step are spelled out so that XNNPACK takes most of them.

XNNPACK has no layer norm, no sum over the last axis, no comparison and no backward of anything. Left to the default
decompositions these stay outside the delegate and cut the step into dozens of delegated pieces, each with a call and
copies of its own. Each rule is the textbook formula for the case that recommenders have; any other case is left to
PyTorch's own decomposition. Sums over the last axis are products with a constant row of ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

__all__ = ["decompositions"]

_aten = torch.ops.aten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return rules that bring any traced call into the core set of ATen, for ``make_fx``."""
    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    for call, rule in _RULES.items():
        table[call] = _with_fallback(rule, table.get(call))
    return table


def _with_fallback(rule: Callable[..., Any], default: Callable[..., Any] | None) -> Callable[..., Any]:
    def decompose(*arguments: Any, **options: Any) -> Any:
        result = NotImplemented if options else rule(*arguments)
        if result is NotImplemented and default is not None:
            return default(*arguments, **options)
        return result

    return decompose


def _sum_of_last(x: Tensor) -> Tensor:
    """Sum over the last axis, (..., n) -> (..., 1)."""
    return torch.nn.functional.linear(x, torch.ones(1, x.shape[-1]))


def _mean_of_last(x: Tensor) -> Tensor:
    return torch.nn.functional.linear(x, torch.full((1, x.shape[-1]), 1.0 / x.shape[-1]))


def _layer_norm(x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    if len(shape) != 1 or weight is None or bias is None:
        return NotImplemented
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
    weight: Tensor | None,
    bias: Tensor | None,
    mask: list[bool],
) -> Any:
    if len(shape) != 1 or weight is None or mask != [True, False, False]:  # the base is frozen
        return NotImplemented
    normal = (x - mean) * inverse_std
    scaled = gradient * weight
    inner = scaled - _mean_of_last(scaled) - normal * _mean_of_last(scaled * normal)
    return inner * inverse_std, None, None


def _softmax_backward(gradient: Tensor, output: Tensor, dim: int, dtype: torch.dtype) -> Any:
    if dim not in (-1, output.dim() - 1):
        return NotImplemented
    product = gradient * output
    return product - output * _sum_of_last(product)


def _threshold_backward(gradient: Tensor, output: Tensor, threshold: float) -> Any:
    if threshold != 0:
        return NotImplemented
    return gradient * torch.ceil(output.clamp(min=0.0, max=1.0))  # 1 where relu's output is positive, else 0, exactly


def _logsumexp(x: Tensor, dims: list[int], keepdim: bool = False) -> Any:
    if list(dims) not in ([-1], [x.dim() - 1]):
        return NotImplemented
    largest = x.amax(dim=-1, keepdim=True)  # (..., 1)
    total = largest + torch.log(_sum_of_last(torch.exp(x - largest)))
    return total if keepdim else total.squeeze(-1)


def _slice_backward(gradient: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int) -> Any:
    if step != 1 or dim not in (-1, len(sizes) - 1):
        return NotImplemented
    behind = sizes[dim] - start - gradient.shape[-1]
    return torch.nn.functional.pad(gradient, [start, behind])


_RULES: dict[Any, Callable[..., Any]] = {
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_layer_norm_backward.default: _layer_norm_backward,
    _aten._softmax_backward_data.default: _softmax_backward,
    _aten.threshold_backward.default: _threshold_backward,
    _aten.logsumexp.default: _logsumexp,
    _aten.slice_backward.default: _slice_backward,
}
