"""The round loop: cohorts, node splits, privacy charges, stopping, voids."""

import math
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from ownlet.server.cohorts import draw_cohort
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.privacy import epsilon, user_level_event, user_turns_event, window_level_event

PRIVATE = FederationConfig(rounds=5, cohort_rate=0.5, clip_norm=0.15, noise_multiplier=1.0, seed=3)
LOCAL = FederationConfig(
    rounds=6,
    cohort_rate=0.3,
    unit="window",
    clip_norm=5.0,
    seed=3,
    plan=Plan(steps=2, clip_norm=1.0, noise_multiplier=4.0),
)


@pytest.mark.parametrize("config", [PRIVATE, LOCAL, replace(PRIVATE, unit="none")], ids=["user", "window", "none"])
def test_the_result_does_not_depend_on_how_users_are_spread_over_nodes(world: Any, config: FederationConfig) -> None:
    one, two, seven = (world.run(config, num_nodes).vector for num_nodes in (1, 2, 7))
    assert not np.array_equal(one, world.start)
    np.testing.assert_allclose(two, one, atol=1e-5)
    np.testing.assert_allclose(seven, one, atol=1e-5)


def test_a_noiseless_round_is_the_sum_of_clipped_deltas_over_the_public_denominator(world: Any) -> None:
    config = replace(PRIVATE, rounds=1, noise_multiplier=0.0)
    cohort = draw_cohort(config, world.num_users, 1)
    np.testing.assert_allclose(world.run(config, 3).vector, world.expected_step(config, cohort), atol=1e-6)


def test_unit_none_neither_clips_nor_adds_noise(world: Any) -> None:
    config = FederationConfig(rounds=1, cohort_rate=1.0, unit="none", clip_norm=0.01, noise_multiplier=5.0, seed=3)
    unclipped = replace(config, clip_norm=1e9)
    np.testing.assert_allclose(world.run(config, 2).vector, world.expected_step(unclipped, range(20)), atol=1e-6)


def test_cohorts_are_poisson_samples() -> None:
    rounds, num_users, rate = 300, 400, 0.1
    config = replace(PRIVATE, cohort_rate=rate)
    masks = np.zeros((rounds, num_users), bool)
    for number in range(rounds):
        masks[number, draw_cohort(config, num_users, number + 1)] = True
    low, high = binom.ppf([1e-6, 1 - 1e-6], rounds * num_users, rate)
    assert low <= masks.sum() <= high
    sizes = masks.sum(axis=1)  # a fixed size would have variance 0; Poisson sampling has N q (1 - q) = 36
    assert 25 < sizes.var() < 50
    assert binom.ppf(1e-7, rounds, rate) <= masks.sum(axis=0).min()
    assert masks.sum(axis=0).max() <= binom.ppf(1 - 1e-7, rounds, rate)
    together = (masks[:, :-1] & masks[:, 1:]).mean()  # neighbours are independent
    assert together == pytest.approx(rate**2, abs=0.002)


def test_without_a_seed_cohorts_cannot_be_repeated() -> None:
    config = replace(PRIVATE, seed=None)
    assert not np.array_equal(draw_cohort(config, 1000, 1), draw_cohort(config, 1000, 1))


def test_an_empty_cohort_still_adds_noise_and_is_charged(world: Any) -> None:
    config = FederationConfig(rounds=1, cohort_rate=1e-9, clip_norm=0.15, noise_multiplier=1.0, seed=3)
    result = world.run(config)
    assert result.rounds[0].num_asked == 0
    assert not np.array_equal(result.vector, world.start)
    assert not result.rounds[0].void
    assert result.epsilon == epsilon(user_level_event(1e-9, 1.0, 1), 1e-5)


@pytest.mark.parametrize("seed", [3, None])
def test_noise_is_independent_between_rounds(world: Any, seed: int | None) -> None:
    config = replace(PRIVATE, cohort_rate=1e-9, server_momentum=0.0, rounds=3, seed=seed)
    vectors = [world.start]
    world.run(config, on_round=lambda record, vector: vectors.append(vector))
    steps = [(after - before)[world.spec.trainable] for before, after in pairwise(vectors)]
    for first, second in combinations(steps, 2):
        assert np.linalg.norm(first - second) > 0.1 * np.linalg.norm(first)


def test_epsilon_of_each_round_is_that_of_the_composed_rounds(world: Any) -> None:
    result = world.run(PRIVATE)
    expected = [epsilon(user_level_event(0.5, 1.0, number), 1e-5) for number in range(1, 6)]
    assert [record.epsilon for record in result.rounds] == expected
    assert world.run(replace(PRIVATE, noise_multiplier=0.0)).epsilon == math.inf


def test_the_run_stops_before_the_round_that_would_exceed_the_target(world: Any) -> None:
    spent = [epsilon(user_level_event(0.5, 1.0, number), 1e-5) for number in range(1, 6)]
    result = world.run(replace(PRIVATE, target_epsilon=(spent[2] + spent[3]) / 2))
    assert len(result.rounds) == 3
    assert result.epsilon == spent[2]
    assert "round 4 would spend" in result.stopped
    np.testing.assert_array_equal(result.vector, world.run(replace(PRIVATE, rounds=3)).vector)
    exactly = world.run(replace(PRIVATE, target_epsilon=spent[2]))
    assert len(exactly.rounds) == 3  # reaching the target is allowed


