"""The cohort step beside the machine's own matmuls.

The matrix products of one step are recorded with their shapes as the engine calls them. Alone, on tensors of these
shapes, they take some time; the whole step takes more. The quotient is the share of the machine's matmul FLOP/s, at the
step's own shapes, that the step achieves. Both are timed in turns, on one thread. 57 % on a core of Sapphire
Rapids with torch 2.13, 2026-11-22.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ownlet.shared.noise import SimulatedNoise
from ownlet.shared.windows import WindowStack, cut_windows, stack_windows
from ownlet.simulations.benchmarks.turns import take_turns
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload
from ownlet.simulations.cohort import CohortEngine

__all__ = ["MatmulLimit", "measure_limit"]

_DEFAULT = Workload()
_aten = torch.ops.aten
_FACTORS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.addmm_: 1, _aten.baddbmm: 1, _aten.baddbmm_: 1}
"""Products, and where their first factor stands among the arguments."""


@dataclass(frozen=True, kw_only=True)
class MatmulLimit:
    """What the measurement gives.

    Args:
        flops: of all matrix products in one chunk's training.
        step_flops_per_second: achieved by the engine.
        matmul_flops_per_second: of the products alone.
        fraction: the first over the second.
    """

    flops: int
    step_flops_per_second: float
    matmul_flops_per_second: float
    fraction: float


class _Recorder(TorchDispatchMode):
    """Notes the shapes of the products that run under it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a product, run anything."""
        at = _FACTORS.get(function.overloadpacket)
        if at is not None:
            self.shapes.append((tuple(args[at].shape), tuple(args[at + 1].shape)))
        return function(*args, **(kwargs or {}))


def measure_limit(users: int = 32, *, repeats: int = 15, workload: Workload = _DEFAULT) -> MatmulLimit:
    """Time one chunk of users, and its products alone.

    Args:
        users: in the chunk; by default about what the engine takes for the default workload.
        repeats: of each; medians are compared.
        workload: the users and the base.
    """
    model, spec, vector = workload.base()
    engine = CohortEngine(model, spec, threads=1, chunk_bytes=2**40)
    stack = stack_windows([cut_windows(history, workload.windows) for history in workload.histories(users)])
    start = torch.from_numpy(vector)
    gradients = engine._gradients(start).get()

    def step() -> None:
        engine._train_chunk(gradients, start, stack, DP_PLAN, _noises(stack))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step()
        with _Recorder() as recorder:
            step()
        pairs = [(torch.randn(first), torch.randn(second)) for first, second in recorder.shapes]
        calls = {"step": step, "products": lambda: _multiply(pairs)}
        seconds = take_turns(calls, repeats=repeats, warmup=2)
    finally:
        torch.set_num_threads(threads)
    flops = sum(2 * int(np.prod(first)) * second[-1] for first, second in recorder.shapes)
    return MatmulLimit(
        flops=flops,
        step_flops_per_second=flops / seconds["step"],
        matmul_flops_per_second=flops / seconds["products"],
        fraction=seconds["products"] / seconds["step"],
    )


def _noises(stack: WindowStack) -> list[SimulatedNoise]:
    return [SimulatedNoise(0, 0, user) for user in range(len(stack))]


def _multiply(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for first, second in pairs:
        first @ second
