import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import ModelConfig, Plan, WindowConfig
from ownlet.shared.context import ContextField
from ownlet.shared.delta import clip_to_norm
from ownlet.shared.errors import ConfigError
from ownlet.shared.lora import attach
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.windows import cut_windows
from ownlet.simulations.cohort import CohortEngine

WINDOWS = WindowConfig(window_length=6)
NOISY = Plan(steps=3, learning_rate=0.2, sample_rate=0.6, expected_batch=2.0, clip_norm=0.05, noise_multiplier=0.8)
OBJECTIVES = ("softmax", "bpr", "bce", "listnet", "lambda")
PLAIN = Plan(steps=3, learning_rate=0.2)
DECAYED = replace(NOISY, weight_decay=0.7)


def setup(train_a=False, targets=("query", "down"), context=()):
    torch.manual_seed(0)
    config = ModelConfig(dim=16, max_length=10, context=context)
    model = SASRec(config, torch.zeros(31, 4)).eval().requires_grad_(False)
    if context:
        model.context_embedding[1:] = torch.randn(len(model.context_embedding) - 1, 16)
    model.item_embedding.weight[1:] = torch.randn(30, 16)
    for block in model.blocks:  # a trained base has norms that do something
        for norm in (block.attention_norm, block.feedforward_norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.2)
    base_hash = hash_state(model.state_dict())
    spec = attach(model, target_modules=targets, rank=2, alpha=4.0, base_hash=base_hash, train_a=train_a)
    return model, spec, initial_adapter(spec, 0)


def some_users(count, seed=0):
    rng = np.random.default_rng(seed)
    return [cut_windows(rng.integers(1, 31, rng.integers(0, 25)), WINDOWS) for _ in range(count)]


def sources(count):
    return [AesNoise.seeded("user", user) for user in range(count)]


def one_by_one(model, spec, vector, users, plan, noises):
    """The contract, read literally: one user and one step after the other."""
    trained = []
    for windows, noise in zip(users, noises, strict=True):
        local = torch.from_numpy(vector)
        for _ in range(plan.steps):
            mask = torch.from_numpy(noise.poisson_mask(len(windows), plan.sample_rate))
            drawn = torch.from_numpy(noise.gaussian(spec.num_trainable, plan.noise_std))
            valid = torch.from_numpy(windows.valid) * mask[:, None]
            rate = torch.tensor(plan.learning_rate / plan.expected_batch)
            history, target = torch.from_numpy(windows.history), torch.from_numpy(windows.target)
            shrunk = plan.learning_rate * plan.weight_decay * local[spec.trainable]
            if len(windows):
                local, _, _ = dp_sgd_step(
                    model, spec, local, history, target, valid, drawn, torch.tensor(plan.clip_norm), rate
                )
            else:
                local = local.clone()
                local[spec.trainable] -= rate * drawn
            local[spec.trainable] -= shrunk
        trained.append(local.numpy())
    return np.stack(trained)


