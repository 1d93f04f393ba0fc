"""How fast and how large the device program is beside eager PyTorch and Opacus.

All run the same inputs, taking turns, on one thread, so a busy moment of the machine hits all of them. Peak memory is
that of processes of their own, each of which opens a bundle, recommends and takes one step. Bases have random weights:
no time depends on what they know.

    python -m ownlet.simulations.benchmarks.device_latency --out bench/device.json
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import AdapterConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.manifest import BASE_FILE, PROGRAM_FILE, Manifest, read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.windows import Windows, cut_windows
from ownlet.simulations.benchmarks.arguments import file_to_write
from ownlet.simulations.benchmarks.processes import last_json, run_command
from ownlet.simulations.benchmarks.turns import take_turns

__all__ = ["SIZES", "main", "measure", "measure_memory", "measure_sizes", "random_base"]

SIZES = (1_000, 3_000, 10_000, 100_000)
STEP_SIZE = 3_000  # the catalogue whose step is reported under "step"
NUM_WINDOWS = 4
PLAN = Plan(steps=1, learning_rate=0.1, expected_batch=4.0, clip_norm=1.0, noise_multiplier=0.1)


def measure(
    bundle: Path, model: SASRec, spec: AdapterSpec, *, repeats: int = 30, warmup: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Time recommendations and training steps of a bundle, of eager PyTorch and of Opacus.

    Args:
        bundle: what ``export.bundle.write_bundle`` wrote.
        model: the base that it was written from.
        spec: its adapter's spec.
        repeats: timed turns; the median is returned.
        warmup: turns before them that are not timed.
        seed: of the random inputs.

    Returns:
        Milliseconds under ``recommend`` (a history to a sorted list), ``step`` (one step of DP-SGD on
        ``NUM_WINDOWS`` windows, its noise drawn) and ``step_call`` (the same without drawing), and ``program_bytes``
        and ``bundle_bytes``.
    """
    from ownlet.device.executorch_engine import ExecutorchEngine
    from ownlet.device.opacus_engine import OpacusEngine

    manifest = read_manifest(bundle)
    files = [path.stat().st_size for path in bundle.iterdir() if path.name != BASE_FILE]  # an option, for Opacus only
    engine, opacus, eager = ExecutorchEngine.open(bundle), OpacusEngine(model, spec), _Eager(model, spec)
    vector, history, windows = _inputs(spec, manifest, seed)
    noise = np.zeros(spec.num_trainable, np.float32)
    rate = PLAN.learning_rate / PLAN.expected_batch
    with _one_thread():
        return {
            "program_bytes": (bundle / PROGRAM_FILE).stat().st_size,
            "bundle_bytes": sum(files),
            "recommend": _milliseconds(
                {
                    "pte_ms": lambda: engine.recommend(vector, history),
                    "eager_ms": lambda: eager.recommend(vector, history, manifest.top_k),
                },
                repeats,
                warmup,
            ),
            "step": _milliseconds(
                {
                    "pte_ms": lambda: engine.train(vector, [windows], PLAN, [AesNoise()]),
                    "eager_ms": lambda: eager.train(vector, windows, AesNoise()),
                    "opacus_ms": lambda: opacus.train(vector, [windows], PLAN, [AesNoise()]),
                },
                repeats,
                warmup,
            ),
            "step_call": _milliseconds(
                {
                    "pte_ms": lambda: engine._step(vector, windows, None, noise, PLAN.clip_norm, rate),
                    "eager_ms": lambda: eager.step(vector, windows, noise),
                },
                repeats,
                warmup,
            ),
        }


def measure_memory(bundle: Path, kind: str) -> dict[str, float]:
    """Return the peak memory, in MiB, of a new process that recommends and takes a step.

    Args:
        bundle: a bundle that holds its base, for the kinds that need it.
        kind: ``pte``, ``eager`` or ``opacus``; or ``imports_pte`` and so on, which only imports.
    """
    here = "ownlet.simulations.benchmarks.device_latency"
    return last_json(run_command([sys.executable, "-m", here, "--memory-of", str(bundle), "--kind", kind]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every size and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=file_to_write, default=Path("bench/device.json"))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="items, with commas between")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="pte", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.memory_of is not None:
        print(json.dumps(_peak(given.memory_of, given.kind)))
        return
    found = measure_sizes([int(size) for size in given.sizes.split(",")], repeats=given.repeats)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    print(given.out.read_text())


def measure_sizes(sizes: Sequence[int], *, repeats: int = 30, config: ModelConfig | None = None) -> dict[str, Any]:
    """Export a random base of every size and measure it.

    Returns:
        ``recommend``, ``program_bytes``, ``bundle_bytes``, ``peak_mib``, ``steps`` and ``step_calls`` by size;
        ``step`` and ``export_seconds`` of ``STEP_SIZE``, or of the first size where that is not among them.
    """
    from ownlet.export.bundle import write_bundle
    from ownlet.shared.interactions import Item

    found: dict[str, Any] = {name: {} for name in _BY_SIZE.values()} | {"peak_mib": {}}
    seconds: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            model, spec = random_base(size, config or ModelConfig())
            items = tuple(Item(number=number, id=str(number)) for number in range(1, size + 1))
            bundle, start = Path(folder) / str(size), time.perf_counter()
            vector = initial_adapter(spec, seed=0)
            write_bundle(bundle, model, spec, vector, version=0, items=items, windows=WindowConfig(), with_base=True)
            seconds[size] = time.perf_counter() - start
            for name, value in measure(bundle, model, spec, repeats=repeats).items():
                found[_BY_SIZE[name]][str(size)] = value
            found["peak_mib"][str(size)] = {
                kind: measure_memory(bundle, kind)["peak_mib"] for kind in ("imports_pte", "pte", "eager", "opacus")
            }
    chosen = STEP_SIZE if STEP_SIZE in sizes else sizes[0]
    return {**found, "step": found["steps"][str(chosen)], "export_seconds": seconds[chosen]}


