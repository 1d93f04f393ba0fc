"""What a traced graph can lose without losing a number.

``make_fx`` records everything that Python did, so a graph computes its own constants (masks, transposed weights) and
holds copies that only matter where memory is shared. Here constants are computed once and such copies are dropped: each
would be a call on the device, and break a delegated piece in two.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

__all__ = ["simplify"]

_aten = torch.ops.aten
_COPIES = {_aten.detach.default, _aten.clone.default, _aten.alias.default, _aten.lift_fresh_copy.default}


def simplify(graph_module: fx.GraphModule) -> None:
    """Fold constants and drop copies, in place, in a graph that ``make_fx`` traced."""
    constants: dict[tuple[object, ...], str] = {}
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
        elif all(source.op == "get_attr" for source in node.all_input_nodes):
            with graph_module.graph.inserting_before(node):
                node.replace_all_uses_with(graph_module.graph.get_attr(_fold(graph_module, node, constants)))
    graph_module.graph.eliminate_dead_code()
    used = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    for name in [*graph_module._buffers, *graph_module._parameters]:
        if name not in used:
            delattr(graph_module, name)  # or the exporter would write it into the program
    graph_module.recompile()


def _fold(graph_module: fx.GraphModule, node: fx.Node, constants: dict[tuple[object, ...], str]) -> str:
    """Compute a node whose inputs are constants; return the name of the buffer that holds its value."""
    arguments, options = fx.node.map_arg(
        (node.args, node.kwargs), lambda source: getattr(graph_module, str(source.target)).detach()
    )
    value: Tensor = node.target(*arguments, **options).contiguous()  # type: ignore[operator]
    key = (value.dtype, value.shape, value.numpy().tobytes())
    if key not in constants:  # layers of equal width share their rows of ones, all of them their masks
        constants[key] = f"constant_{len(constants)}"
        graph_module.register_buffer(constants[key], value.clone())
    return constants[key]