def test_a_target_below_the_first_round_changes_nothing(world: Any) -> None:
    result = world.run(replace(PRIVATE, target_epsilon=1e-3))
    assert (result.rounds, result.epsilon, result.version) == ((), 0.0, 0)
    np.testing.assert_array_equal(result.vector, world.start)


def test_under_unit_window_the_most_asked_user_is_charged(world: Any) -> None:
    result = world.run(LOCAL, 2)
    counts = np.zeros(world.num_users, int)
    for record in result.rounds:
        counts[draw_cohort(LOCAL, world.num_users, record.round)] += 1
        assert record.epsilon == epsilon(window_level_event(LOCAL.plan, counts.max()), 1e-5)
    first = epsilon(window_level_event(LOCAL.plan, 1), 1e-5)
    stopped = world.run(replace(LOCAL, target_epsilon=first), 2)
    assert 1 <= len(stopped.rounds) < 6
    assert stopped.epsilon == first


@pytest.mark.parametrize(("rounds", "turns"), [(5, 1), (7, 3), (4, 4)])
def test_with_turns_everybody_is_in_as_many_rounds_and_any_of_them_equally_often(rounds: int, turns: int) -> None:
    config, num_users = replace(LOCAL, rounds=rounds, turns=turns), 3000
    asked, sizes = np.zeros(num_users, np.int64), []
    for number in range(1, rounds + 1):
        cohort = draw_cohort(config, num_users, number, asked)
        assert np.array_equal(cohort, np.unique(cohort))
        asked[cohort] += 1
        sizes.append(len(cohort))
    assert (asked == turns).all()
    low, high = binom.ppf([1e-7, 1 - 1e-7], num_users, turns / rounds)
    assert all(low <= size <= high for size in sizes)


def test_a_run_with_turns_charges_them_and_divides_by_the_share_that_they_give(world: Any) -> None:
    config = replace(LOCAL, rounds=2, turns=1, cohort_rate=0.9)
    result = world.run(config, 2)
    assert result.epsilon == epsilon(window_level_event(config.plan, 1), 1e-5)
    assert config.expected_share == 0.5


def test_turns_of_whole_users_are_charged_in_full(world: Any) -> None:
    config = replace(PRIVATE, rounds=4, turns=2, target_epsilon=math.inf)
    result = world.run(config, 2)
    assert result.epsilon == epsilon(user_turns_event(config.noise_multiplier, 2), config.dp_delta)


def test_the_bound_of_a_delta_leaves_room_for_its_own_noise() -> None:
    plan = Plan(steps=3, learning_rate=0.2, expected_batch=2.0, clip_norm=0.5, noise_multiplier=4.0)
    config, size = replace(LOCAL, plan=plan, clip_norm=0.3), 500
    room = config.delta_bound(size) - 0.3
    noise = np.random.default_rng(0).normal(0, 0.1 * 4.0 * 0.5, (4000, 3, size)).sum(axis=1)
    norms = np.linalg.norm(noise, axis=1)
    assert norms.max() < room < 1.25 * norms.mean()
    assert replace(config, unit="none").delta_bound(size) == math.inf
    assert replace(config, unit="user").delta_bound(size) == 0.3


def test_a_void_round_changes_nothing_but_what_is_charged(world: Any) -> None:
    grid = world.grid(2)
    grid.tamper = lambda replies: []
    result = world.run(PRIVATE, grid=grid)
    np.testing.assert_array_equal(result.vector, world.start)
    assert all(record.void and record.num_missing == 2 and record.update_norm == 0 for record in result.rounds)
    assert result.epsilon == epsilon(user_level_event(0.5, 1.0, 5), 1e-5)


def test_a_void_round_leaves_momentum_alone(world: Any) -> None:
    config = replace(PRIVATE, noise_multiplier=0.0, cohort_rate=1.0, rounds=3)
    grid = world.grid(1)
    calls = iter([True, False, True])
    grid.tamper = lambda replies: replies if next(calls) else []
    with_void = world.run(config, grid=grid)
    np.testing.assert_allclose(with_void.vector, world.run(replace(config, rounds=2)).vector, atol=1e-6)
    assert (with_void.version, [record.void for record in with_void.rounds]) == (2, [False, True, False])


def test_on_round_sees_every_record_and_the_adapter_of_that_round(world: Any) -> None:
    seen: list[Any] = []
    result = world.run(PRIVATE, on_round=lambda record, vector: seen.append((record, vector)))
    assert [record for record, _ in seen] == list(result.rounds)
    np.testing.assert_array_equal(seen[-1][1], result.vector)
    np.testing.assert_array_equal(seen[1][1], world.run(replace(PRIVATE, rounds=2)).vector)


def test_without_a_seed_devices_are_not_sent_one(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = world.grid(1)
    sent: list[Any] = []
    push = grid.push_messages
    monkeypatch.setattr(grid, "push_messages", lambda messages: (sent.extend(messages), push(messages))[1])
    world.run(replace(PRIVATE, seed=None, cohort_rate=1.0, rounds=1), grid=grid)
    assert "seed" not in sent[-1].content["request"]
    assert sent[-1].content["request"]["users"] == list(range(20))


def test_a_node_of_real_users_refuses_a_seed_that_the_server_chose(world, noiseless) -> None:
    real = world.grid(simulated=False)
    seeded = world.run(noiseless, grid=real).rounds[0]
    assert seeded.void
    assert seeded.num_admitted == 0
    assert not world.run(replace(noiseless, seed=None), grid=real).rounds[0].void
