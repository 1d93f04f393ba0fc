"""Checks that a written program computes what eager PyTorch computes.

Every method is run on random inputs in both, windows without a valid position and histories of one event among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ownlet.export.programs import FrozenBase, Method
from ownlet.shared.adapter import AdapterSpec, initial_adapter
from ownlet.shared.errors import BundleError
from ownlet.shared.program import Program

__all__ = ["ABSOLUTE_TOLERANCE", "RELATIVE_TOLERANCE", "verify_program"]

RELATIVE_TOLERANCE = 1e-4
ABSOLUTE_TOLERANCE = 2e-5


def verify_program(
    path: Path, methods: Sequence[Method], base: FrozenBase, spec: AdapterSpec, *, seed: int = 0, trials: int = 4
) -> None:
    """Load a program and compare every method with eager.

    A value agrees within ``RELATIVE_TOLERANCE`` of itself plus ``ABSOLUTE_TOLERANCE`` of its result's largest number.
    Items of ``recommend`` may differ from eager's only where their scores agree so.

    Args:
        path: the ``.pte`` file.
        methods: the functions that it was lowered from.
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
            arguments = _random_arguments(method, base, spec, generator, trial)
            expected = method.function(*arguments)
            results = [torch.from_numpy(r) for r in program.run(method.name, *(a.numpy() for a in arguments))]
            if method.name == "recommend":
                (scores,) = next(m for m in methods if m.name == "score").function(*arguments[:3])
                finite = torch.isfinite(results[1])
                _compare(method, "items", results[1][finite], scores[results[0]][finite])
                expected, results = expected[1:], results[1:]
            for name, want, got in zip(method.results[-len(expected) :], expected, results, strict=True):
                _compare(method, name, got, want)


def _compare(method: Method, name: str, got: Tensor, want: Tensor) -> None:
    finite = torch.isfinite(want)
    scale = float(want[finite].abs().max()) if finite.any() else 0.0
    agrees = got.shape == want.shape and torch.allclose(
        got, want, rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE * max(1.0, scale)
    )
    if not agrees:
        worst = float((got - want)[finite].abs().max()) if got.shape == want.shape and finite.any() else float("nan")
        off = f"a difference of {worst:.3g} in {name} of scale {scale:.3g}"
        raise BundleError(f"method {method.name} must agree with eager, got {off}")


def _random_arguments(
    method: Method, base: FrozenBase, spec: AdapterSpec, generator: torch.Generator, trial: int
) -> tuple[Tensor, ...]:
    """Draw arguments; the first trial is the emptiest one, the last a full one."""

    def items(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(1, base.num_items + 1, shape, generator=generator)

    values: dict[str, Tensor] = {}
    for name, example in zip(method.arguments, method.example, strict=True):
        shape = tuple(example.shape)
        if name == "vector":
            start = torch.from_numpy(initial_adapter(spec, trial))
            values[name] = start + 0.05 * torch.randn(shape, generator=generator)
        elif name == "length":
            longest = base.config.max_length
            values[name] = torch.tensor([1 if trial == 0 else longest if trial == 3 else 1 + longest // 2])
            values["history"] = torch.where(torch.arange(longest) < values[name], items((1, longest)), 0)
        elif name in ("history", "target"):
            values[name] = items(shape)
        elif name == "valid":
            values[name] = (torch.rand(shape, generator=generator) < trial / 3).float()
            values[name][0] = 0.0  # always one window without a valid position
        elif name == "seen":
            values[name] = torch.rand(shape, generator=generator) < (0.95 if trial == 0 else 0.1)
        elif name == "noise":
            values[name] = 0.1 * torch.randn(shape, generator=generator)
        elif name == "clip":
            values[name] = torch.tensor(np.inf if trial == 1 else 0.1 * (trial + 1), dtype=torch.float32)
        else:
            values[name] = example
    return tuple(values[name] for name in method.arguments)
