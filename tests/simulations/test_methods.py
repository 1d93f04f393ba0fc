"""Every adapter method gives the same adapter in every engine: eager, opacus, cohort, and the device program."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.opacus_engine import OpacusEngine
from ownlet.export.bundle import write_bundle
from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import AdapterConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.interactions import Item
from ownlet.shared.lora import applied, attach_adapter
from ownlet.shared.methods import METHODS
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.windows import cut_windows
from ownlet.simulations.cohort import CohortEngine

WINDOWS = WindowConfig(window_length=6)
PLAN = Plan(steps=4, learning_rate=0.3, sample_rate=0.6, expected_batch=2.0, clip_norm=0.2, noise_multiplier=0.7)


def prepared(method):
    torch.manual_seed(0)
    content = torch.cat([torch.zeros(1, 4), torch.randn(30, 4)])
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=10), content).eval().requires_grad_(False)
    model.item_embedding.weight[1:].normal_(std=0.3)
    spec = attach_adapter(model, AdapterConfig(method=method, rank=4, alpha=8.0))
    vector = initial_adapter(spec, 0)
    vector[spec.size_a :] = np.random.default_rng(1).normal(0, 0.1, spec.size - spec.size_a)
    return model, spec, vector


def users(count):
    rng = np.random.default_rng(3)
    return [cut_windows(rng.integers(1, 31, rng.integers(0, 25)), WINDOWS) for _ in range(count)]


def eager(model, spec, vector, windows, noise):
    current = torch.from_numpy(vector)
    history, target, valid = (torch.from_numpy(x) for x in (windows.history, windows.target, windows.valid))
    for _ in range(PLAN.steps):
        mask = torch.from_numpy(noise.poisson_mask(len(windows), PLAN.sample_rate))[:, None]
        drawn = torch.from_numpy(noise.gaussian(spec.num_trainable, PLAN.noise_std))
        rate = torch.tensor(PLAN.learning_rate / PLAN.expected_batch)
        clip = torch.tensor(PLAN.clip_norm)
        current, _, _ = dp_sgd_step(model, spec, current, history, target, valid * mask, drawn, clip, rate)
    return current.numpy()


@pytest.mark.parametrize("method", METHODS)
def test_opacus_and_cohort_give_what_the_eager_step_gives(method):
    model, spec, vector = prepared(method)
    before = hash_state(model.state_dict())
    some = [one for one in users(9) if len(one)]
    noises = [[AesNoise.seeded(n) for n in range(len(some))] for _ in range(2)]
    want = np.stack([eager(model, spec, vector, one, AesNoise.seeded(n)) for n, one in enumerate(some)])
    assert np.abs(want - vector).max() > 1e-2
    for engine, sources in zip((OpacusEngine(model, spec), CohortEngine(model, spec)), noises, strict=True):
        got = engine.train(vector, some, PLAN, sources)
        np.testing.assert_allclose(got - vector, want - vector, rtol=1e-4, atol=2e-6)
    assert hash_state(model.state_dict()) == before


@pytest.mark.parametrize("method", ["bottleneck", "prefix", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_bundle_of_any_method_trains_and_scores_as_eager_does(method, tmp_path: Path):
    model, spec, vector = prepared(method)
    items = tuple(Item(number=n, id=f"item-{n}") for n in range(1, 31))
    write_bundle(tmp_path / "b", model, spec, vector, version=1, items=items, windows=WINDOWS, batches=(2,))
    engine = ExecutorchEngine.open(tmp_path / "b")
    assert engine.spec == spec
    (windows,) = (one for one in users(4)[:2] if len(one) > 2)
    want = eager(model, spec, vector, windows, AesNoise.seeded(0))
    got = engine.train(vector, [windows], PLAN, [AesNoise.seeded(0)])[0]
    np.testing.assert_allclose(got - vector, want - vector, rtol=1e-4, atol=2e-6)
    history = np.array([3, 8, 1, 30])
    with torch.no_grad(), applied(model, spec.split(torch.from_numpy(want))):
        scores = model.score_last(torch.from_numpy(history)[None], torch.tensor([4]))[0]
    np.testing.assert_allclose(engine.score(want, history)[1:], scores.numpy()[1:], rtol=1e-4, atol=1e-5)
