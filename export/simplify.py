"""Rewrites of a traced graph that change no number's meaning and make the device program smaller and faster.

Autograd leaves a trail of detaches, clones, reshapes and expanded copies, each of which would be a kernel call on the
device and break a delegated subgraph in two. The rewrites:

* what depends on constants alone is computed now (masks, transposed weights);
* copies and reshapes that do nothing are dropped, chains of reshapes and of transposes become one or none;
* a batched product with a matrix that was expanded over the batch becomes one plain product;
* a product with a constant matrix becomes ``aten.linear``, whose weight XNNPACK packs once, when it loads the program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["simplify"]

_aten = torch.ops.aten

_COPIES = {_aten.detach.default, _aten.clone.default, _aten.alias.default, _aten.lift_fresh_copy.default}
_RESHAPES = {
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dim,
    _aten.squeeze_.dim,
}


def simplify(graph_module: fx.GraphModule, *, for_xnnpack: bool) -> None:
    """Apply the rewrites, in place, in one sweep over a graph that ``make_fx`` traced.

    Args:
        graph_module: the graph.
        for_xnnpack: also write products in the forms that XNNPACK takes; the portable kernels like plain ones better.
    """
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = getattr(graph_module, node.target)
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype, device="meta")
    rewrites = [_fold_constant, _drop_copy, _merge_reshape, _merge_transpose, _plain_product]
    rewrites += [_linear, _batched_product, _nested_concatenation] if for_xnnpack else []
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
            continue
        for rewrite in rewrites:
            graph_module.graph.inserting_before(node)
            replacement = rewrite(_Rewriter(graph_module, node), node)
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

    def constant(self, value: Tensor) -> fx.Node:
        """Insert a constant."""
        name = f"constant_{sum(1 for _ in self._module.buffers())}"
        self._module.register_buffer(name, value.detach().clone().contiguous())
        with self._module.graph.inserting_before(self._before):
            node = self._module.graph.get_attr(name)
        node.meta["val"] = value.to("meta")
        return node

    def call(self, target: Callable[..., Any], *arguments: Any) -> fx.Node:
        """Insert a call."""
        with self._module.graph.inserting_before(self._before):
            node = self._module.graph.call_function(target, arguments)
        node.meta["val"] = target(*fx.node.map_arg(arguments, lambda source: source.meta["val"]))
        return node

    def view(self, source: Any, shape: Sequence[int]) -> fx.Node:
        """Insert a reshape of what is behind the source's own reshapes, or nothing if it has that shape."""
        while source.target is _aten.view.default:
            source = source.args[0]
        return source if _shape(source) == tuple(shape) else self.call(_aten.view.default, source, list(shape))

    def permute(self, source: Any, order: Sequence[int]) -> fx.Node:
        """Insert a permutation, merged with the source's own."""
        if source.target is _aten.permute_copy.default:
            source, order = source.args[0], [source.args[1][axis] for axis in order]
        return source if list(order) == sorted(order) else self.call(_aten.permute_copy.default, source, list(order))


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _fold_constant(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    inputs = {source: rewriter.constant_of(source) for source in node.all_input_nodes}
    if any(value is None for value in inputs.values()):
        return None
    arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda source: inputs[source])
    return rewriter.constant(node.target(*arguments, **options))  # type: ignore[operator]


def _drop_copy(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    expands_nothing = node.target is _aten.expand.default and _shape(source) == _shape(node)  # type: ignore[arg-type]
    return source if node.target in _COPIES or expands_nothing else None  # type: ignore[return-value]


def _merge_reshape(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    if node.target not in _RESHAPES:
        return None
    source: Any = node.args[0]
    return rewriter.view(source, _shape(node))


def _merge_transpose(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Make every transpose a copying permutation, as it is on the device, so that clones behind it can be dropped."""
    if node.target not in (_aten.transpose.int, _aten.t.default):
        return None
    source: Any = node.args[0]
    order = list(range(len(_shape(source))))
    first, second = node.args[1:] if node.target is _aten.transpose.int else (0, 1)
    order[first], order[second] = order[second], order[first]  # type: ignore[index]
    if order == [0, 2, 1] and _expanded(source) is not None:
        return rewriter.call(_aten.expand.default, rewriter.permute(_expanded(source), [1, 0]), list(_shape(node)))
    if order == [0, 2, 1] and source.target is _aten.bmm.default:  # (x y)^T = y^T x^T, and x^T may be there already
        x, y = (rewriter.permute(factor, order) for factor in source.args)
        return rewriter.call(_aten.bmm.default, y, x)
    return rewriter.permute(source, order)


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
    rows_of_all, single = rewriter.view(x, (1, batch * rows, inner)), rewriter.view(matrix, (1, *_shape(matrix)))
    return rewriter.view(rewriter.call(_aten.bmm.default, rows_of_all, single), _shape(node))


def _linear(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Turn ``mm(x, constant)`` and ``addmm(bias, x, constant)`` into ``linear(x, constant transposed, bias)``."""
    if node.target not in (_aten.mm.default, _aten.addmm.default) or node.kwargs:
        return None
    *bias, x, matrix = node.args
    weight = rewriter.constant_of(matrix)
    if weight is None or (bias and rewriter.constant_of(bias[0]) is None):
        return None
    transposed = rewriter.constant(weight.mT)
    inner: Any = x.args[0] if x.target is _aten.view.default else x  # type: ignore[union-attr]
    if _shape(inner)[-1:] != _shape(x)[-1:]:  # type: ignore[arg-type]
        inner = x
    linear = rewriter.call(_aten.linear.default, inner, transposed, *bias)  # keeps (batch, length, ...) as it is
    return rewriter.view(linear, _shape(node))


def _nested_concatenation(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Concatenate four at a time: XNNPACK takes at most five at once."""
    if node.target is not _aten.cat.default or len(node.args[0]) <= 4:  # type: ignore[arg-type]
        return None
    parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]
    axis = node.args[1:]
    while len(parts) > 1:
        groups = [parts[at : at + 4] for at in range(0, len(parts), 4)]
        parts = [rewriter.call(_aten.cat.default, group, *axis) if len(group) > 1 else group[0] for group in groups]
    return parts[0]


def _batched_product(rewriter: _Rewriter, node: fx.Node) -> fx.Node | None:
    """Turn ``mm`` of two computed matrices into a batched product of one: XNNPACK's ``mm`` wants a constant."""
    if node.target is not _aten.mm.default:
        return None
    x, y = (rewriter.view(factor, (1, *_shape(factor))) for factor in node.args)  # type: ignore[arg-type]
    return rewriter.view(rewriter.call(_aten.bmm.default, x, y), _shape(node))
