"""From pure functions to one ExecuTorch program.

``make_fx`` runs each method once and records every ATen call, so constants are known and can be folded before the
exporter sees the graph.

Source: https://docs.pytorch.org/executorch/stable/using-executorch-export.html.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from ownlet.export.programs import Method
from ownlet.export.simplify import simplify
from ownlet.shared.errors import require

__all__ = ["Backend", "lower", "trace"]

Backend = Literal["xnnpack", "portable"]


def trace(method: Method) -> fx.GraphModule:
    """Record a method as a graph of ATen calls; ``linear`` and ``softmax`` stay whole."""
    with torch.no_grad():
        graph_module = make_fx(method.function, pre_dispatch=True)(*method.example)
    simplify(graph_module)
    return graph_module


def lower(
    methods: Sequence[Method],
    backend: Backend = "xnnpack",
    *,
    capacity: int,
    trace: Callable[[Method], fx.GraphModule] = trace,
) -> bytes:
    """Lower all methods into one program that shares their constants.

    Args:
        methods: from ``programs.build_methods``.
        backend: ``xnnpack`` hands what it can to XNNPACK; ``portable`` uses ExecuTorch's own kernels only.
        capacity: the most columns that the argument ``items`` may have.
        trace: records a method; ``traced.trace_whole`` for methods with autograd inside.

    Returns:
        The content of a ``.pte`` file.

    Raises:
        ConfigError: an unknown backend.
    """
    require(backend in ("xnnpack", "portable"), "backend must be xnnpack or portable", backend=backend)
    with (
        _without_collection(),
        warnings.catch_warnings(),
    ):  # exporter and partitioner warn of their own deprecations, at import too
        warnings.simplefilter("ignore")
        for name in ("torchao", "torch.utils._pytree"):  # imported by the exporter; they miss GPU kernels
            logging.getLogger(name).setLevel(logging.ERROR)
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
        from executorch.exir.passes import MemoryPlanningPass

        from ownlet.export.delegate import delegate

        exported = {method.name: _export(method, trace(method), capacity) for method in methods}
        # linear is not in the core set; as a whole it is what XNNPACK takes
        config = EdgeCompileConfig(
            preserve_ops=[torch.ops.aten.linear.default], _check_ir_validity=False, _skip_dim_order=True
        )
        edge = to_edge(exported, compile_config=config)
        if backend == "xnnpack":
            edge = edge.to_backend(delegate())
        in_place = MemoryPlanningPass(alloc_graph_input=False)  # inputs are read where they lie, the item table too
        program: bytes = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=in_place)).buffer
    return program


def _export(method: Method, graph: fx.GraphModule, capacity: int) -> torch.export.ExportedProgram:
    """Export a method for item tables of any width up to the capacity."""
    columns = torch.export.Dim("columns", min=2, max=capacity)
    shapes = tuple({1: columns} if name == "items" else None for name in method.arguments)
    return torch.export.export(graph, method.example, dynamic_shapes=shapes, strict=False)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector still: it would walk millions of short-lived objects, for a sixth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
