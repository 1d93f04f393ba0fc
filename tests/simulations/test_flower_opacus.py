from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import SimulatedNoise
from ownlet.shared.windows import cut_windows
from ownlet.simulations.benchmarks.flower_opacus import client_app, main, measure_flower_opacus, train_user
from ownlet.simulations.benchmarks.opacus_loop import measure_opacus_loop
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload
from ownlet.simulations.grid import InProcessGrid

SMALL = Workload(num_items=60, dim=16, rank=4, window_length=6)


@pytest.mark.parametrize("cached", [True, False])
def test_without_noise_a_client_does_to_each_user_what_the_engine_does(cached: bool) -> None:
    model, spec, vector = SMALL.base()
    vector[spec.trainable] = np.random.default_rng(0).normal(0, 0.05, spec.num_trainable)
    engine, plan = OpacusEngine(model, spec), replace(DP_PLAN, noise_multiplier=0.0)
    received = vector[spec.trainable].copy()
    for history in SMALL.histories(3):
        windows = cut_windows(history, SMALL.windows)
        expected = engine.train(vector, [windows], plan, [SimulatedNoise(0, 0, 0)])[0, spec.trainable]
        trained = train_user(received, windows, plan, SMALL, cached=cached)
        assert np.abs(expected - received).max() > 1e-3
        np.testing.assert_allclose(trained, expected, atol=1e-6)
    np.testing.assert_array_equal(received, vector[spec.trainable])


@pytest.mark.parametrize("cached", [True, False])
def test_the_noise_of_the_plan_reaches_the_update(cached: bool) -> None:
    _, spec, vector = SMALL.base()
    windows = cut_windows(SMALL.histories(1)[0], SMALL.windows)
    quiet, loud = replace(DP_PLAN, noise_multiplier=0.0), replace(DP_PLAN, noise_multiplier=50.0)
    torch.manual_seed(0)
    plain, noised = (train_user(vector[spec.trainable], windows, plan, SMALL, cached=cached) for plan in (quiet, loud))
    # each of the steps adds a normal of std multiplier * clip / batch, times the learning rate
    std = 50.0 * loud.clip_norm / loud.expected_batch * loud.learning_rate * loud.steps**0.5
    assert np.std(noised - plain) == pytest.approx(std, rel=0.1)


def test_stock_fedavg_averages_what_the_clients_answer() -> None:
    _, spec, vector = SMALL.base()
    result = FedAvg(fraction_evaluate=0.0).start(
        InProcessGrid(client_app, 2),
        ArrayRecord([vector[spec.trainable]]),
        num_rounds=2,
        train_config=ConfigRecord({"cached": True, "workload": json.dumps(asdict(SMALL))}),
    )
    (averaged,) = result.arrays.to_numpy_ndarrays()
    assert averaged.shape == (spec.num_trainable,)
    assert averaged.dtype == np.float32
    std = DP_PLAN.learning_rate / DP_PLAN.expected_batch * (2 * DP_PLAN.steps / 2) ** 0.5  # two rounds, two users
    assert np.std(averaged) == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("cohort, rounds", [(1, 3), (2, 1)])
def test_a_measurement_needs_two_users_and_two_rounds(cohort: int, rounds: int) -> None:
    with pytest.raises(ConfigError, match="must be at least 2, got"):
        measure_flower_opacus(cohort, rounds)
    with pytest.raises(ConfigError, match="must be at least 2, got"):
        main([f"--cohort={cohort}", f"--rounds={rounds}"])


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False])
def test_the_simulation_runs_and_gives_a_rate(cached: bool) -> None:
    pytest.importorskip("ray")
    assert measure_flower_opacus(4, 2, cached=cached, workload=SMALL) > 0


def test_the_loop_gives_a_rate_and_restores_the_threads() -> None:
    before = torch.get_num_threads()
    assert measure_opacus_loop(2, num_threads=before + 1, workload=SMALL) > 0
    assert torch.get_num_threads() == before
