"""Gradients of many windows, each with its own B: SASRec's forward and backward pass written out.

The same mathematics as ``shared.model`` and ``shared.lora`` under autograd, which tests hold it to, arranged for a
cohort that shares its frozen base and its frozen A:

* queries, keys, values and the inner LoRA activations of all windows are one product with ``[Wq; Wk; Wv; Aq; Av]``, and
  their gradients come back in one; the layer norm's gain and the LoRA scale are folded into the matrix;
* what is a window's own, ``(x Aᵀ) Bᵀ`` and its gradients, is a batched product;
* the lowest adapted block reads what never changes, so its shared product is computed once for all steps, and nothing
  is sent back below it;
* large intermediate results live in buffers that are kept, because fresh memory costs page faults.

Positions, all windows' one after the other, are rows; ``shape`` is (windows, length).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.candidates import Candidates
from ownlet.shared.lora import LoRALinear
from ownlet.shared.model import SASRec
from ownlet.simulations.catalogue_softmax import CatalogueSoftmax

__all__ = ["Batch", "Gradients", "SASRecGradients", "SharedWeights"]

Gradients = list[tuple[slice, Tensor]]
"""Columns of a table (windows, num_trainable), and their values."""

Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Linear:
    """Layers that read the same input, and the A of those that are adapted, as one matrix.

    Args:
        weight: (outputs + ranks, in): every W, then every scaled A.
        bias: (outputs + ranks,).
        outputs: layer -> its columns of the product.
        inner: adapted layer -> the columns of the product that are its scaled x Aᵀ.
        own: adapted layer -> its part of the trained vector.
    """

    weight: Tensor
    bias: Tensor
    outputs: dict[str, slice]
    inner: dict[str, slice]
    own: dict[str, slice]

    @property
    def num_outputs(self) -> int:
        """Columns of the product that belong to W."""
        return sum(columns.stop - columns.start for columns in self.outputs.values())


class _Block(NamedTuple):
    """The linear layers of a transformer block in the order of use."""

    attention: _Linear
    output: _Linear
    up: _Linear
    down: _Linear


class SharedWeights:
    """What all windows share in one training call: the base and A. Made once, read by every thread."""

    def __init__(self, model: SASRec, spec: AdapterSpec, start: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """Arrange the weights.

        Args:
            model: the frozen base, prepared with ``attach``.
            spec: the adapter's spec; A is frozen.
            start: (P,) the global adapter; only its A is read.
            dtype: of the arithmetic.
        """
        self.model, self.rank, self.dtype = model, spec.rank, dtype
        self.first_block = min(int(layer.name.split(".")[1]) for layer in spec.layers)
        self._a = {name: a for name, (a, _) in spec.split(start).items()}
        sizes = [layer.out_features * spec.rank for layer in spec.layers]
        self._own = {layer.name: slice(sum(sizes[:at]), sum(sizes[: at + 1])) for at, layer in enumerate(spec.layers)}
        with torch.no_grad():
            self.blocks = [self._block(f"blocks.{number}.") for number in range(len(model.blocks))]
            self.items = model.item_vectors()
        self.final_gain, self.final_bias = model.final_norm.weight.to(dtype), model.final_norm.bias.to(dtype)

    def _block(self, prefix: str) -> _Block:
        return _Block(
            attention=self._linear(prefix, ("query", "key", "value"), "attention_norm"),
            output=self._linear(prefix, ("output",)),
            up=self._linear(prefix, ("up",), "feedforward_norm"),
            down=self._linear(prefix, ("down",)),
        )

    def _linear(self, prefix: str, names: tuple[str, ...], norm_name: str | None = None) -> _Linear:
        """Stack layers of a block, with the affine part of the norm before them folded in."""
        layers = {name: cast(nn.Linear, self.model.get_submodule(prefix + name)) for name in names}
        adapted = {name: layer for name, layer in layers.items() if isinstance(layer, LoRALinear)}
        weight = torch.cat(
            [layer.weight for layer in layers.values()]
            + [self._a[prefix + name] * layer.scale for name, layer in adapted.items()]
        )
        bias = torch.cat([layer.bias for layer in layers.values()])
        bias = nn.functional.pad(bias, (0, len(weight) - len(bias)))
        if norm_name is not None:
            norm = cast(nn.LayerNorm, self.model.get_submodule(prefix + norm_name))
            bias, weight = bias + weight @ norm.bias, weight * norm.weight
        ends = [0]
        for width in [layer.out_features for layer in layers.values()] + [self.rank] * len(adapted):
            ends.append(ends[-1] + width)
        columns = [slice(*pair) for pair in itertools.pairwise(ends)]
        return _Linear(
            weight=weight.to(self.dtype),
            bias=bias.to(self.dtype),
            outputs=dict(zip(layers, columns, strict=False)),
            inner=dict(zip(adapted, columns[len(layers) :], strict=True)),
            own={name: self._own[prefix + name] for name in adapted},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Windows that are trained together, and what of them is the same in every step.

    Args:
        x: (windows, length, d) what the lowest adapted block reads.
        first: (windows, length, width) the first shared product of that block.
        target: (windows, length) item numbers.
        valid: (windows, length) float, 1 where the target counts.
    """

    x: Tensor
    first: Tensor
    target: Tensor
    valid: Tensor

    def __getitem__(self, rows: Tensor) -> Batch:
        """Return some of the windows."""
        return Batch(x=self.x[rows], first=self.first[rows], target=self.target[rows], valid=self.valid[rows])


