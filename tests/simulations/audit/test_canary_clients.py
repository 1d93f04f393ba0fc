import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian
from scipy import integrate, stats

import ownlet.server.rounds as rounds
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.canary_clients import (
    CanaryShard,
    audit_canary_clients,
    epsilon_of_normals,
    random_directions,
)
from ownlet.simulations.audit.one_run_users import audit_one_run_users
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.store import EventStore

WINDOWS = WindowConfig(window_length=6)
CONFIG = FederationConfig(
    rounds=1, cohort_rate=1.0, noise_multiplier=2.0, plan=Plan(steps=1, learning_rate=0.3), windows=WINDOWS
)
SAMPLED = replace(CONFIG, rounds=6, cohort_rate=0.4, noise_multiplier=1.5)


@pytest.fixture(scope="module")
def engine(tiny) -> CohortEngine:
    return CohortEngine(tiny.model, tiny.spec, threads=1)


def users(count: int = 30) -> EventStore:
    rng = np.random.default_rng(0)
    return EventStore.of([rng.integers(1, 51, 8) for _ in range(count)])


@pytest.fixture
def forgetful_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that leaves the noise out."""
    correct = rounds.release

    def without_noise(total, config, *rest):
        return correct(total, replace(config, noise_multiplier=0.0), *rest)

    monkeypatch.setattr(rounds, "release", without_noise)


@pytest.mark.parametrize("observe", ["rounds", "final"])
def test_correct_rounds_stay_below_their_claim(engine, observe) -> None:
    result = audit_canary_clients(engine, CONFIG, store=users(), observe=observe, noise_seed=1)
    assert result.claim.epsilon == pytest.approx(get_epsilon_gaussian(2.0, 1e-5), abs=0.01)
    assert result.epsilon_lower < result.claim.epsilon
    assert not result.flagged
    # the release is canaries, users and noise: the first two add up to some C's, the noise to sigma C sqrt(d)
    expected = 1 / (CONFIG.noise_multiplier * math.sqrt(engine.spec.num_trainable))
    measured = result.figures["mean_cosine_sent"] - result.figures["mean_cosine_unsent"]
    assert measured == pytest.approx(expected, rel=0.6)


@pytest.mark.parametrize("observe", ["rounds", "final"])
def test_a_server_that_forgets_the_noise_is_caught(engine, observe, forgetful_server) -> None:
    result = audit_canary_clients(engine, CONFIG, observe=observe)
    assert result.epsilon_lower > 1.5 * result.claim.epsilon
    assert result.flagged


def test_a_node_that_does_not_clip_is_caught(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    # nor does the server check norms, which would void the round
    monkeypatch.setattr(FederationConfig, "delta_bound", lambda config, num_trainable, clip_norm=None: 1e6)
    assert audit_canary_clients(engine, CONFIG).flagged


@pytest.mark.slow
def test_cohorts_of_several_rounds_are_attacked_round_by_round(engine) -> None:
    result = audit_canary_clients(engine, SAMPLED, noise_seed=2)
    assert result.epsilon_lower < result.claim.epsilon
    assert result.claim.sample_rate == 0.4


def test_a_whole_users_delta_is_a_canary_too(engine) -> None:
    result = audit_one_run_users(engine, replace(CONFIG, noise_multiplier=1.0), num_items=50, noise_seed=5)
    assert 0 < result.epsilon_lower < result.claim.epsilon
    assert result.claim.unit == "user"


def test_a_whole_users_delta_shows_that_noise_is_missing(engine, forgetful_server) -> None:
    assert audit_one_run_users(engine, CONFIG, num_items=50).flagged


def test_canaries_send_their_directions_and_real_users_what_they_learned(tiny, engine) -> None:
    directions = 3.0 * random_directions(2, tiny.spec.num_trainable, np.random.default_rng(0))
    shard = CanaryShard(engine, users(3), WINDOWS, directions)
    windows = shard.windows([4, 0, 3])
    trained = shard.engine.train(tiny.vector, windows, CONFIG.plan, [AesNoise.seeded(0)] * 3)
    moved = (trained - tiny.vector)[:, tiny.spec.trainable]
    np.testing.assert_allclose(moved[[0, 2]], directions[[1, 0]], atol=1e-6)
    alone = engine.train(tiny.vector, [windows[1]], CONFIG.plan, [AesNoise.seeded(0)])
    np.testing.assert_allclose(trained[1], alone[0], atol=1e-6)
    with pytest.raises(KeyError):
        shard.windows([5])


@pytest.mark.parametrize(("first", "second"), [((0, 1), (1, 1)), ((0, 1), (0.5, 1.4)), ((0, 1), (0.3, 0.6))])
def test_the_epsilon_between_two_normals_gives_back_delta(first, second) -> None:
    epsilon = epsilon_of_normals(first, second, 1e-4)
    p, q = stats.norm(*first), stats.norm(*second)

    def distance(a, b):  # the definition, integrated numerically
        return integrate.quad(lambda x: max(0.0, a.pdf(x) - math.exp(epsilon) * b.pdf(x)), -12, 12, limit=2000)[0]

    assert max(distance(p, q), distance(q, p)) == pytest.approx(1e-4, rel=1e-3)


def test_two_equal_spreads_are_a_gaussian_mechanism() -> None:
    assert epsilon_of_normals((0, 2), (1, 2), 1e-5) == pytest.approx(get_epsilon_gaussian(2.0, 1e-5), abs=1e-4)
    assert epsilon_of_normals((0, 1), (0, 1), 1e-5) == 0.0


def test_only_user_level_rounds_are_audited(engine) -> None:
    with pytest.raises(ConfigError, match="unit"):
        audit_canary_clients(engine, replace(CONFIG, unit="none"))


@pytest.mark.slow
def test_twenty_audits_of_correct_rounds_never_exceed_the_claim(engine) -> None:
    results = [audit_canary_clients(engine, SAMPLED, store=users(), seed=seed) for seed in range(20)]
    assert max(result.epsilon_lower for result in results) <= results[0].claim.epsilon
    estimates = [result.figures["epsilon_estimate"] for result in results]
    assert 0.3 * results[0].claim.epsilon < np.median(estimates) < 2 * results[0].claim.epsilon
