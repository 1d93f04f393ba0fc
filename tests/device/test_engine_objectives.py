"""Every objective that a program can have: opacus, executorch and the eager step agree, and the rest is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.opacus_engine import OpacusEngine
from ownlet.export.frozen import FrozenBase
from ownlet.export.lower import lower
from ownlet.export.objectives import program_objective
from ownlet.export.programs import ProgramShape, build_methods
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.delta import delta_of
from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.frequencies import open_frequencies, save_frequencies
from ownlet.shared.manifest import Manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.program import Program
from ownlet.shared.windows import cut_windows
from ownlet.simulations.cohort import CohortEngine

WINDOWS = WindowConfig(window_length=6)
FREQUENCIES = np.arange(51, dtype=np.int64)
PLAN = Plan(
    steps=6,
    learning_rate=0.3,
    sample_rate=0.4,
    expected_batch=2.0,
    clip_norm=0.2,
    noise_multiplier=0.7,
    num_negatives=5,
)
MANIFEST = Manifest(
    backend="portable",
    base_hash="",
    adapter_version=0,
    num_items=50,
    capacity=100,
    max_length=12,
    top_k=10,
    batches=(2,),
    windows=WINDOWS,
    methods=(),
    files={},
    versions={},
)


def engine_for(tiny: Any, folder: Path, objective: str, backend: str) -> ExecutorchEngine:
    """An engine whose program has ``step_2`` for an objective with 5 negatives, and nothing else."""
    base, known = FrozenBase.of(tiny.model), program_objective(objective)
    shape = ProgramShape(windows=WINDOWS, batches=(2,), capacity=100, objective=known, num_negatives=5)
    (step,) = [method for method in build_methods(base, tiny.spec, shape) if method.name == "step_2"]
    path = folder / "program.pte"
    path.write_bytes(lower([step], backend, capacity=100))  # type: ignore[arg-type]
    manifest = replace(MANIFEST, objective=known, num_negatives=5)
    return ExecutorchEngine(Program(path), tiny.spec, manifest, base.item_columns().numpy(), FREQUENCIES)


def knowing(tiny: Any) -> Any:
    model = copy.deepcopy(tiny.model).requires_grad_(False)
    model.frequencies = torch.from_numpy(FREQUENCIES)
    return model


@pytest.mark.parametrize(
    ("objective", "backend"),
    [("softmax", "xnnpack")]
    + [pytest.param(name, "xnnpack", marks=pytest.mark.slow) for name in ("bpr", "bce", "listnet")]
    + [pytest.param(name, "portable", marks=pytest.mark.slow) for name in ("softmax", "bpr", "bce", "listnet")],
)
def test_every_engine_takes_the_same_steps(tiny: Any, tmp_path: Path, objective: Any, backend: str) -> None:
    """Batches of 0 to 5 windows in calls of 2, one empty; clipping is active, and noise is added once per step."""
    events = np.random.default_rng(0).integers(1, 51, 30)
    windows, model = cut_windows(events, WINDOWS), knowing(tiny)
    program, opacus, cohort = (
        engine_for(tiny, tmp_path, objective, backend),
        OpacusEngine(model, tiny.spec),
        CohortEngine(model, tiny.spec),
    )
    calibration = 0.5 if objective == "bce" else 0.0
    plan = replace(PLAN, objective=objective, calibration=calibration)
    plans = [replace(plan, negatives=negatives) for negatives in ("uniform", "popularity")]
    plans.append(replace(plan, negatives="in-batch", clip_norm=np.inf, noise_multiplier=0.0))
    for one in plans:
        trained = [
            delta_of(tiny.spec, engine.train(tiny.vector, [windows], one, [AesNoise.seeded(0)])[0], tiny.vector)
            for engine in (opacus, program, cohort)
        ]
        assert np.abs(trained[0]).max() > 1e-3
        for other in trained[1:]:
            np.testing.assert_allclose(other, trained[0], rtol=1e-4, atol=1e-6)


def test_what_a_program_cannot_do_is_refused_with_the_reason(tiny: Any) -> None:
    columns = FrozenBase.of(tiny.model).item_columns().numpy()
    manifest = replace(MANIFEST, objective="bpr", num_negatives=5)
    engine = ExecutorchEngine(None, tiny.spec, manifest, columns)  # type: ignore[arg-type]
    engine.check_plan(replace(PLAN, objective="bpr"))
    for changes, rule in (
        ({"num_negatives": 6}, "num_negatives must be 5 in this bundle's program, got num_negatives=6"),
        ({"objective": "bce"}, "objective must be bpr in this bundle's program, got objective='bce'"),
        ({"negatives": "hard"}, "negatives must not be hard in a program, which keeps its scores"),
        ({"negatives": "popularity"}, "does not know how frequent items are"),
    ):
        with pytest.raises(ConfigError, match=rule):
            engine.check_plan(replace(PLAN, **{"objective": "bpr", **changes}))


def test_an_objective_that_needs_ranks_is_no_programs(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="which cannot rank scores, got 'lambda'"):
        program_objective("lambda")
    with pytest.raises(ConfigError, match="num_negatives must be at least 1 but for the full softmax"):
        ProgramShape(windows=WINDOWS, batches=(1,), capacity=100, objective="bce")


def test_frequencies_come_back_and_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "frequencies.safetensors"
    save_frequencies(path, FREQUENCIES)
    np.testing.assert_array_equal(open_frequencies(path), FREQUENCIES)
    save_frequencies(path, -FREQUENCIES)
    with pytest.raises(BundleError, match="frequencies must be a readable table"):
        open_frequencies(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(BundleError, match="frequencies must be a readable table"):
        open_frequencies(path)
