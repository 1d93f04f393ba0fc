"""Rewrites of a graph with a traced backward pass that change no number's meaning and make the program smaller.

Autograd leaves a trail of reshapes, transposes and expanded copies, each of which would be a kernel call on the device
and break a delegated piece in two. After ``simplify`` has folded constants and dropped copies:

* chains of reshapes and of permutations become one or none;
* a batched product with a matrix that was expanded over the batch becomes one plain product;
* a product with a constant matrix becomes ``aten.linear``, whose weight XNNPACK packs once, when it loads the program;
* concatenations are nested, four at a time: XNNPACK takes at most five.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["rewrite"]

_aten = torch.ops.aten

_RESHAPES = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.squeeze_.dim,
}
_PERMUTATIONS = {_aten.transpose.int, _aten.t.default, _aten.permute.default}


def rewrite(graph_module: fx.GraphModule) -> None:
    """Apply the rewrites, in place, in one sweep over a graph that ``make_fx`` traced and ``simplify`` reduced."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = getattr(graph_module, node.target)
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype, device="meta")
    rules = (_merge_reshape, _merge_permutation, _drop_expansion, _plain_product, _linear, _batch_of_one, _nest)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        for rule in rules:
            replacement = rule(_Rewriter(graph_module, node), node)
            if replacement is not None:
                node.replace_all_uses_with(replacement)
                graph_module.graph.erase_node(node)  # by hand: an in-place squeeze would count as a side effect
                break
    graph_module.graph.eliminate_dead_code()
    used = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in [*graph_module._buffers, *graph_module._parameters]:
        if name not in used:
            delattr(graph_module, name)  # or the exporter would write it into the program
    graph_module.recompile()


class _Rewriter:
    """Inserts nodes, with their shapes, before the node that is being rewritten."""

    def __init__(self, graph_module: fx.GraphModule, before: fx.Node) -> None:
        self._module, self._before = graph_module, before

    def constant_of(self, node: object) -> Tensor | None:
        """Return the tensor behind a ``get_attr`` node, or None for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            value = getattr(self._module, str(node.target))
            return value.detach() if isinstance(value, Tensor) else None
        return None

    def transposed(self, node: fx.Node) -> fx.Node:
        """Insert the transpose of a constant matrix; that of the same constant once only."""
        name = f"{node.target}_transposed"
        if not hasattr(self._module, name):
            self._module.register_buffer(
                name, getattr(self._module, str(node.target)).detach().mT.clone(memory_format=torch.contiguous_format)
            )
        with self._module.graph.inserting_before(self._before):
            inserted = self._module.graph.get_attr(name)
        inserted.meta["val"] = getattr(self._module, name).to("meta")
        return inserted

    def call(self, target: Callable[..., Any], *arguments: Any) -> fx.Node:
        """Insert a call."""
        with self._module.graph.inserting_before(self._before):
            node = self._module.graph.call_function(target, arguments)
        node.meta["val"] = target(*fx.node.map_arg(arguments, lambda source: source.meta["val"]))
        return node

    def reshape(self, source: Any, shape: Sequence[int]) -> fx.Node:
        """Insert a reshape of what is behind the source's own reshapes, or nothing if it has that shape."""
        while source.target is _aten.reshape.default:
            source = source.args[0]
        return source if _shape(source) == tuple(shape) else self.call(_aten.reshape.default, source, list(shape))

    def permute(self, source: Any, order: Sequence[int]) -> fx.Node:
        """Insert a permutation, merged with the source's own."""
        if source.target is _aten.permute_copy.default:
            source, order = source.args[0], [source.args[1][axis] for axis in order]
        return source if list(order) == sorted(order) else self.call(_aten.permute_copy.default, source, list(order))


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _merge_reshape(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    return rewriter.reshape(node.args[0], _shape(node)) if node.target in _RESHAPES else None


def _merge_permutation(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Make every transpose a copying permutation, as it is on the device."""
    if node.target not in _PERMUTATIONS:
        return None
    source: Any = node.args[0]
    order = _order(node, len(_shape(source)))
    if order == [0, 2, 1] and _expanded(source) is not None:
        return rewriter.call(_aten.expand.default, rewriter.permute(_expanded(source), [1, 0]), list(_shape(node)))
    if order == [0, 2, 1] and source.target is _aten.bmm.default:  # (x y)^T = y^T x^T, and x^T may be there already
        x, y = (rewriter.permute(factor, order) for factor in source.args)
        return rewriter.call(_aten.bmm.default, y, x)
    return rewriter.permute(source, order)


def _order(node: fx.Node, dims: int) -> list[int]:
    if node.target is _aten.permute.default:
        axes: Any = node.args[1]
        return [axis % dims for axis in axes]
    order = list(range(dims))
    first, second = node.args[1:] if node.target is _aten.transpose.int else (0, 1)
    order[first], order[second] = order[second], order[first]  # type: ignore[index]
    return order


def _drop_expansion(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    source: Any = node.args[0] if node.args else None
    expands_nothing = node.target is _aten.expand.default and _shape(source) == _shape(node)
    return source if expands_nothing else None


def _expanded(node: Any) -> fx.Node | None:
    """Return the matrix behind its expansion over a batch, or None for anything else."""
    if node.target is _aten.expand.default and len(_shape(node)) == 3 and len(_shape(node.args[0])) == 2:
        return node.args[0]  # type: ignore[no-any-return]
    return None


def _plain_product(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    if node.target is not _aten.bmm.default:
        return None
    x: Any = node.args[0]
    matrix = _expanded(node.args[1])
    if matrix is None:
        return None
    batch, rows, inner = _shape(x)
    rows_of_all, single = rewriter.reshape(x, (1, batch * rows, inner)), rewriter.reshape(matrix, (1, *_shape(matrix)))
    return rewriter.reshape(rewriter.call(_aten.bmm.default, rows_of_all, single), _shape(node))


def _linear(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Turn ``mm(x, constant)`` and ``addmm(bias, x, constant)`` into ``linear(x, constant transposed, bias)``."""
    if node.target not in (_aten.mm.default, _aten.addmm.default) or node.kwargs:
        return None
    *bias, x, matrix = node.args
    is_constant = rewriter.constant_of(matrix) is not None and all(rewriter.constant_of(b) is not None for b in bias)
    if not is_constant or any(len(_shape(b)) != 1 for b in bias):
        return None
    inner: Any = x.args[0] if x.target is _aten.reshape.default else x  # type: ignore[union-attr]
    if _shape(inner)[-1:] != _shape(x)[-1:]:
        inner = x
    linear = rewriter.call(_aten.linear.default, inner, rewriter.transposed(matrix), *bias)  # type: ignore[arg-type]
    return rewriter.reshape(linear, _shape(node))  # (batch, length, ...) stays as it is


def _batch_of_one(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Turn ``mm`` of two computed matrices into a batched product of one: XNNPACK's ``mm`` wants a constant."""
    if node.target is not _aten.mm.default:
        return None
    x, y = (rewriter.reshape(factor, (1, *_shape(factor))) for factor in node.args)
    return rewriter.reshape(rewriter.call(_aten.bmm.default, x, y), _shape(node))


def _nest(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    if node.target is not _aten.cat.default or len(node.args[0]) <= 4:  # type: ignore[arg-type]
        return None
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    axis = node.args[1:]
    while len(parts) > 1:
        groups = [parts[at : at + 4] for at in range(0, len(parts), 4)]
        parts = [rewriter.call(_aten.cat.default, group, *axis) if len(group) > 1 else group[0] for group in groups]
    return parts[0]
