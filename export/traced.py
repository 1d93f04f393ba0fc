"""The device program of any base: ``shared.step.dp_sgd_step`` itself, recorded with its backward pass.

SASRec has a step that was written by hand for XNNPACK and takes its item table as an argument (``export.programs``).
For a base of which nothing is known but that it scores, ``make_fx`` runs the shared step once and records every ATen
call, those of ``autograd.grad`` included: what is exported is a plain forward graph and the device needs no autograd.
Everything that the base holds, its item table too, becomes a constant of the program.

The trace is taken at fixed shapes and follows one path through Python: a base must not choose its path by the numbers
in a history. ``verify_program`` compares with eager on other histories than the recorded one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from ownlet.export.decompose import decompositions
from ownlet.export.programs import Method, ProgramShape
from ownlet.export.rewrite import rewrite
from ownlet.export.simplify import simplify
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.errors import BundleError, require
from ownlet.shared.lora import applied
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.recommender import Recommender, module_of
from ownlet.shared.step import dp_sgd_step

__all__ = ["build_traced_methods", "trace_whole"]


def build_traced_methods(model: Recommender, spec: AdapterSpec, shape: ProgramShape) -> tuple[Method, ...]:
    """Return the methods of a device program that holds everything but the adapter.

    * ``score(vector (P,), history (1, max_length), length (1,)) -> scores (1, num_items)``
    * ``step_B(vector, history (B, row_length), target, valid, noise (num_trainable,), clip (), rate ()) -> vector,
      norms (B,)`` for every B of ``shape.batches``.
    * ``loss(vector, history, target, valid) -> losses (B,)`` for the smallest B.

    They are those of ``programs.build_methods`` without the argument ``items``.

    Args:
        model: any base, prepared with ``attach``; copied.
        spec: the adapter's spec.
        shape: the static sizes; the rows must fit the base's ``max_length``.

    Raises:
        ConfigError: rows longer than the base reads.
    """
    max_length, row_length = model.max_length, shape.windows.row_length
    require(row_length <= max_length, f"row_length must be at most max_length {max_length}", row_length=row_length)
    frozen = copy.deepcopy(model)
    module_of(frozen).requires_grad_(False).eval()
    steps = (_step(frozen, spec, batch, row_length) for batch in shape.batches)
    return (_score(frozen, spec), *steps, _loss(frozen, spec, shape.batches[0], row_length))


def trace_whole(method: Method) -> fx.GraphModule:
    """Record a method and its backward pass as a graph of core ATen calls, brought into the form XNNPACK takes.

    Raises:
        BundleError: the base does what cannot be recorded, such as reading a number out of a tensor.
    """
    try:
        graph_module = make_fx(method.function, decomposition_table=decompositions())(*method.example)
    except RuntimeError as error:
        raise BundleError(f"base must be traceable by make_fx, got in method {method.name}: {error}") from error
    simplify(graph_module)
    rewrite(graph_module)
    return graph_module


def _score(model: Recommender, spec: AdapterSpec) -> Method:
    def function(vector: Tensor, history: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), applied(module_of(model), spec.split(vector)):
            return (model.score_last(history, length)[:, 1:],)

    row = (torch.ones(1, model.max_length, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    return Method(
        name="score",
        function=function,
        reference=function,
        arguments=("vector", "history", "length"),
        example=(torch.zeros(spec.size), *row),
        results=("scores",),
    )


def _step(model: Recommender, spec: AdapterSpec, batch: int, row_length: int) -> Method:
    def function(vector: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        stepped, _, norms = dp_sgd_step(model, spec, vector, *rest)
        return stepped, norms

    numbers = (torch.zeros(spec.num_trainable), torch.tensor(1.0), torch.tensor(0.1))
    return Method(
        name=f"step_{batch}",
        function=function,
        reference=function,
        arguments=("vector", "history", "target", "valid", "noise", "clip", "rate"),
        example=(torch.zeros(spec.size), *_windows(batch, row_length), *numbers),
        results=("vector", "norms"),
    )


def _loss(model: Recommender, spec: AdapterSpec, batch: int, row_length: int) -> Method:
    def function(vector: Tensor, history: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad(), applied(module_of(model), spec.split(vector)):
            return (softmax_loss(model(history), target, valid),)

    return Method(
        name="loss",
        function=function,
        reference=function,
        arguments=("vector", "history", "target", "valid"),
        example=(torch.zeros(spec.size), *_windows(batch, row_length)),
        results=("losses",),
    )


def _windows(batch: int, row_length: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.ones(batch, row_length, dtype=torch.int64)
    return rows, rows.clone(), torch.ones(batch, row_length)