class _Normal(NamedTuple):
    """A layer norm without its affine part: what went in, its mean and reciprocal standard deviation."""

    x: Tensor
    mean: Tensor
    rstd: Tensor


class _Tape(NamedTuple):
    """What a block's backward pass needs of its forward pass."""

    attention_norm: _Normal | None
    first: Tensor  # (windows, length, width)
    heads: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # q, k, v (windows, length, d / heads), weights (.., length)
    feedforward_norm: _Normal
    wide: Tensor  # (positions, 4 d) behind the ReLU
    inner: dict[str, Tensor]  # adapted layer -> its scaled x Aᵀ (windows, length, r)


class SASRecGradients:
    """Computes window gradients; one object per thread, because it keeps buffers."""

    def __init__(self, shared: SharedWeights) -> None:
        """Take the weights; buffers come with the first batch."""
        self._shared = shared
        self._softmax = CatalogueSoftmax(shared.items, shared.dtype)
        self._buffers: dict[str, Tensor] = {}

    def batch(self, history: Tensor, target: Tensor, valid: Tensor, context: Tensor | None = None) -> Batch:
        """Prepare windows: everything below the lowest adapter.

        Args:
            history: (windows, length) item numbers.
            target: (windows, length) item numbers.
            valid: (windows, length) float, 1 where the target counts.
            context: (windows, length, fields) rows of the context of each position, where the base reads any.
        """
        model, attention = self._shared.model, self._shared.blocks[self._shared.first_block].attention
        x = model.transform(model.embed(history, self._shared.items, context), stop=self._shared.first_block)
        x = x.to(self._shared.dtype)
        first = nn.functional.linear(_normalise(x)[0], attention.weight, attention.bias)
        return Batch(x=x, first=first, target=target, valid=valid)

    def __call__(self, batch: Batch, own: Tensor, owner: Tensor, candidates: Candidates | None = None) -> Gradients:
        """Return the gradient of each window's loss at its owner's vector; see ``cohort.WindowGradients``."""
        shape = (batch.target.shape[0], batch.target.shape[1])
        shared, gradients = self._shared, Gradients()
        own = torch.index_select(
            own.to(shared.dtype), 0, owner, out=self._buffer("own", len(owner), own.shape[1])
        )  # (windows, num_trainable)
        x, tapes = batch.x.flatten(0, 1), dict[int, _Tape]()
        for number in range(shared.first_block, len(shared.blocks)):
            first = batch.first if number == shared.first_block else None
            x, tapes[number] = self._forward(number, x, first, own, shape)
        hidden, mean, rstd = torch.native_layer_norm(x, x.shape[1:], shared.final_gain, shared.final_bias, 1e-5)
        g = self._softmax(hidden.unflatten(0, shape), batch.target, batch.valid, candidates).flatten(0, 1)
        g = _norm_backward(g, _Normal(x, mean, rstd), shared.final_gain)
        for number, tape in reversed(tapes.items()):
            g = self._backward(number, tape, g, own, gradients, shape)
        return gradients

    def _forward(self, number: int, x: Tensor, first: Tensor | None, own: Tensor, shape: Shape) -> tuple[Tensor, _Tape]:
        attention, output, up, down = self._shared.blocks[number]
        attention_norm = None
        if first is None:
            normal, attention_norm = _normalise(x)
            product = self._buffer(f"first{number}", len(x), len(attention.weight))
            first = torch.addmm(attention.bias, normal, attention.weight.T, out=product).unflatten(0, shape)
        inner = {name: first[..., columns] for name, columns in attention.inner.items()}
        mixed, heads = self._attend(attention, first, inner, own)
        x = self._project(output, mixed.flatten(0, 1), own, inner, shape).add_(x)
        normal, feedforward_norm = _normalise(x)
        wide = self._project(up, normal, own, inner, shape, buffer=f"wide{number}").relu_()  # (positions, 4 d)
        x = self._project(down, wide, own, inner, shape).add_(x)
        return x, _Tape(attention_norm, first, heads, feedforward_norm, wide, inner)

    def _attend(
        self, attention: _Linear, first: Tensor, inner: dict[str, Tensor], own: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor, Tensor]]]:
        """Return the heads' outputs (windows, length, d), and what each head's backward pass needs."""
        projected = {name: first[..., columns] for name, columns in attention.outputs.items()}
        for name in attention.own:  # out of place: the first block's product is used again in the next step
            projected[name] = torch.baddbmm(projected[name], inner[name], self._b(attention, name, own).mT)
        length = first.shape[1]
        causal = torch.full((length, length), -1e9, dtype=first.dtype, device=first.device).triu(1)
        mixed = torch.empty_like(projected["value"], memory_format=torch.contiguous_format)
        heads = []
        for columns in self._heads(mixed.shape[-1]):
            q, k, v = (projected[name][..., columns] for name in ("query", "key", "value"))
            weights = torch.softmax(torch.baddbmm(causal, q, k.mT, alpha=q.shape[-1] ** -0.5), -1)
            mixed[..., columns] = torch.bmm(weights, v)
            heads.append((q, k, v, weights))
        return mixed, heads

    def _backward(self, number: int, tape: _Tape, g: Tensor, own: Tensor, gradients: Gradients, shape: Shape) -> Tensor:
        attention, output, up, down = self._shared.blocks[number]
        to_wide = self._unproject(down, tape.inner, g, own, gradients, shape)
        torch.ops.aten.threshold_backward.grad_input(to_wide, tape.wide, 0.0, grad_input=to_wide)
        to_normal = self._unproject(up, tape.inner, to_wide, own, gradients, shape)
        g = _norm_backward(to_normal, tape.feedforward_norm).add_(g)
        to_mixed = self._unproject(output, tape.inner, g, own, gradients, shape).unflatten(0, shape)
        lowest = tape.attention_norm is None  # the lowest adapted block: nothing below it is trained
        to_first = self._buffer("to_first", len(g), len(attention.weight)).unflatten(0, shape)
        to = {name: to_first[..., columns] for name, columns in attention.outputs.items()}
        for columns, (q, k, v, weights) in zip(self._heads(to_mixed.shape[-1]), tape.heads, strict=True):
            mine = to_mixed[..., columns]
            to["value"][..., columns] = torch.bmm(weights.mT, mine)
            to_weights = torch.bmm(mine, v.mT)
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype).mul_(q.shape[-1] ** -0.5)
            to["query"][..., columns] = torch.bmm(to_scores, k)
            if not lowest or "key" in attention.own:
                to["key"][..., columns] = torch.bmm(to_scores.mT, q)
        for name, columns in attention.inner.items():
            to_first[..., columns] = self._unadapt(attention, name, tape.inner, to[name], own, gradients)
        if tape.attention_norm is None:
            return g
        return _norm_backward(to_first.flatten(0, 1) @ attention.weight, tape.attention_norm).add_(g)

    def _project(
        self,
        linear: _Linear,
        x: Tensor,
        own: Tensor,
        inner: dict[str, Tensor],
        shape: Shape,
        *,
        buffer: str | None = None,
    ) -> Tensor:
        """Return a single layer's output (positions, out); keep its x Aᵀ."""
        (name,) = linear.outputs
        plain = slice(linear.num_outputs)
        out = None if buffer is None else self._buffer(buffer, len(x), linear.num_outputs)
        y = torch.addmm(linear.bias[plain], x, linear.weight[plain].T, out=out)
        if name in linear.own:
            a = linear.inner[name]
            inner[name] = torch.addmm(linear.bias[a], x, linear.weight[a].T).unflatten(0, shape)
            y.unflatten(0, shape).baddbmm_(inner[name], self._b(linear, name, own).mT)
        return y

    def _unproject(
        self,
        linear: _Linear,
        inner: dict[str, Tensor],
        g: Tensor,
        own: Tensor,
        gradients: Gradients,
        shape: Shape,
    ) -> Tensor:
        """Return the gradient of a single layer's input (positions, in), from that of its output."""
        (name,) = linear.outputs
        out = self._buffer(f"to_{name}", len(g), linear.weight.shape[1])
        if name not in linear.own:
            return torch.mm(g, linear.weight, out=out)
        to_inner = self._unadapt(linear, name, inner, g.unflatten(0, shape), own, gradients).flatten(0, 1)
        if g.shape[1] > out.shape[1]:  # widening the narrower of the two tables is cheaper
            plain = linear.weight[: linear.num_outputs]
            return torch.mm(g, plain, out=out).addmm_(to_inner, linear.weight[linear.inner[name]])
        return torch.mm(torch.cat([g, to_inner], 1), linear.weight, out=out)

    def _unadapt(
        self, linear: _Linear, name: str, inner: dict[str, Tensor], g: Tensor, own: Tensor, gradients: Gradients
    ) -> Tensor:
        """Keep the gradient of a layer's B; return that of its x Aᵀ, (windows, length, r)."""
        part = linear.own[name]
        to_b = self._buffer(f"to_b{part.start}", len(g), part.stop - part.start)
        torch.bmm(g.mT, inner[name], out=to_b.unflatten(1, (-1, self._shared.rank)))
        gradients.append((part, to_b))
        return torch.bmm(g, self._b(linear, name, own))

    def _b(self, linear: _Linear, name: str, own: Tensor) -> Tensor:
        b: Tensor = own[:, linear.own[name]].unflatten(1, (-1, self._shared.rank))  # (windows, out, r)
        return b

    def _heads(self, dim: int) -> list[slice]:
        size = dim // self._shared.model.config.num_heads
        return [slice(at, at + size) for at in range(0, dim, size)]

    def _buffer(self, name: str, rows: int, columns: int) -> Tensor:
        """Return (rows, columns) of memory that is kept under a name."""
        kept = self._buffers.get(name)
        if kept is None or kept.numel() < rows * columns:
            kept = torch.empty(rows * columns, dtype=self._shared.dtype, device=self._shared.items.device)
            self._buffers[name] = kept
        return kept[: rows * columns].view(rows, columns)


def _normalise(x: Tensor) -> tuple[Tensor, _Normal]:
    normal, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
    return normal, _Normal(x, mean, rstd)


def _norm_backward(g: Tensor, normal: _Normal, gain: Tensor | None = None) -> Tensor:
    gradients = torch.ops.aten.native_layer_norm_backward(
        g, normal.x, normal.x.shape[-1:], normal.mean, normal.rstd, gain, None, [True, False, False]
    )
    to_x: Tensor = gradients[0]
    return to_x