_BY_SIZE = {
    "program_bytes": "program_bytes",
    "bundle_bytes": "bundle_bytes",
    "recommend": "recommend",
    "step": "steps",
    "step_call": "step_calls",
}


class _Eager:
    """The same work in eager PyTorch: a base with a baked item table and the shared step."""

    def __init__(self, model: SASRec, spec: AdapterSpec) -> None:
        from ownlet.export.frozen import FrozenBase

        self._base, self._spec = FrozenBase.of(model), spec

    def recommend(self, vector: Vector, history: np.ndarray[Any, Any], k: int) -> object:
        from ownlet.shared.lora import applied

        row, length = torch.from_numpy(history)[None], torch.tensor([len(history)])
        with torch.no_grad(), applied(self._base, self._spec.split(torch.from_numpy(vector))):
            scores = self._base.score_last(row, length)[0]
        scores[row[0]] = -torch.inf
        scores[0] = -torch.inf
        return scores.topk(k)

    def train(self, vector: Vector, windows: Windows, noise: AesNoise) -> object:
        noise.poisson_mask(len(windows), PLAN.sample_rate)
        return self.step(vector, windows, noise.gaussian(self._spec.num_trainable, PLAN.noise_std))

    def step(self, vector: Vector, windows: Windows, noise: Vector) -> object:
        from ownlet.shared.step import dp_sgd_step

        history, target, valid = map(torch.from_numpy, (windows.history, windows.target, windows.valid))
        clip, rate = torch.tensor(PLAN.clip_norm), torch.tensor(PLAN.learning_rate / PLAN.expected_batch)
        start, drawn = torch.from_numpy(vector), torch.from_numpy(noise)
        return dp_sgd_step(self._base, self._spec, start, history, target, valid, drawn, clip, rate)


def random_base(num_items: int, config: ModelConfig) -> tuple[SASRec, AdapterSpec]:
    """Return a base with random weights, the same ones every time, and the spec of the adapter attached to it."""
    from ownlet.shared.lora import attach_adapter

    with torch.random.fork_rng():
        torch.manual_seed(0)
        content = torch.cat([torch.zeros(1, 16), torch.randn(num_items, 16)])
        model = SASRec(config, content).eval()
        with torch.no_grad():
            model.item_embedding.weight[1:].normal_(std=0.1)
    return model, attach_adapter(model, AdapterConfig())


def _inputs(spec: AdapterSpec, manifest: Manifest, seed: int) -> tuple[Vector, np.ndarray[Any, Any], Windows]:
    rng = np.random.default_rng(seed)
    vector = initial_adapter(spec, seed) + rng.normal(0, 0.01, spec.size).astype(np.float32)
    history = rng.integers(1, manifest.num_items + 1, manifest.max_length)
    events = rng.integers(1, manifest.num_items + 1, NUM_WINDOWS * manifest.windows.window_length)
    return vector.astype(np.float32), history, cut_windows(events, manifest.windows)[:NUM_WINDOWS]


def _milliseconds(calls: dict[str, Callable[[], object]], repeats: int, warmup: int) -> dict[str, float]:
    return {name: 1e3 * seconds for name, seconds in take_turns(calls, repeats=repeats, warmup=warmup).items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold torch and the runtime's pool to one thread each."""
    from executorch.extension.pybindings._portable_lib import _unsafe_reset_threadpool

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _unsafe_reset_threadpool(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _unsafe_reset_threadpool(before)


def _peak(bundle: Path, kind: str) -> dict[str, float]:
    """Do the work of one kind in this process, and return its peak memory in MiB."""
    from ownlet.device.executorch_engine import ExecutorchEngine
    from ownlet.shared.adapter import load_adapter
    from ownlet.shared.manifest import ADAPTER_FILE

    manifest = read_manifest(bundle)
    spec, _, _ = load_adapter(bundle / ADAPTER_FILE)
    vector, history, windows = _inputs(spec, manifest, seed=0)
    if kind == "imports_pte":
        from executorch.extension.pybindings import _portable_lib

        assert _portable_lib is not None
    elif kind == "pte":
        engine = ExecutorchEngine.of_bundle(bundle, manifest, spec)
        engine.recommend(vector, history)
        engine.train(vector, [windows], PLAN, [AesNoise()])
    else:
        from ownlet.shared.base import load_base_weights
        from ownlet.shared.lora import attach_spec

        model = load_base_weights(bundle / BASE_FILE)
        attach_spec(model, spec)
        eager = _Eager(model, spec)
        eager.recommend(vector, history, manifest.top_k)
        if kind == "eager":
            eager.train(vector, windows, AesNoise())
        else:
            from ownlet.device.opacus_engine import OpacusEngine

            OpacusEngine(model, spec).train(vector, [windows], PLAN, [AesNoise()])
    return {"peak_mib": _peak_mib()}


def _peak_mib() -> float:
    """Return this process's own peak; ``ru_maxrss`` starts at the parent's, so it is asked only where Linux is not."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
