"""Expectations: closed forms of two and three steps, written out by hand from algorithm 2 of Reddi et al. 2021."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ownlet.server.optimizer import OptimizerState, server_step
from ownlet.shared.adapter import AdapterSpec, LayerShape
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.server_config import ServerOptimizer

SPEC = AdapterSpec(layers=(LayerShape(name="x", in_features=2, out_features=3),), rank=1, alpha=1.0, base_hash="b")
CONFIG = FederationConfig(cohort_rate=0.25, clip_norm=0.5, noise_multiplier=2.0, server_momentum=0.9)


def run(config: FederationConfig, averages: list[float]) -> tuple[Any, OptimizerState, list[float]]:
    """Return the last adapter, the last state, and what each step added to every trained number."""
    vector, state = np.zeros(SPEC.size, np.float32), OptimizerState.start(config.server_optimizer, SPEC.num_trainable)
    values = [0.0]
    for number, average in enumerate(averages, 1):
        vector, state = server_step(SPEC, vector, state, np.full(SPEC.num_trainable, average), config, number)
        values.append(float(vector[-1]))
    return vector, state, [after - before for before, after in pairwise(values)]


def test_momentum_is_that_of_fedavgm() -> None:
    vector, state, _ = run(replace(CONFIG, server_learning_rate=0.5, server_momentum=0.8), [1.0, 1.0, 1.0])
    # momentum 1, 1.8, 2.44; the adapter moves by half their sum
    np.testing.assert_allclose(state.momentum, 2.44)
    np.testing.assert_allclose(vector[SPEC.trainable], 2.62, rtol=1e-6)
    assert not vector[: SPEC.size_a].any()  # the frozen A never moves


def test_fedadam_and_fedyogi_take_the_steps_of_the_paper() -> None:
    # tau = .1, so v starts at .01; deltas 1, -.5; beta1 = .5, beta2 = .75: m = .5, 0.0 ... -> .5, then .25 - .25 = 0
    config = replace(CONFIG, server_learning_rate=0.1, server_momentum=0.5)
    adam = replace(config, server_optimizer=ServerOptimizer(name="fedadam", beta2=0.75, tau=0.1))
    _, state, steps = run(adam, [1.0, -0.4])
    first, second = 0.75 * 0.01 + 0.25 * 1.0, 0.75 * (0.75 * 0.01 + 0.25) + 0.25 * 0.16
    np.testing.assert_allclose(steps, [0.1 * 0.5 / (first**0.5 + 0.1), 0.1 * 0.05 / (second**0.5 + 0.1)], rtol=1e-5)
    np.testing.assert_allclose(state.squares, second)
    yogi = replace(config, server_optimizer=ServerOptimizer(name="fedyogi", beta2=0.75, tau=0.1))
    _, state, steps = run(yogi, [1.0, -0.4])
    first, second = 0.01 + 0.25 * 1.0, 0.01 + 0.25 * 1.0 - 0.25 * 0.16  # v rises to a large square, falls to a small
    np.testing.assert_allclose(steps, [0.1 * 0.5 / (first**0.5 + 0.1), 0.1 * 0.05 / (second**0.5 + 0.1)], rtol=1e-5)
    np.testing.assert_allclose(state.squares, second)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_an_adaptive_step_is_as_long_for_small_deltas_as_for_large_ones(name: Any) -> None:
    """What sets them apart from momentum: only the sizes of deltas against each other count, above tau."""
    config = replace(CONFIG, server_learning_rate=0.01, server_momentum=0.0)
    config = replace(config, server_optimizer=ServerOptimizer(name=name, beta2=0.0, tau=1e-9))
    for size in (1e-3, 1.0):
        np.testing.assert_allclose(run(config, [size])[2], [0.01], rtol=1e-5)


def test_the_schedule_scales_the_step_and_not_the_momentum() -> None:
    config = replace(CONFIG, rounds=6, schedule="linear", warmup_rounds=2, server_momentum=0.0)
    _, state, steps = run(config, [1.0] * 6)
    np.testing.assert_allclose(steps, [1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4], rtol=1e-5)
    np.testing.assert_array_equal(state.momentum, 1.0)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
def test_a_resumed_run_ends_with_the_same_adapter(world: Any, tmp_path: Path, name: Any) -> None:
    config, path = FederationConfig(rounds=5, cohort_rate=0.5, clip_norm=0.15, seed=3), tmp_path / "run"
    config = replace(config, server_learning_rate=0.01, server_optimizer=ServerOptimizer(name=name))
    world.run(replace(config, rounds=2), checkpoint=path)
    resumed = world.run(config, checkpoint=path, resume=True)
    whole = world.run(config)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    momentum = world.run(replace(config, server_optimizer=ServerOptimizer()))
    assert not np.allclose(whole.vector, momentum.vector)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"beta2 must be in \[0, 1\), got beta2=1.0"):
        ServerOptimizer(beta2=1.0)
    with pytest.raises(ConfigError, match="tau must be positive"):
        ServerOptimizer(tau=0.0)
    with pytest.raises(ConfigError, match="fedavgm, fedadam, fedyogi"):
        ServerOptimizer(name="adagrad")  # type: ignore[arg-type]
