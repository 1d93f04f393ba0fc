"""The base's parts, forward and backward, in the operations that XNNPACK takes whole.

Every part returns its value and a function that takes a gradient back through it: given d loss / d value it returns
d loss / d input and puts the gradients of what is trained on the tape. So a training step is a plain graph of products
and element-wise operations, without autograd, and each piece of it was written for the kernels it meets:

* products are ``linear``: with the base's weights, which are constants that XNNPACK packs once, when it loads the
  program, the transposed ones of the backward too; and with an adapter's, which are inputs and small;
* alpha / r is folded into A, once for the whole vector, and never applied to rows;
* sums over the last axis, which XNNPACK lacks, are products with a row of ones;
* ``permute_copy`` says what a permutation is on a device, so that nothing is cloned after it.

What nobody reads (the first block's input gradient, say) is dropped when the graph is exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import linear as product

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.model import Block

__all__ = ["Back", "Tape", "attention", "block", "layer_norm", "linear", "sum_of_last"]

Back = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Tape:
    """The adapter that a pass applies, and the gradients that the way back leaves.

    Args:
        scaled_a: layer name -> A (r, in) times alpha / r.
        b: layer name -> B (out, r).
        scale_a: alpha / r where A is trained, None where it is not.
        gradients_a: layer name -> (batch, r, in).
        gradients_b: layer name -> (batch, out, r).
    """

    scaled_a: dict[str, Tensor]
    b: dict[str, Tensor]
    scale_a: float | None
    gradients_a: dict[str, Tensor] = field(default_factory=dict)
    gradients_b: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: AdapterSpec, vector: Tensor) -> Tape:
        """Cut a vector (P,) into its layers."""
        scale = spec.alpha / spec.rank
        all_a, all_b = vector[: spec.size_a] * scale, vector[spec.size_a :].view(-1, spec.rank)
        scaled_a, b, at_a, at_b = {}, {}, 0, 0
        for layer in spec.layers:
            size = spec.rank * layer.in_features
            scaled_a[layer.name] = all_a[at_a : at_a + size].view(spec.rank, layer.in_features)
            b[layer.name] = all_b[at_b : at_b + layer.out_features]
            at_a, at_b = at_a + size, at_b + layer.out_features
        return cls(scaled_a=scaled_a, b=b, scale_a=scale if spec.train_a else None)


def sum_of_last(x: Tensor) -> Tensor:
    """Sum over the last axis, (..., n) -> (..., 1)."""
    return product(x, torch.ones(1, x.shape[-1]))


def linear(x: Tensor, layer: nn.Linear, name: str, tape: Tape) -> tuple[Tensor, Back]:
    """Map x (batch, length, in) to x Wᵀ + b + alpha / r · (x Aᵀ) Bᵀ, (batch, length, out)."""
    y = product(x, layer.weight.detach(), layer.bias.detach())
    transposed = layer.weight.detach().T.contiguous()
    if name not in tape.b:
        return y, lambda gradient: product(gradient, transposed)
    a, b = tape.scaled_a[name], tape.b[name]
    low = product(x, a)  # (batch, length, r)

    def back(gradient: Tensor) -> Tensor:
        tape.gradients_b[name] = torch.bmm(torch.permute_copy(gradient, (0, 2, 1)), low)
        low_gradient = product(gradient, torch.permute_copy(b, (1, 0)))
        if tape.scale_a is not None:
            tape.gradients_a[name] = torch.bmm(torch.permute_copy(low_gradient * tape.scale_a, (0, 2, 1)), x)
        return product(gradient, transposed) + product(low_gradient, torch.permute_copy(a, (1, 0)))

    return y + product(low, b), back


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Back]:
    """Normalise the last axis of x (batch, length, d)."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    mean = torch.full((1, len(weight)), 1.0 / len(weight))
    centred = x - product(x, mean)
    variance = product(centred * centred, mean, torch.full((1,), norm.eps))  # (batch, length, 1), epsilon included
    inverse_std = torch.rsqrt(variance)
    normal = centred * inverse_std

    def back(gradient: Tensor) -> Tensor:
        scaled = gradient * weight
        inner = scaled - product(scaled, mean) - normal * product(scaled * normal, mean)
        return inner * inverse_std

    return normal * weight + bias, back


def attention(x: Tensor, part: Block, name: str, tape: Tape, causal: Tensor) -> tuple[Tensor, Back]:
    """Mix positions of x (batch, length, d); causal (1, length, length) holds 0 or a very negative number."""
    heads, (batch, length, d) = part.num_heads, x.shape
    head_dim = d // heads
    scale = 1 / math.sqrt(head_dim)

    def split(rows: Tensor) -> Tensor:
        parts = torch.permute_copy(rows.view(batch, length, heads, head_dim), (0, 2, 1, 3))
        return parts.view(batch * heads, length, head_dim)

    def join(parts: Tensor) -> Tensor:
        rows = torch.permute_copy(parts.view(batch, heads, length, head_dim), (0, 2, 1, 3))
        return rows.view(batch, length, d)

    query, query_back = linear(x, part.query, f"{name}.query", tape)
    key, key_back = linear(x, part.key, f"{name}.key", tape)
    value, value_back = linear(x, part.value, f"{name}.value", tape)
    q, k, v = split(query * scale), split(key), split(value)  # (batch * heads, length, d / heads)
    weights = torch.softmax(torch.bmm(q, torch.permute_copy(k, (0, 2, 1))) + causal, dim=-1)
    mixed = torch.bmm(weights, v)  # from weights (batch * heads, length, length)
    y, output_back = linear(join(mixed), part.output, f"{name}.output", tape)

    def back(gradient: Tensor) -> Tensor:
        mixed_gradient = split(output_back(gradient))
        value_gradient = torch.bmm(torch.permute_copy(weights, (0, 2, 1)), mixed_gradient)
        inner = sum_of_last(mixed_gradient * mixed)  # the softmax's own sum of gradient times weight, row by row
        score_gradient = weights * (torch.bmm(mixed_gradient, torch.permute_copy(v, (0, 2, 1))) - inner)
        to_query = query_back(join(torch.bmm(score_gradient, k)) * scale)
        to_key = key_back(join(torch.bmm(torch.permute_copy(score_gradient, (0, 2, 1)), q)))
        return to_query + to_key + value_back(join(value_gradient))

    return y, back


def block(x: Tensor, part: Block, name: str, tape: Tape, causal: Tensor) -> tuple[Tensor, Back]:
    """Send x (batch, length, d) through a transformer block."""
    normal, attention_norm_back = layer_norm(x, part.attention_norm)
    attended, attention_back = attention(normal, part, name, tape, causal)
    middle = x + attended
    normal, feedforward_norm_back = layer_norm(middle, part.feedforward_norm)
    up, up_back = linear(normal, part.up, f"{name}.up", tape)
    hidden = torch.relu(up)
    down, down_back = linear(hidden, part.down, f"{name}.down", tape)

    def back(gradient: Tensor) -> Tensor:
        is_active = torch.ceil(hidden.clamp(max=1.0))  # 1 where relu's value is positive, else 0, exactly
        middle_gradient = gradient + feedforward_norm_back(up_back(down_back(gradient) * is_active))
        return middle_gradient + attention_norm_back(attention_back(middle_gradient))

    return middle + down, back
