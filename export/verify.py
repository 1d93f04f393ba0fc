"""Checks that a written program computes what eager PyTorch computes.

Every method is run on random inputs, and the shared code that knows nothing of device programs on the same ones;
windows without a valid position, an empty history and histories of one event are among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ownlet.export.programs import Method
from ownlet.shared.adapter import AdapterSpec, initial_adapter
from ownlet.shared.context import num_context_rows
from ownlet.shared.errors import BundleError
from ownlet.shared.model import SASRec
from ownlet.shared.program import Program
from ownlet.shared.recommender import Recommender

__all__ = ["ABSOLUTE_TOLERANCE", "RELATIVE_TOLERANCE", "random_arguments", "verify_program"]

RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 2e-5


def verify_program(
    path: Path, methods: Sequence[Method], base: Recommender, spec: AdapterSpec, *, seed: int = 0, trials: int = 4
) -> None:
    """Load a program and compare every method with its reference.

    A value agrees within ``RELATIVE_TOLERANCE`` of itself plus ``ABSOLUTE_TOLERANCE`` of its result's largest number.

    Args:
        path: the ``.pte`` file.
        methods: what it was lowered from.
        base: the base that they close over.
        spec: the adapter's spec.
        seed: of the random inputs.
        trials: how many inputs per method.

    Raises:
        BundleError: a method is missing or disagrees; the message names method, result and difference.
    """
    program = Program(path)
    generator = torch.Generator().manual_seed(seed)
    for method in methods:
        for trial in range(trials):
            arguments = random_arguments(method, base, spec, generator, trial)
            with torch.no_grad():
                expected = method.reference(*arguments)
            results = program.run(method.name, *(argument.numpy() for argument in arguments))
            for name, want, got in zip(method.results, expected, results, strict=True):
                _compare(method, name, torch.from_numpy(got), want.detach())


def _compare(method: Method, name: str, got: Tensor, want: Tensor) -> None:
    scale = float(want.abs().max())
    agrees = got.shape == want.shape and torch.allclose(
        got, want, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE * max(1.0, scale)
    )
    if not agrees:
        worst = float((got - want).abs().max()) if got.shape == want.shape else float("nan")
        off = f"a difference of {worst:.3g} in {name} of scale {scale:.3g}"
        raise BundleError(f"method {method.name} must agree with eager, got {off}")


def random_arguments(
    method: Method, base: Recommender, spec: AdapterSpec, generator: torch.Generator, trial: int
) -> tuple[Tensor, ...]:
    """Draw arguments; trial 0 is the emptiest one, trial 3 a full one."""

    def items(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(1, base.num_items + 1, shape, generator=generator)

    values: dict[str, Tensor] = {}
    for name, example in zip(method.arguments, method.example, strict=True):
        shape = tuple(example.shape)
        if name == "vector":
            start = torch.from_numpy(initial_adapter(spec, trial))
            values[name] = start + 0.05 * torch.randn(shape, generator=generator)
        elif name == "length":
            longest = base.max_length
            events = (0, 1, 1 + longest // 2, longest)[trial % 4]
            values[name] = torch.tensor([max(1, events)])  # an empty history is one padding event
            values["history"] = torch.where(torch.arange(longest) < events, items((1, longest)), 0)
        elif name in ("history", "target", "candidates"):
            values[name] = items(shape)
        elif name == "context":
            assert isinstance(base, SASRec)  # no other base's program has the argument
            known = num_context_rows(base.config.context) if trial else 1  # trial 0 knows nothing
            values[name] = torch.randint(0, known, shape, generator=generator)
        elif name == "valid":
            values[name] = (torch.rand(shape, generator=generator) < trial / 3).float()
            if trial < 3:
                values[name][0] = 0.0  # a window without a valid position
        elif name == "negatives":
            values[name] = items(shape)
            values[name][:, 0] = values["target"][:, -1]  # a candidate that is a target takes no part there
        elif name == "kept":
            values[name] = (values["negatives"].unsqueeze(1) != values["target"].unsqueeze(2)).float()
        elif name == "correction":
            values[name] = torch.rand(shape, generator=generator)
        elif name == "positive_weight":
            values[name] = torch.tensor((trial + 1) / 4)
        elif name == "noise":
            values[name] = 0.1 * torch.randn(shape, generator=generator)
        elif name == "clip":
            values[name] = torch.tensor(np.inf if trial == 1 else 0.1 * (trial + 1), dtype=torch.float32)
        else:
            values[name] = example
    return tuple(values[name] for name in method.arguments)