@pytest.mark.parametrize("plan", [NOISY, PLAIN, DECAYED], ids=["noisy", "plain", "decayed"])
@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("count", [1, 7, 40])
def test_a_cohort_gives_what_its_users_give_one_by_one(count, train_a, plan):
    model, spec, vector = setup(train_a)
    users = some_users(count)
    expected = one_by_one(model, spec, vector, users, plan, sources(count))
    got = CohortEngine(model, spec).train(vector, users, plan, sources(count))
    np.testing.assert_allclose(got - vector, expected - vector, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("unit", ["window", "user"])
@pytest.mark.parametrize(
    ("count", "train_a"),
    [(1, False), (1, True), (7, False), (7, True), (300, False), pytest.param(300, True, marks=pytest.mark.slow)],
)
def test_a_cohort_equals_the_opacus_engine(count, train_a, unit):
    model, spec, vector = setup(train_a)
    users, plan = some_users(count, seed=count), NOISY if unit == "window" else PLAIN
    expected = OpacusEngine(model, spec).train(vector, users, plan, sources(count))
    got = CohortEngine(model, spec).train(vector, users, plan, sources(count))
    clip_norm = 10.0 if unit == "window" else 0.1
    for one, other in (
        (got - vector, expected - vector),
        [clip_to_norm(x - vector, clip_norm) for x in (got, expected)],
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("plan", [NOISY, replace(PLAIN, num_negatives=5)], ids=["noisy", "negatives"])
def test_context_is_read_alike_by_the_cohort_and_by_opacus(train_a, plan):
    fields = (ContextField(name="gap", kind="gap"), ContextField(name="weekday", kind="weekday"))
    model, spec, vector = setup(train_a, context=fields)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 25, 9)
    users = [cut_windows(rng.integers(1, 31, n), WINDOWS, rng.integers(0, 40, (n, 2))) for n in lengths]
    expected = OpacusEngine(model, spec).train(vector, users, plan, sources(9))
    got = CohortEngine(model, spec).train(vector, users, plan, sources(9))
    np.testing.assert_allclose(got - vector, expected - vector, rtol=1e-4, atol=2e-6)
    untold = [replace(windows, context=None) for windows in users]
    assert np.abs(CohortEngine(model, spec).train(vector, untold, plan, sources(9)) - got).max() > 1e-4


@pytest.mark.parametrize(
    "targets",
    [
        ("query", "key", "value", "output", "up", "down"),
        ("key",),
        ("output", "up"),
        ("blocks.1.value",),
        ("blocks.1.down",),
        ("blocks.0.up", "blocks.1.query"),
    ],
)
def test_every_choice_of_layers_is_differentiated_right(targets):
    model, spec, vector = setup(targets=targets)
    vector = vector.copy()
    vector[spec.trainable] += np.random.default_rng(0).normal(0, 0.1, spec.num_trainable).astype(np.float32)
    users = some_users(12)
    expected = one_by_one(model, spec, vector, users, NOISY, sources(12))
    got = CohortEngine(model, spec).train(vector, users, NOISY, sources(12))
    np.testing.assert_allclose(got - vector, expected - vector, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("objective", "negatives", "train_a"),
    [(o, n, False) for o in OBJECTIVES for n in ("uniform", "popularity", "hard", "in-batch")]
    + [(o, "hard", True) for o in OBJECTIVES],
)
def test_every_objective_is_that_of_the_opacus_engine(objective, negatives, train_a):
    model, spec, vector = setup(train_a)
    model.frequencies = torch.arange(31)
    users, plan = some_users(5), PLAIN if negatives == "in-batch" else NOISY
    full = CohortEngine(model, spec).train(vector, users, plan, sources(5))
    plan = replace(plan, objective=objective, num_negatives=7, negatives=negatives)
    expected = OpacusEngine(model, spec).train(vector, users, plan, sources(5))
    got = CohortEngine(model, spec).train(vector, users, plan, sources(5))
    scale = max(1.0, np.abs(expected - vector).max())
    np.testing.assert_allclose(got - vector, expected - vector, rtol=1e-4, atol=2e-6 * scale)
    assert np.abs(got - full).max() > 1e-3


def test_a_windows_gradient_depends_on_that_window_alone():
    """Clipping and noise promise something because nobody else's window moves what a window contributes."""
    model, spec, vector = setup()
    users = some_users(2)
    for objective, negatives in (("softmax", "popularity"), ("bpr", "hard"), ("lambda", "uniform")):
        model.frequencies = torch.arange(31)
        plan = Plan(objective=objective, num_negatives=5, negatives=negatives, steps=1)
        windows = next(user for user in users if len(user) >= 2)
        other = cut_windows(np.arange(1, 25), WINDOWS)[: len(windows)]
        changed = replace(windows, **{name: getattr(windows, name).copy() for name in ("history", "target", "valid")})
        for name in ("history", "target", "valid"):
            getattr(changed, name)[1:] = getattr(other, name)[1 : len(windows)]
        first = [replace(w, valid=w.valid * (np.arange(len(w)) == 0)[:, None]) for w in (windows, changed)]
        engine = CohortEngine(model, spec)
        one, two = (engine.train(vector, [w], plan, sources(1)) for w in first)
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-8)
        assert np.abs(one - vector).max() > 1e-4


def test_a_base_that_does_not_know_its_items_frequencies_is_refused():
    model, spec, vector = setup()
    plan = replace(NOISY, num_negatives=5, negatives="popularity")
    for engine in (CohortEngine(model, spec), OpacusEngine(model, spec)):
        with pytest.raises(ConfigError, match="does not know how frequent items are"):
            engine.check_plan(plan)
        with pytest.raises(ConfigError, match="does not know how frequent items are"):
            engine.train(vector, some_users(2), plan, sources(2))


