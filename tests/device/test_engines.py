"""Parity: equal masks and noise give equal deltas in every engine, and none of them touches the base."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.opacus_engine import OpacusEngine
from ownlet.device.program_calls import best_items, split_batch
from ownlet.device.train import Engine
from ownlet.export.frozen import FrozenBase
from ownlet.export.lower import lower
from ownlet.export.programs import ProgramShape, build_methods
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.delta import delta_of
from ownlet.shared.errors import AdapterError, BundleError, ConfigError, DataError, PrivacyError
from ownlet.shared.manifest import Manifest, read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.program import Program
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.windows import Windows, cut_windows

PLAN = Plan(steps=10, learning_rate=0.3, sample_rate=0.4, expected_batch=2.0, clip_norm=0.2, noise_multiplier=0.7)
SEED = 0  # its ten batches hold 0 to 5 of the 5 windows: one is empty, some exceed the program's 2 rows


def windows_of(num_events: int, seed: int = 0) -> Windows:
    events = np.random.default_rng(seed).integers(1, 51, num_events)
    return cut_windows(events.astype(np.int64), WindowConfig(window_length=6))


class BrokenNoise:
    """A source whose normals are not numbers."""

    def poisson_mask(self, size: int, rate: float) -> NDArray[np.bool_]:
        return np.ones(size, np.bool_)

    def gaussian(self, size: int, std: float) -> NDArray[np.float32]:
        return np.full(size, np.nan, np.float32)


def eager(model: SASRec, spec: AdapterSpec, vector: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Vector:
    """Train with ``dp_sgd_step`` and nothing else."""
    current = torch.from_numpy(vector)
    history, target, valid = (torch.from_numpy(x) for x in (windows.history, windows.target, windows.valid))
    clip, rate = torch.tensor(plan.clip_norm), torch.tensor(plan.learning_rate / plan.expected_batch)
    for _ in range(plan.steps):
        mask = torch.from_numpy(noise.poisson_mask(len(windows), plan.sample_rate))[:, None]
        drawn = torch.from_numpy(noise.gaussian(spec.num_trainable, plan.noise_std))
        before = current
        current, _, _ = dp_sgd_step(model, spec, before, history, target, valid * mask, drawn, clip, rate)
        current[spec.trainable] -= plan.learning_rate * plan.weight_decay * before[spec.trainable]
    return current.numpy()


def one_user(engine: Engine, vector: Vector, windows: Windows, plan: Plan, *seed: object) -> Vector:
    trained: NDArray[np.float32] = engine.train(vector, [windows], plan, [AesNoise.seeded(*seed)])
    return trained[0]


def assert_same_delta(spec: AdapterSpec, got: Vector, want: Vector, start: Vector) -> None:
    delta = delta_of(spec, want, start)
    assert np.abs(delta).max() > 1e-3
    np.testing.assert_allclose(delta_of(spec, got, start), delta, rtol=1e-4, atol=1e-6)


def step_engine(tiny: Any, manifest: Manifest, folder: Path, backend: str) -> ExecutorchEngine:
    """An engine whose program has the one method ``step_2``."""
    base, one = FrozenBase.of(tiny.model), replace(manifest, batches=(2,))
    shape = ProgramShape(windows=one.windows, batches=one.batches, capacity=one.capacity)
    methods = build_methods(base, tiny.spec, shape)
    path = folder / "program.pte"
    steps = [m for m in methods if m.name == "step_2"]
    path.write_bytes(lower(steps, backend, capacity=one.capacity))  # type: ignore[arg-type]
    return ExecutorchEngine(Program(path), tiny.spec, one, base.item_columns().numpy())


@pytest.fixture(scope="module")
def opacus_engine(tiny: Any) -> OpacusEngine:
    return OpacusEngine(tiny.model, tiny.spec)


@pytest.fixture(scope="module")
def pte_engine(tiny_bundle: Path) -> ExecutorchEngine:
    return ExecutorchEngine.open(tiny_bundle)


@pytest.fixture(scope="module")
def portable_engine(tiny: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ExecutorchEngine:
    return step_engine(tiny, read_manifest(tiny_bundle), tmp_path_factory.mktemp("portable"), "portable")


@pytest.fixture(params=["opacus_engine", "pte_engine", "portable_engine"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def test_the_parity_plan_has_an_empty_batch_and_one_larger_than_the_program() -> None:
    noise = AesNoise.seeded(SEED)
    sizes = [int(noise.poisson_mask(len(windows_of(30)), PLAN.sample_rate).sum()) for _ in range(PLAN.steps)]
    assert min(sizes) == 0
    assert max(sizes) > 2


def test_every_engine_equals_the_eager_step(tiny: Any, engine: Engine) -> None:
    before = hash_state(tiny.model.state_dict())
    windows = windows_of(30)
    want = eager(tiny.model, tiny.spec, tiny.vector, windows, PLAN, AesNoise.seeded(SEED))
    got = one_user(engine, tiny.vector, windows, PLAN, SEED)
    assert_same_delta(tiny.spec, got, want, tiny.vector)
    np.testing.assert_array_equal(got[: tiny.spec.size_a], tiny.vector[: tiny.spec.size_a])  # A is frozen
    assert hash_state(tiny.model.state_dict()) == before == tiny.spec.base_hash


def test_every_engine_takes_weight_decay_outside_of_clip_and_noise(tiny: Any, engine: Engine) -> None:
    plan, windows = replace(PLAN, weight_decay=0.5), windows_of(30)
    want = eager(tiny.model, tiny.spec, tiny.vector, windows, plan, AesNoise.seeded(SEED))
    assert_same_delta(tiny.spec, one_user(engine, tiny.vector, windows, plan, SEED), want, tiny.vector)
    assert np.abs(want - one_user(engine, tiny.vector, windows, PLAN, SEED)).max() > 1e-2


def test_weight_decay_alone_is_a_geometric_shrinking_of_what_is_trained(tiny: Any, engine: Engine) -> None:
    plan, trained = Plan(steps=4, learning_rate=0.5, weight_decay=0.2), tiny.spec.trainable
    got = one_user(engine, tiny.vector, windows_of(0), plan, 0)
    np.testing.assert_allclose(got[trained], tiny.vector[trained] * 0.9**4, rtol=1e-5)
    np.testing.assert_array_equal(got[: trained.start], tiny.vector[: trained.start])


def test_clipping_is_active_in_the_parity_plan(tiny: Any) -> None:
    model, spec, vector, windows = tiny.model, tiny.spec, tiny.vector, windows_of(30)
    clipped = eager(model, spec, vector, windows, replace(PLAN, noise_multiplier=0.0), AesNoise.seeded(SEED))
    free = eager(
        model, spec, vector, windows, replace(PLAN, noise_multiplier=0.0, clip_norm=math.inf), AesNoise.seeded(SEED)
    )
    assert np.abs(clipped - free).max() > 1e-2


def test_every_engine_takes_an_infinite_clip_norm(tiny: Any, engine: Engine) -> None:
    plan, windows = Plan(steps=3, expected_batch=3.0), windows_of(18)
    want = eager(tiny.model, tiny.spec, tiny.vector, windows, plan, AesNoise.seeded(0))
    assert_same_delta(tiny.spec, one_user(engine, tiny.vector, windows, plan, 0), want, tiny.vector)


def test_a_history_without_windows_still_gets_its_noise(tiny: Any, engine: Engine) -> None:
    noise = AesNoise.seeded(9)
    total = sum(noise.gaussian(tiny.spec.num_trainable, PLAN.noise_std).astype(np.float64) for _ in range(PLAN.steps))
    want = -PLAN.learning_rate / PLAN.expected_batch * total  # closed form: the noise is all there is
    got = one_user(engine, tiny.vector, windows_of(0), PLAN, 9)
    np.testing.assert_allclose(delta_of(tiny.spec, got, tiny.vector), want, rtol=1e-3, atol=1e-5)


def test_without_windows_and_noise_nothing_changes(tiny: Any, engine: Engine) -> None:
    np.testing.assert_array_equal(one_user(engine, tiny.vector, windows_of(1), Plan(), 0), tiny.vector)


def test_users_do_not_influence_each_other(tiny: Any, engine: Engine) -> None:
    users = [windows_of(20, seed=1), windows_of(0), windows_of(40, seed=2)]
    noises = [AesNoise.seeded(n) for n in range(3)]
    together = engine.train(tiny.vector, users, PLAN, noises)
    alone = [one_user(engine, tiny.vector, windows, PLAN, n) for n, windows in enumerate(users)]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_no_users_give_no_adapters(tiny: Any, engine: Engine) -> None:
    assert engine.train(tiny.vector, [], PLAN, []).shape == (0, tiny.spec.size)


def test_a_training_that_ends_in_nan_is_an_error(tiny: Any, engine: Engine) -> None:
    with pytest.raises(AdapterError, match="must be finite"):
        engine.train(tiny.vector, [windows_of(30)], PLAN, [BrokenNoise()])


def test_the_opacus_engine_keeps_its_copy_of_the_base_bit_identical(tiny: Any, opacus_engine: OpacusEngine) -> None:
    one_user(opacus_engine, tiny.vector, windows_of(30), PLAN, SEED)
    assert hash_state(opacus_engine.base_state) == tiny.spec.base_hash


@pytest.mark.parametrize("backend", ["portable", pytest.param("xnnpack", marks=pytest.mark.slow)])
def test_training_a_as_well_agrees_in_every_engine(
    tiny_with_a: Any, tiny_bundle: Path, tmp_path: Path, backend: str
) -> None:
    both = tiny_with_a
    windows, start = windows_of(30), both.vector
    want = eager(both.model, both.spec, start, windows, PLAN, AesNoise.seeded(SEED))
    assert np.abs(want[: both.spec.size_a] - start[: both.spec.size_a]).max() > 1e-3
    pte = step_engine(both, read_manifest(tiny_bundle), tmp_path, backend)
    for engine in (pte, OpacusEngine(both.model, both.spec)):
        assert_same_delta(both.spec, one_user(engine, start, windows, PLAN, SEED), want, start)


def test_a_base_with_batch_normalisation_is_refused(tiny: Any) -> None:
    model = copy.deepcopy(tiny.model)
    model.blocks[0].attention_norm = nn.BatchNorm1d(16)
    with pytest.raises(PrivacyError, match=r"batch normalisation, got layer 'blocks\.0\.attention_norm'"):
        OpacusEngine(model, tiny.spec)


def test_windows_longer_than_the_program_are_refused(tiny: Any, pte_engine: ExecutorchEngine) -> None:
    long = cut_windows(np.arange(1, 20, dtype=np.int64), WindowConfig(window_length=9))
    with pytest.raises(ConfigError, match="at most 6 positions"):
        one_user(pte_engine, tiny.vector, long, PLAN, 0)


def test_losses_of_the_program_are_those_of_eager(tiny: Any, pte_engine: ExecutorchEngine) -> None:
    windows: Windows = windows_of(30)
    rows: Sequence[torch.Tensor] = [torch.from_numpy(x) for x in (windows.history, windows.target, windows.valid)]
    zero = torch.zeros(tiny.spec.num_trainable)
    _, want, _ = dp_sgd_step(
        tiny.model, tiny.spec, torch.from_numpy(tiny.vector), *rows, zero, torch.tensor(1.0), torch.tensor(1.0)
    )
    np.testing.assert_allclose(pte_engine.loss(tiny.vector, windows), want.numpy(), rtol=1e-5)
    assert pte_engine.loss(tiny.vector, windows_of(0)).shape == (0,)


def test_a_batch_is_cut_into_the_calls_that_take_the_least_time() -> None:
    variants = (1, 4, 16)
    assert [split_batch(n, variants) for n in range(6)] == [(1,), (1,), (1, 1), (4,), (4,), (4, 1)]
    assert split_batch(15, variants) == (16,)
    assert split_batch(40, variants) == (16, 16, 4, 4)
    assert all(sum(split_batch(n, variants)) >= n for n in range(100))
    assert split_batch(5, (2,)) == (2, 2, 2)


@pytest.mark.parametrize("count", [1, 3, 100, 5000])
@pytest.mark.parametrize("size", [1, 100, 20_000, 20_001])
def test_the_best_items_are_those_of_a_full_sort(size: int, count: int) -> None:
    scores = np.random.default_rng(size + count).integers(0, 500, size).astype(np.float32)  # with ties
    scores[::7] = -np.inf
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_array_equal(best_items(scores, count), order[np.isfinite(scores[order])][:count])


def test_recommendations_are_the_best_scores_without_what_is_barred(tiny: Any, pte_engine: ExecutorchEngine) -> None:
    history, barred = np.array([3, 1, 4], np.int64), np.zeros(51, np.bool_)
    barred[[0, 7, 9]] = True
    scores = pte_engine.score(tiny.vector, history)
    items, values = pte_engine.recommend(tiny.vector, history, barred)
    scores[barred] = -np.inf
    np.testing.assert_array_equal(items, np.argsort(-scores, kind="stable")[:10])
    np.testing.assert_array_equal(values, scores[items])
    items, _ = pte_engine.recommend(tiny.vector, history)
    assert not set(items) & {0, 1, 3, 4}
    barred[:] = True
    barred[8] = False
    assert pte_engine.recommend(tiny.vector, history, barred)[0].tolist() == [8]


def test_an_empty_history_scores_as_eager_does(tiny: Any, pte_engine: ExecutorchEngine) -> None:
    from ownlet.shared.lora import applied

    with torch.no_grad(), applied(tiny.model, tiny.spec.split(torch.from_numpy(tiny.vector))):
        want = tiny.model.score_last(torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, dtype=torch.int64))[0, 1:]
    got = pte_engine.score(tiny.vector, np.zeros(0, np.int64))[1:]
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [51, -1, 2**40])
def test_a_number_that_is_no_item_is_refused(tiny: Any, pte_engine: ExecutorchEngine, wrong: int) -> None:
    history = np.array([3, wrong, 4], np.int64)
    with pytest.raises(DataError, match=f"item must be a number from 1 to 50, got item={wrong}"):
        pte_engine.recommend(tiny.vector, history)
    windows = replace(windows_of(30), target=np.full((5, 6), wrong))
    with pytest.raises(DataError, match=f"item must be a number from 0 to 50, got item={wrong}"):
        one_user(pte_engine, tiny.vector, windows, PLAN, 0)
    with pytest.raises(DataError, match="item must be a number"):
        pte_engine.loss(tiny.vector, windows)


def test_padding_is_no_event_of_a_history(tiny: Any, pte_engine: ExecutorchEngine) -> None:
    with pytest.raises(DataError, match="from 1 to 50, got item=0"):
        pte_engine.score(tiny.vector, np.array([3, 0, 4], np.int64))


def test_steps_yield_every_vector_of_a_training(tiny: Any, pte_engine: ExecutorchEngine) -> None:
    windows = windows_of(30)
    vectors = list(pte_engine.steps(tiny.vector, windows, PLAN, AesNoise.seeded(SEED)))
    assert len(vectors) == PLAN.steps
    np.testing.assert_array_equal(vectors[-1], one_user(pte_engine, tiny.vector, windows, PLAN, SEED))
    shorter = replace(PLAN, steps=4)
    np.testing.assert_array_equal(vectors[3], one_user(pte_engine, tiny.vector, windows, shorter, SEED))
    assert len({vector.tobytes() for vector in vectors}) == PLAN.steps  # each in memory of its own


def test_a_plan_that_the_program_cannot_run_is_refused_before_anything_is_drawn(
    tiny: Any, pte_engine: ExecutorchEngine
) -> None:
    plan = replace(PLAN, num_negatives=5)
    with pytest.raises(ConfigError, match="num_negatives must be 0"):
        pte_engine.check_plan(plan)
    with pytest.raises(ConfigError, match="num_negatives must be 0"):
        one_user(pte_engine, tiny.vector, windows_of(30), plan, 0)


def test_threads_that_recommend_and_train_at_once_get_what_they_would_alone(
    tiny: Any, pte_engine: ExecutorchEngine
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    windows, history = windows_of(30), np.arange(1, 9, dtype=np.int64)
    alone = one_user(pte_engine, tiny.vector, windows, PLAN, SEED), pte_engine.score(tiny.vector, history)
    with ThreadPoolExecutor(4) as pool:
        trained = [pool.submit(one_user, pte_engine, tiny.vector, windows, PLAN, SEED) for _ in range(8)]
        scored = [pool.submit(pte_engine.score, tiny.vector, history) for _ in range(80)]
    for future in trained:
        np.testing.assert_array_equal(future.result(), alone[0])
    for future in scored:
        np.testing.assert_array_equal(future.result(), alone[1])


def test_an_item_table_of_another_size_than_the_manifests_is_refused(tiny: Any, tiny_bundle: Path) -> None:
    program, manifest = Program(tiny_bundle / "program.pte"), read_manifest(tiny_bundle)
    with pytest.raises(BundleError, match="items must be 50, the catalogue, got 49"):
        ExecutorchEngine(program, tiny.spec, manifest, np.zeros((16, 49), np.float32))
