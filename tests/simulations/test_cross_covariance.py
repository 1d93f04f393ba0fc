"""The cross-covariance of a round is what averaging whole products in NumPy says."""

from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import SimulatedNoise
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.cross_covariance import CrossCovarianceEngine
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

CONFIG = FederationConfig(
    rounds=2,
    cohort_rate=1.0,
    unit="none",
    noise_multiplier=0.0,
    server_momentum=0.0,
    seed=1,
    plan=Plan(steps=2, learning_rate=0.5),
    windows=WindowConfig(window_length=6),
)


def histories(count=9):
    rng = np.random.default_rng(4)
    return EventStore.of([rng.integers(1, 51, rng.integers(2, 14)) for _ in range(count)])


def errors_of(tiny, config, store, **options):
    """Return the error and the global adapter after each round."""
    engine, found = CrossCovarianceEngine(CohortEngine(tiny.model, tiny.spec), config), []
    simulate(
        engine,
        store,
        tiny.vector,
        config,
        on_round=lambda result, vector: found.append((engine.take(), vector)),
        **options,
    )
    return found


def products(spec, adapter):
    """Return B A of every layer, one after the other, by the layout that ``AdapterSpec`` documents."""
    flat, at_a, at_b = [], 0, spec.size_a
    for layer in spec.layers:
        a = adapter[at_a : at_a + spec.rank * layer.in_features].reshape(spec.rank, -1).astype(np.float64)
        b = adapter[at_b : at_b + spec.rank * layer.out_features].reshape(-1, spec.rank).astype(np.float64)
        at_a, at_b = at_a + a.size, at_b + b.size
        flat.append((b @ a).ravel())
    return np.concatenate(flat)


@pytest.mark.parametrize("changes", [{}, {"unit": "user", "clip_norm": 0.05}], ids=["unclipped", "clipped"])
def test_every_round_tells_what_whole_products_say(tiny_with_a, changes):
    spec, config, store = tiny_with_a.spec, replace(CONFIG, **changes), histories()
    start, found = tiny_with_a.vector, errors_of(tiny_with_a, config, store)
    for number, (error, after) in enumerate(found, start=1):
        noises = [SimulatedNoise(config.seed, number, user) for user in range(9)]
        users = store.windows(np.arange(9), config.windows)
        local = CohortEngine(tiny_with_a.model, spec).train(start, users, config.plan, noises)
        deltas = local - start
        if config.unit == "user":
            norms = np.linalg.norm(deltas.astype(np.float64), axis=1)
            assert (norms > config.clip_norm).any()
            deltas = deltas * np.minimum(1, config.clip_norm / norms)[:, None]
        sent = start + deltas
        mean = np.mean([products(spec, one) for one in sent], axis=0)
        missed = np.linalg.norm(mean - products(spec, sent.mean(axis=0)))
        want = missed / np.linalg.norm(mean - products(spec, start))
        assert want > 1e-3
        assert error == pytest.approx(want, rel=1e-3)
        start = after


def test_it_does_not_depend_on_how_users_are_spread_over_nodes(tiny_with_a):
    one, three = (
        [error for error, _ in errors_of(tiny_with_a, CONFIG, histories(), num_nodes=nodes)] for nodes in (1, 3)
    )
    np.testing.assert_allclose(three, one, rtol=1e-3)


def test_it_is_nothing_for_one_user_and_for_nobody(tiny_with_a):
    for error, _ in errors_of(tiny_with_a, CONFIG, histories(1)):
        assert error == pytest.approx(0, abs=1e-12)
    for error, _ in errors_of(tiny_with_a, CONFIG, EventStore.of([np.zeros(0, np.int64)] * 3)):
        assert error == 0.0


class MovesB:
    """Trains A and B and leaves A where it was."""

    def __init__(self, spec):
        self.spec = spec

    def train(self, vector, users, plan, noises):
        trained = np.repeat(vector[None], len(users), axis=0)
        trained[:, self.spec.size_a :] += np.random.default_rng(0).normal(
            size=(len(users), self.spec.size - self.spec.size_a)
        )
        return trained.astype(np.float32)


def test_it_is_nothing_where_a_stays(tiny_with_a):
    engine = CrossCovarianceEngine(MovesB(tiny_with_a.spec), CONFIG)
    engine.train(tiny_with_a.vector, [None] * 5, CONFIG.plan, [])
    assert engine.take() == pytest.approx(0, abs=1e-12)


def test_a_frozen_a_or_a_clip_norm_that_moves_is_refused(tiny, tiny_with_a):
    with pytest.raises(ConfigError, match="A and B are trained at once"):
        CrossCovarianceEngine(CohortEngine(tiny.model, tiny.spec), CONFIG)
    with pytest.raises(ConfigError, match="A and B are trained at once"):
        CrossCovarianceEngine(CohortEngine(tiny_with_a.model, tiny_with_a.spec), replace(CONFIG, alternate=True))
