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
from ownlet.shared.errors import require
from ownlet.shared.model import Block
from ownlet.shared.sites import Form

__all__ = ["Back", "Tape", "attention", "block", "layer_norm", "linear", "prefix", "sum_of_last"]

Back = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Tape:
    """The adapter that a pass applies, and the gradients that the way back leaves.

    Args:
        scaled_a: place -> A (r, in) times alpha / r; a prefix's, which a softmax reads, as it is.
        b: place -> B (out, r).
        scale: alpha / r.
        train_a: whether A is trained.
        form: how a pair enters (``shared/sites.py``).
        gradients_a: layer name -> (batch, r, in).
        gradients_b: layer name -> (batch, out, r).
    """

    scaled_a: dict[str, Tensor]
    b: dict[str, Tensor]
    scale: float
    train_a: bool
    form: Form
    gradients_a: dict[str, Tensor] = field(default_factory=dict)
    gradients_b: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: AdapterSpec, vector: Tensor) -> Tape:
        """Cut a vector (P,) into its layers."""
        require(
            spec.train_b, "train_b must be true in a program, whose trained tensors are fixed", train_b=spec.train_b
        )
        scale = spec.alpha / spec.rank
        all_a, all_b = vector[: spec.size_a], vector[spec.size_a :].view(-1, spec.rank)
        if spec.form != "prefix":
            all_a = all_a * scale
        scaled_a, b, at_a, at_b = {}, {}, 0, 0
        for layer in spec.layers:
            size = spec.rank * layer.in_features
            scaled_a[layer.name] = all_a[at_a : at_a + size].view(spec.rank, layer.in_features)
            b[layer.name] = all_b[at_b : at_b + layer.out_features]
            at_a, at_b = at_a + size, at_b + layer.out_features
        return cls(scaled_a=scaled_a, b=b, scale=scale, train_a=spec.train_a, form=spec.form)


def sum_of_last(x: Tensor) -> Tensor:
    """Sum over the last axis, (..., n) -> (..., 1)."""
    return product(x, torch.ones(1, x.shape[-1]))


def linear(x: Tensor, layer: nn.Linear, name: str, tape: Tape) -> tuple[Tensor, Back]:
    """Map x (batch, length, in) to x Wᵀ + b and what a pair of the tape adds to that, (batch, length, out)."""
    y = product(x, layer.weight.detach(), layer.bias.detach())
    transposed = layer.weight.detach().T.contiguous()
    if name not in tape.b:
        return y, lambda gradient: product(gradient, transposed)
    is_serial = tape.form == "bottleneck"
    read = y if is_serial else x
    low = product(read, tape.scaled_a[name])  # (batch, length, r)
    if is_serial:
        low = torch.relu(low)

    def back_through_pair(gradient: Tensor) -> Tensor:
        tape.gradients_b[name] = torch.bmm(torch.permute_copy(gradient, (0, 2, 1)), low)
        low_gradient = product(gradient, torch.permute_copy(tape.b[name], (1, 0)))
        if is_serial:
            low_gradient = low_gradient * is_active(low)
        if tape.train_a:
            tape.gradients_a[name] = torch.bmm(torch.permute_copy(low_gradient * tape.scale, (0, 2, 1)), read)
        return product(low_gradient, torch.permute_copy(tape.scaled_a[name], (1, 0)))

    def back(gradient: Tensor) -> Tensor:
        if is_serial:
            return product(gradient + back_through_pair(gradient), transposed)
        return product(gradient, transposed) + back_through_pair(gradient)

    return y + product(low, tape.b[name]), back


def is_active(x: Tensor) -> Tensor:
    """Return exactly 1 where what relu gave is positive, else 0."""
    return torch.ceil(x.clamp(max=1.0))


def prefix(query: Tensor, heads: int, name: str, tape: Tape) -> tuple[Tensor, Back]:
    """Return what learned keys and values add for query (batch, length, d); the same shape."""
    batch, length, d = query.shape
    keys = torch.permute_copy(tape.scaled_a[name].view(-1, heads, d // heads), (1, 0, 2))  # (heads, r, d / heads)
    values = tape.b[name].view(heads, d // heads, -1)  # (heads, d / heads, r)

    def split(rows: Tensor) -> Tensor:
        return torch.permute_copy(rows.view(batch * length, heads, -1), (1, 0, 2))  # (heads, batch * length, d / heads)

    def join(parts: Tensor) -> Tensor:
        return torch.permute_copy(parts, (1, 0, 2)).view(batch, length, d)

    def by_window(parts: Tensor) -> Tensor:
        return parts.view(heads * batch, length, -1)

    q = split(query)
    weights = torch.softmax(torch.bmm(q, torch.permute_copy(keys, (0, 2, 1))), dim=-1)  # (heads, batch * length, r)

    def back(gradient: Tensor) -> Tensor:
        mine = split(gradient) * tape.scale
        of_b = torch.bmm(torch.permute_copy(by_window(mine), (0, 2, 1)), by_window(weights))  # (heads * batch, .., r)
        of_b = torch.permute_copy(of_b.view(heads, batch, d // heads, -1), (1, 0, 2, 3))
        tape.gradients_b[name] = of_b.view(batch, d, -1)
        to_weights = torch.bmm(mine, values)
        to_scores = weights * (to_weights - sum_of_last(to_weights * weights))
        if tape.train_a:
            of_a = torch.bmm(torch.permute_copy(by_window(to_scores), (0, 2, 1)), by_window(q))  # (.., r, ..)
            of_a = torch.permute_copy(of_a.view(heads, batch, -1, d // heads), (1, 2, 0, 3))
            tape.gradients_a[name] = of_a.view(batch, -1, d)
        return join(torch.bmm(to_scores, keys))

    return join(torch.bmm(weights, torch.permute_copy(values, (0, 2, 1)))) * tape.scale, back


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
    rows, prefix_back = join(mixed), None
    if f"{name}.prefix" in tape.b:
        added, prefix_back = prefix(query, heads, f"{name}.prefix", tape)
        rows = rows + added
    y, output_back = linear(rows, part.output, f"{name}.output", tape)

    def back(gradient: Tensor) -> Tensor:
        rows_gradient = output_back(gradient)
        mixed_gradient = split(rows_gradient)
        value_gradient = torch.bmm(torch.permute_copy(weights, (0, 2, 1)), mixed_gradient)
        inner = sum_of_last(mixed_gradient * mixed)  # the softmax's own sum of gradient times weight, row by row
        score_gradient = weights * (torch.bmm(mixed_gradient, torch.permute_copy(v, (0, 2, 1))) - inner)
        query_gradient = join(torch.bmm(score_gradient, k)) * scale
        if prefix_back is not None:
            query_gradient = query_gradient + prefix_back(rows_gradient)
        to_query = query_back(query_gradient)
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
        middle_gradient = gradient + feedforward_norm_back(up_back(down_back(gradient) * is_active(hidden)))
        return middle_gradient + attention_norm_back(attention_back(middle_gradient))

    return middle + down, back
