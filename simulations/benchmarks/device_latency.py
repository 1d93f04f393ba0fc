"""How fast is the device program beside eager PyTorch? Both run the same inputs, taking turns, on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ownlet.export.programs import FrozenBase, ProgramShape, build_methods
from ownlet.shared.adapter import AdapterSpec, initial_adapter
from ownlet.shared.manifest import PROGRAM_FILE, read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.program import Program
from ownlet.simulations.benchmarks.turns import take_turns

__all__ = ["measure"]


def measure(
    bundle: Path, model: SASRec, spec: AdapterSpec, *, repeats: int = 30, warmup: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Time ``recommend`` and ``step`` of a bundle and of eager PyTorch.

    Args:
        bundle: what ``export.bundle.write_bundle`` wrote.
        model: the base that it was written from.
        spec: its adapter's spec.
        repeats: timed calls per method; the median is returned.
        warmup: calls before them that are not timed.
        seed: of the random inputs.

    Returns:
        ``{"program_bytes", "recommend": {"pte_ms", "eager_ms"}, "step": {"pte_ms", "eager_ms"}}``, milliseconds.
    """
    manifest = read_manifest(bundle)
    program = Program(bundle / PROGRAM_FILE)
    shape = ProgramShape(windows=manifest.windows, batch=manifest.batch, top_k=manifest.top_k)
    functions = {method.name: method.function for method in build_methods(FrozenBase.of(model), spec, shape)}
    inputs = _inputs(spec, manifest.num_items, manifest.max_length, shape, seed)
    result: dict[str, Any] = {"program_bytes": (bundle / PROGRAM_FILE).stat().st_size}
    threads = _set_threads(1)
    try:
        for name, arguments in inputs.items():
            tensors = tuple(torch.from_numpy(np.asarray(argument)) for argument in arguments)
            with torch.no_grad():
                pte, eager = take_turns(
                    lambda name=name, arguments=arguments: program.run(name, *arguments),  # type: ignore[misc]
                    lambda name=name, tensors=tensors: functions[name](*tensors),  # type: ignore[misc]
                    repeats=repeats,
                    warmup=warmup,
                )
            result[name] = {"pte_ms": pte * 1e3, "eager_ms": eager * 1e3}
    finally:
        _set_threads(threads)
    return result


def _inputs(
    spec: AdapterSpec, num_items: int, max_length: int, shape: ProgramShape, seed: int
) -> dict[str, tuple[Any, ...]]:
    rng = np.random.default_rng(seed)
    vector = initial_adapter(spec, seed) + rng.normal(0, 0.01, spec.size).astype(np.float32)
    seen = np.zeros(num_items + 1, np.bool_)
    history = rng.integers(1, num_items + 1, (1, max_length))
    seen[history] = True
    rows = (shape.batch, shape.windows.row_length)
    windows = (rng.integers(1, num_items + 1, rows), rng.integers(1, num_items + 1, rows), np.ones(rows, np.float32))
    noise = rng.normal(0, 0.01, spec.num_trainable).astype(np.float32)
    return {
        "recommend": (vector, history, np.array([max_length]), seen),
        "step": (vector, *windows, noise, np.float32(1.0), np.float32(0.1)),
    }


def _set_threads(count: int) -> int:
    """Set the threads of torch and of the runtime's pool; return what torch had."""
    from executorch.extension.pybindings._portable_lib import _unsafe_reset_threadpool

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    _unsafe_reset_threadpool(count)
    return before
