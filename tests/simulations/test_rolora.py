"""RoLoRA: rounds that train B and A in turn, through the deployed server and client, against a loop written out."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ownlet.device.client import answer
from ownlet.device.opacus_engine import OpacusEngine
from ownlet.device.release import check_terms
from ownlet.device.train import TrainsParts
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.alternate import part_of_round, places_of_part, spec_of_part
from ownlet.shared.config import AdapterConfig, FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.lora import applied
from ownlet.shared.methods import rounds_for
from ownlet.shared.noise import AesNoise
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.server_config import AdaptiveClip, NoisePlan, Robust, ServerOptimizer
from ownlet.shared.straggler_config import Buffer
from ownlet.shared.wire import TrainRequest, request_from_records, request_to_records
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.audit.core import left_out
from ownlet.simulations.audit.round_releases import plain_config
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.federated_run import FederatedRunConfig
from ownlet.simulations.run import simulate
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

WINDOWS = WindowConfig(window_length=6)
PLAN = Plan(steps=3, learning_rate=0.3)
CONFIG = FederationConfig(
    rounds=4,
    cohort_rate=1.0,
    unit="none",
    noise_multiplier=0.0,
    server_momentum=0.0,
    seed=2,
    plan=PLAN,
    windows=WINDOWS,
    alternate=True,
)
PRIVATE = replace(CONFIG, unit="user", noise_multiplier=0.7, cohort_rate=0.5, clip_norm=0.2, server_momentum=0.9)


def histories(count=12, seed=0):
    rng = np.random.default_rng(seed)
    return EventStore.of([rng.integers(1, 51, rng.integers(2, 14)) for _ in range(count)])


def path_of(engine, store, vector, config, **options):
    """Return the adapter before the first round and after every one."""
    path = [vector]
    simulate(engine, store, vector, config, on_round=lambda result, after: path.append(after), **options)
    return path


def test_odd_rounds_train_b_and_even_ones_a():
    assert [part_of_round(True, number) for number in range(1, 5)] == ["b", "a", "b", "a"]
    assert [part_of_round(False, number) for number in (1, 2)] == ["all", "all"]


def test_the_method_sets_the_rounds(tiny_with_a):
    assert rounds_for(AdapterConfig(method="rolora"), FederationConfig()).alternate
    assert not rounds_for(AdapterConfig(method="lora"), FederationConfig()).alternate
    spec = tiny_with_a.spec
    first, second = places_of_part(spec, "a"), places_of_part(spec, "b")
    assert (first.start, first.stop, second.stop) == (0, second.start, spec.num_trainable)
    assert first.stop == spec.size_a


@pytest.mark.parametrize("kind", [CohortEngine, OpacusEngine])
def test_one_user_without_clipping_is_sgd_on_b_then_on_a(tiny_with_a, kind):
    model, spec, store = tiny_with_a.model, tiny_with_a.spec, histories(1)
    engine = kind(model, spec)
    assert isinstance(engine, TrainsParts)
    assert engine.of_part("a") is engine.of_part("a")
    (windows,) = store.windows(np.array([0]), WINDOWS)
    rows = [torch.from_numpy(array) for array in (windows.history, windows.target, windows.valid)]
    weights = [
        [matrix.clone() for matrix in pair] for pair in spec.split(torch.from_numpy(tiny_with_a.vector)).values()
    ]
    for number in range(1, CONFIG.rounds + 1):
        trained = [pair[number % 2] for pair in weights]  # pairs are (A, B)
        for matrix in trained:
            matrix.requires_grad_()
        for _ in range(PLAN.steps):
            with applied(model, dict(zip((layer.name for layer in spec.layers), weights, strict=True))):
                loss = softmax_loss(model(rows[0]), rows[1], rows[2]).sum()
            for matrix, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                matrix.data -= PLAN.learning_rate * gradient
        for matrix in trained:
            matrix.requires_grad_(False)
    want = torch.cat([matrix.flatten() for at in (0, 1) for matrix in (pair[at] for pair in weights)]).numpy()
    got = path_of(engine, store, tiny_with_a.vector, CONFIG)[-1]
    np.testing.assert_allclose(got - tiny_with_a.vector, want - tiny_with_a.vector, rtol=1e-3, atol=3e-6)
    for part in (slice(0, spec.size_a), slice(spec.size_a, None)):
        assert np.abs(got - tiny_with_a.vector)[part].max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"server_optimizer": ServerOptimizer(name="fedadam"), "server_learning_rate": 0.01},
        {"robust": Robust(name="norm-bound")},
        {"wire": WireConfig(name="int8")},
        {"wire": WireConfig(name="sparse", keep=0.3)},
        {"unit": "window", "plan": replace(PLAN, clip_norm=0.5, noise_multiplier=0.5)},
        {"secure": SecureConfig(enabled=True)},
    ],
    ids=["momentum", "fedadam", "norm-bound", "int8", "sparse", "window", "secure"],
)
def test_the_frozen_half_never_moves_in_its_off_rounds(tiny_with_a, changes):
    spec, config = tiny_with_a.spec, replace(PRIVATE, **changes)
    nodes = 4 if config.secure.enabled else 2
    engine = CohortEngine(tiny_with_a.model, spec)
    path = path_of(engine, histories(), tiny_with_a.vector, config, num_nodes=nodes)
    halves = {"a": slice(0, spec.size_a), "b": slice(spec.size_a, None)}
    for number, (before, after) in enumerate(pairwise(path), start=1):
        part = part_of_round(True, number)
        frozen = halves["a" if part == "b" else "b"]
        np.testing.assert_array_equal(after[frozen], before[frozen])
        assert not np.array_equal(after[halves[part]], before[halves[part]])


def test_clipping_sees_the_trained_part_only(tiny_with_a):
    """The reply of one long delta has norm C in the part that was trained, and holds nothing else."""
    spec = tiny_with_a.spec
    shard = StoreShard(CohortEngine(tiny_with_a.model, spec), histories(), WINDOWS)
    for number, part in ((1, "b"), (2, "a")):
        request = request_of(tiny_with_a, number, part, clip_norm=1e-3)
        reply = answer(request_from_records(request_to_records(request), spec.size), shard)
        assert reply.total.shape == (spec_of_part(spec, part).num_trainable,)
        assert np.linalg.norm(reply.total) == pytest.approx(1e-3, rel=1e-5)


def request_of(tiny, number, part, clip_norm=1.0):
    return TrainRequest(
        vector=tiny.vector,
        round=number,
        version=0,
        base_hash=tiny.spec.base_hash,
        plan=PLAN,
        unit="user",
        clip_norm=clip_norm,
        users=(3,),
        part=part,
    )


def test_a_node_refuses_a_part_out_of_turn_and_one_that_its_engine_cannot_train_alone(tiny_with_a):
    engine = CohortEngine(tiny_with_a.model, tiny_with_a.spec)
    shard = StoreShard(engine, histories(), WINDOWS)
    with pytest.raises(FederationError, match="whose turn it is, got 'a' in round 3"):
        answer(request_of(tiny_with_a, 3, "a"), shard)

    class Fixed:
        """An engine with a fixed set of trained tensors, like a program."""

        spec = tiny_with_a.spec
        train = engine.train

    with pytest.raises(FederationError, match="A or B alone where rounds alternate, got Fixed"):
        answer(request_of(tiny_with_a, 1, "b"), StoreShard(Fixed(), histories(), WINDOWS))


def test_an_interrupted_run_resumes_to_the_adapter_of_an_uninterrupted_one(tiny_with_a, tmp_path):
    engine, config = CohortEngine(tiny_with_a.model, tiny_with_a.spec), PRIVATE
    whole = simulate(engine, histories(), tiny_with_a.vector, config)

    class KilledError(Exception):
        pass

    def kill(result, vector):
        if result.round == 3:
            raise KilledError

    arguments = (engine, histories(), tiny_with_a.vector, config)
    with pytest.raises(KilledError):
        simulate(*arguments, checkpoint=tmp_path / "c", on_round=kill)
    resumed = simulate(*arguments, checkpoint=tmp_path / "c", resume=True)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    both_at_once = simulate(engine, histories(), tiny_with_a.vector, replace(config, alternate=False))
    assert resumed.epsilon == whole.epsilon == both_at_once.epsilon  # one release of sensitivity C a round, either way


def test_noise_is_added_to_the_trained_part_only_and_at_full_strength(tiny_with_a):
    """Nobody has events, so that what moves is noise: standard deviation sigma C over the expected cohort."""
    spec, nobody = tiny_with_a.spec, EventStore.of([np.zeros(0, np.int64)] * 10)
    config = replace(PRIVATE, server_momentum=0.0, rounds=2)
    start, after_b, after_a = path_of(CohortEngine(tiny_with_a.model, spec), nobody, tiny_with_a.vector, config)
    moved_b, moved_a = (after_b - start)[spec.size_a :], (after_a - after_b)[: spec.size_a]
    want = config.noise_multiplier * config.clip_norm / (config.cohort_rate * 10)
    for moved in (moved_b, moved_a):
        assert np.std(moved) == pytest.approx(want, rel=5 / np.sqrt(2 * len(moved)))


def test_an_engine_of_a_part_takes_noise_of_that_part(tiny_with_a):
    """The engines agree on a part, with clipping per window and noise."""
    plan = replace(PLAN, sample_rate=0.6, expected_batch=2.0, clip_norm=0.2, noise_multiplier=0.7)
    users = histories(3).windows(np.arange(3), WINDOWS)
    for part in ("a", "b"):
        engines = (CohortEngine(tiny_with_a.model, tiny_with_a.spec), OpacusEngine(tiny_with_a.model, tiny_with_a.spec))
        first, second = (
            engine.of_part(part).train(tiny_with_a.vector, users, plan, [AesNoise.seeded(n) for n in range(3)])
            for engine in engines
        )
        assert np.abs(first - tiny_with_a.vector).max() > 1e-2
        np.testing.assert_allclose(second, first, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_plan": NoisePlan(name="blt", min_separation=2)}, "noise on A cannot take back"),
        ({"svd_every": 1}, "svd_every must be 0"),
        ({"wire": WireConfig(name="int8", error_feedback=True)}, "error_feedback of wire must be false"),
        ({"ranks": (2, 4)}, "ranks must be equal"),
        ({"adaptive_clip": AdaptiveClip(quantile=0.5)}, "deltas of A and of B differ in length"),
        ({"unit": "none", "buffer": Buffer(size=3)}, "an update that comes late is of the other part"),
    ],
)
def test_what_cannot_be_proved_or_means_nothing_is_refused(changes, reason):
    with pytest.raises(ConfigError, match=reason):
        replace(PRIVATE, **changes)


def test_a_program_has_fixed_trained_tensors_and_refuses_such_terms(tmp_path):
    with pytest.raises(ConfigError, match="its program trains the same numbers in every round"):
        check_terms(PRIVATE, WINDOWS)
    with pytest.raises(ConfigError, match="engine must be cohort or opacus where rounds alternate"):
        FederatedRunConfig(base=tmp_path / "base.pt", adapter=AdapterConfig(method="rolora"), engine="executorch")


def test_the_audits_run_both_halves_at_once(tiny_with_a):
    assert PRIVATE.alternate
    assert not plain_config(PRIVATE, tiny_with_a.vector, 20, seed=None).alternate
    assert "alternate" in left_out(PRIVATE)


def test_a_spec_of_everything_is_written_as_before_there_were_parts(tiny_with_a):
    spec = tiny_with_a.spec
    assert "train_b" not in spec.to_json()
    part = spec_of_part(spec, "a")
    assert AdapterSpec.from_json(part.to_json()) == part != AdapterSpec.from_json(spec.to_json()) == spec
    with pytest.raises(ConfigError, match="train_b must be true where A is frozen"):
        replace(part, train_a=False)


def test_an_adapter_with_a_frozen_half_cannot_alternate(tiny):
    with pytest.raises(ConfigError, match="A and B are not both trained"):
        simulate(CohortEngine(tiny.model, tiny.spec), histories(), tiny.vector, CONFIG)
