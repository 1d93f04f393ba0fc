"""From pure functions to one ExecuTorch program.

``make_fx`` runs each method once and records every ATen call, those of ``autograd.grad`` inside the step included, so
what is exported is a plain forward graph and the device needs no autograd. ``decompose`` and ``simplify`` then bring
the graph into the form that XNNPACK takes whole.

Source: https://docs.pytorch.org/executorch/stable/using-executorch-export.html.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from ownlet.export.decompose import XNNPACK_DECOMPOSITIONS
from ownlet.export.programs import Method
from ownlet.export.simplify import simplify
from ownlet.shared.errors import require

if TYPE_CHECKING:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

__all__ = ["Backend", "lower", "trace"]

Backend = Literal["xnnpack", "portable"]


def trace(method: Method, backend: Backend) -> fx.GraphModule:
    """Record a method as a graph of ATen calls, simplified for the backend."""
    for_xnnpack = backend == "xnnpack"
    decompositions = XNNPACK_DECOMPOSITIONS if for_xnnpack else None
    graph_module = make_fx(method.function, decomposition_table=decompositions)(*method.example)
    simplify(graph_module, for_xnnpack=for_xnnpack)
    return graph_module


def lower(methods: Sequence[Method], backend: Backend = "xnnpack") -> bytes:
    """Lower all methods into one program that shares their constants.

    Args:
        methods: from ``programs.build_methods``.
        backend: ``xnnpack`` hands what it can to XNNPACK; ``portable`` uses ExecuTorch's own kernels only.

    Returns:
        The content of a ``.pte`` file.

    Raises:
        ConfigError: an unknown backend.
    """
    require(backend in ("xnnpack", "portable"), "backend must be xnnpack or portable", backend=backend)
    with warnings.catch_warnings():  # exporter and partitioner warn of their own deprecations, at import too
        warnings.simplefilter("ignore")
        for name in ("torchao", "torch.utils._pytree"):  # imported by the exporter; they miss GPU kernels
            logging.getLogger(name).setLevel(logging.ERROR)
        from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

        exported = {m.name: torch.export.export(trace(m, backend), m.example, strict=False) for m in methods}
        edge = to_edge_transform_and_lower(
            exported,
            partitioner={name: [_partitioner()] for name in exported} if backend == "xnnpack" else None,
            compile_config=EdgeCompileConfig(_check_ir_validity=False),  # aten.linear is not in the core set
        )
        program: bytes = edge.to_executorch().buffer
    return program


def _partitioner() -> XnnpackPartitioner:
    """Return a partitioner whose delegate runs one graph pass, the one that makes linear layers, instead of seventeen.

    The other passes rewrite what our graphs do not hold (convolutions, batch norms, quantised values, clones), and each
    walks every node again. The switch is the delegate's own compile spec; ``verify`` compares the outcome with eager.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
    from executorch.exir.backend.compile_spec_schema import CompileSpec
    from executorch.exir.backend.partitioner import DelegationSpec

    partitioner = XnnpackPartitioner()
    partitioner.delegation_spec = DelegationSpec(XnnpackBackend.__name__, [CompileSpec("dqlinear_partitioner", b"")])
    return partitioner
