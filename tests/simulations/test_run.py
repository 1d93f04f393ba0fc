from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.secure_config import SecureConfig
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

PLAN = Plan(steps=1, learning_rate=0.3)


def histories(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return EventStore.of([rng.integers(1, 51, rng.integers(0, 12)) for _ in range(count)])


def config(**changes):
    settings = {
        "rounds": 4,
        "cohort_rate": 0.5,
        "noise_multiplier": 0.7,
        "seed": 3,
        "plan": PLAN,
        "windows": WindowConfig(window_length=6),
    }
    return FederationConfig(**(settings | changes))


def test_the_adapter_does_not_depend_on_how_users_are_spread_over_nodes(tiny):
    engine = CohortEngine(tiny.model, tiny.spec)
    one, two, seven = (
        simulate(engine, histories(), tiny.vector, config(), num_nodes=nodes).vector for nodes in (1, 2, 7)
    )
    assert np.abs(one - tiny.vector).max() > 1e-3
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_allclose(seven, one, atol=1e-5)


def test_an_interrupted_simulation_resumes_to_the_same_adapter(tiny, tmp_path):
    engine = CohortEngine(tiny.model, tiny.spec)
    whole = simulate(engine, histories(), tiny.vector, config())

    class KilledError(Exception):
        pass

    def kill(result, vector):
        if result.round == 2:
            raise KilledError

    arguments = (engine, histories(), tiny.vector, config())
    with pytest.raises(KilledError):
        simulate(*arguments, checkpoint=tmp_path / "c", on_round=kill)
    rounds = []
    resumed = simulate(*arguments, checkpoint=tmp_path / "c", resume=True, on_round=lambda r, v: rounds.append(r.round))
    assert rounds == [3, 4]
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    assert resumed.epsilon == whole.epsilon


def test_window_mode_noises_on_the_device_and_charges_each_device(tiny):
    plan = Plan(steps=2, learning_rate=0.1, sample_rate=0.5, clip_norm=0.1, noise_multiplier=1.0)
    local = config(unit="window", noise_multiplier=0.0, plan=plan, clip_norm=10.0)
    engine = CohortEngine(tiny.model, tiny.spec)
    empty = EventStore.of([np.array([], np.int64)] * 40)
    result = simulate(engine, empty, tiny.vector, local)
    moved = (result.vector - tiny.vector)[tiny.spec.trainable]
    assert moved.std() > 0  # nobody has an event, and every asked device still adds its noise
    assert 0 < result.rounds[0].epsilon <= result.rounds[-1].epsilon < 20


def test_under_secure_aggregation_the_adapter_is_that_of_the_open_run_up_to_coding(tiny):
    engine = CohortEngine(tiny.model, tiny.spec)
    noiseless = config(rounds=2, noise_multiplier=0.0)
    masked = replace(noiseless, secure=SecureConfig(enabled=True))
    open_run, secure = (simulate(engine, histories(), tiny.vector, one, num_nodes=8) for one in (noiseless, masked))
    assert np.abs(secure.vector - tiny.vector).max() > 1e-3
    np.testing.assert_allclose(secure.vector, open_run.vector, atol=1e-5)
    assert [record.num_admitted for record in secure.rounds] == [8, 8]


@pytest.mark.slow
def test_under_secure_aggregation_the_noised_adapter_is_the_open_one_on_average(tiny):
    engine, rounds = CohortEngine(tiny.model, tiny.spec), range(25)
    one = config(rounds=1, cohort_rate=1.0, noise_multiplier=1.0, clip_norm=0.05)
    masked = replace(one, secure=SecureConfig(enabled=True))
    clean = simulate(engine, histories(), tiny.vector, replace(one, noise_multiplier=0.0)).vector
    for each, excess in ((one, 1.0), (masked, 8 / 7)):  # of 8 nodes 1 may drop out, and none did
        runs = [simulate(engine, histories(), tiny.vector, replace(each, seed=s), num_nodes=8).vector for s in rounds]
        noise = (np.array(runs, dtype=np.float64) - clean)[:, tiny.spec.trainable] * 40 / (0.05 * excess**0.5)
        assert abs(noise.mean()) < 5 / noise.size**0.5
        assert np.abs(noise.mean(axis=0)).max() < 6 / 5
        assert noise.std() == pytest.approx(1.0, abs=5 / (2 * noise.size) ** 0.5)


def test_the_run_stops_before_the_round_that_would_exceed_the_target(tiny):
    engine = CohortEngine(tiny.model, tiny.spec)
    spent = [r.epsilon for r in simulate(engine, histories(), tiny.vector, config()).rounds]
    target = (spent[1] + spent[2]) / 2
    result = simulate(engine, histories(), tiny.vector, config(target_epsilon=target))
    assert len(result.rounds) == 2
    assert result.epsilon == spent[1] <= target
    assert "more than the target" in result.stopped