def test_scores_too_large_for_a_bare_exponential_are_right_too():
    model, spec, vector = setup()
    model.item_embedding.weight.mul_(40.0)
    users = some_users(12)
    expected = one_by_one(model, spec, vector, users, NOISY, sources(12))
    got = CohortEngine(model, spec).train(vector, users, NOISY, sources(12))
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got - vector, expected - vector, rtol=1e-3, atol=2e-5)


def test_threads_never_change_the_result():
    model, spec, vector = setup()
    users = some_users(60)
    one, four = (
        CohortEngine(model, spec, threads=threads, chunk_bytes=100_000).train(vector, users, NOISY, sources(60))
        for threads in (1, 4)
    )
    np.testing.assert_array_equal(one, four)


def test_bfloat16_points_the_same_way():
    model, spec, vector = setup()
    users = some_users(60)
    exact = CohortEngine(model, spec).train(vector, users, PLAIN, sources(60))[:, spec.trainable]
    rough = CohortEngine(model, spec, dtype=torch.bfloat16).train(vector, users, PLAIN, sources(60))[:, spec.trainable]
    exact, rough = exact.sum(axis=0), rough.sum(axis=0)
    assert exact @ rough / np.linalg.norm(exact) / np.linalg.norm(rough) > 0.99


def test_a_broken_user_fails_alone():
    model, spec, vector = setup()
    users = [*some_users(20), cut_windows(np.array([3]), WINDOWS)]
    plan = Plan(steps=4, learning_rate=1e30)
    trained = CohortEngine(model, spec).train(vector, users, plan, sources(21))
    alone = CohortEngine(model, spec).train(vector, users[:1], plan, sources(1))
    np.testing.assert_array_equal(np.isfinite(trained[0]), np.isfinite(alone[0]))
    still = [at for at, windows in enumerate(users) if len(windows) == 0]
    np.testing.assert_array_equal(trained[still], np.stack([vector] * len(still)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_gives_what_the_cpu_gives():
    model, spec, vector = setup()
    users = some_users(30)
    cpu = CohortEngine(model, spec).train(vector, users, NOISY, sources(30))
    gpu = CohortEngine(setup()[0], spec, device="cuda").train(vector, users, NOISY, sources(30))
    np.testing.assert_allclose(gpu - vector, cpu - vector, rtol=1e-3, atol=1e-5)


def test_chunk_size_never_changes_the_result():
    model, spec, vector = setup()
    users = some_users(30)
    whole = CohortEngine(model, spec, chunk_bytes=2**30).train(vector, users, NOISY, sources(30))
    for size in (1, 200_000):
        small = CohortEngine(model, spec, chunk_bytes=size).train(vector, users, NOISY, sources(30))
        np.testing.assert_allclose(small, whole, rtol=1e-4, atol=2e-6)


def test_a_user_without_windows_is_unchanged_without_noise_and_noised_with_it():
    model, spec, vector = setup()
    nobody = [cut_windows(np.array([], np.int64), WINDOWS), cut_windows(np.array([3]), WINDOWS)]
    engine = CohortEngine(model, spec)
    np.testing.assert_array_equal(engine.train(vector, nobody, PLAIN, sources(2)), np.stack([vector, vector]))
    noised = engine.train(vector, nobody, NOISY, sources(2)) - vector
    std = NOISY.noise_std * NOISY.learning_rate / NOISY.expected_batch * math.sqrt(NOISY.steps)
    assert noised[:, spec.trainable].std() == pytest.approx(std, rel=0.2)
    assert not noised[:, : spec.trainable.start].any()


def test_no_users_give_no_rows():
    model, spec, vector = setup()
    assert CohortEngine(model, spec).train(vector, [], PLAIN, []).shape == (0, spec.size)


def test_training_lowers_the_loss_and_keeps_the_base():
    model, spec, vector = setup()
    users = some_users(10, seed=1)
    plan = Plan(steps=10, learning_rate=1.0, expected_batch=3.0)
    trained = CohortEngine(model, spec).train(vector, users, plan, sources(10))
    for windows, local in zip(users, trained, strict=True):
        if len(windows) == 0:
            continue
        parts = [torch.from_numpy(part) for part in (windows.history, windows.target, windows.valid)]
        zero = (torch.zeros(spec.num_trainable), torch.tensor(1.0), torch.tensor(0.0))
        before = dp_sgd_step(model, spec, torch.from_numpy(vector), *parts, *zero)[1].sum()
        after = dp_sgd_step(model, spec, torch.from_numpy(local), *parts, *zero)[1].sum()
        assert after < before
    assert hash_state(model.state_dict()) == spec.base_hash
