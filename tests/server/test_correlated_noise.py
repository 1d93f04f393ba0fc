"""Noise that takes itself back: the stream equals the matrix, one user moves it by what is charged, orders are kept."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from ownlet.server.checkpoint import load_checkpoint, spent_event
from ownlet.server.cohorts import check_separation, draw_cohort, draw_groups
from ownlet.server.correlated_noise import NoiseState, draw_noise, realised_multiplier, run_sensitivity
from ownlet.server.noise_factor import sensitivity
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.shared.server_config import AdaptiveClip, NoisePlan

PLAN = NoisePlan(name="blt", buffers=2, min_separation=3)
CONFIG = FederationConfig(rounds=8, noise_plan=PLAN, clip_norm=0.15, noise_multiplier=1.0, server_momentum=0.0, seed=3)


def matrix_of(state: NoiseState, rounds: int) -> NDArray[np.float64]:
    matrix: NDArray[np.float64] = toeplitz(state.factor.coefficients(rounds), np.zeros(rounds))
    return matrix


def test_the_stream_is_the_inverse_of_the_matrix_times_independent_noise() -> None:
    size, state = 5, NoiseState.start(CONFIG, 5)
    std = 2.0 * run_sensitivity(CONFIG, state.factor)
    c, rows = matrix_of(state, 8), []
    for number in range(8):
        noise, state = draw_noise(CONFIG, state, 2.0, AesNoise.seeded(number))
        rows.append(noise)
    independent = np.stack([AesNoise.seeded(number).gaussian(size, std) for number in range(8)])
    np.testing.assert_allclose(c @ np.stack(rows), independent, atol=1e-9)


def test_noise_of_a_void_round_is_owed_so_that_prefix_sums_carry_what_was_planned() -> None:
    state, void = NoiseState.start(CONFIG, 4), {2, 3, 6}
    planned, released = np.zeros(4), np.zeros(4)
    straight = NoiseState.start(CONFIG, 4)
    for number in range(8):
        noise, state = draw_noise(CONFIG, state, 2.0, AesNoise.seeded(number))
        plain, straight = draw_noise(CONFIG, straight, 2.0, AesNoise.seeded(number))
        planned += plain
        if number in void:
            state = state.after_void(noise)
        else:
            released += noise
            np.testing.assert_allclose(released, planned, atol=1e-9)


def _sums(world: Any, config: FederationConfig, shard: Any) -> NDArray[np.float64]:
    """Return the noised sum that each round released, (rounds, num_trainable)."""
    vectors = [world.start]
    world.run(config, grid=world.grid(2, shard), on_round=lambda record, vector: vectors.append(vector))
    steps = [(after.astype(np.float64) - before)[world.spec.trainable] for before, after in pairwise(vectors)]
    return np.stack(steps) * config.expected_share * world.num_users


@pytest.mark.parametrize("group", [0, 1, 2])
def test_one_user_moves_a_whole_run_by_the_sensitivity_that_the_noise_is_made_for(
    world: Any, broken_shard: Any, group: int
) -> None:
    """The claim of the accounting, measured: two runs with the same noise, with and without one user."""
    user = int(np.flatnonzero(draw_groups(CONFIG, world.num_users) == group)[0])
    difference = _sums(world, CONFIG, broken_shard([])) - _sums(world, CONFIG, broken_shard([user]))
    state = NoiseState.start(CONFIG, world.spec.num_trainable)
    moved = float(np.linalg.norm(matrix_of(state, CONFIG.rounds) @ difference)) / CONFIG.clip_norm
    most = run_sensitivity(CONFIG, state.factor)
    assert moved <= most * (1 + 1e-4)
    if group == 0:  # the worst pattern: rounds 0, 3, 6; every delta of this world is longer than the clip
        assert moved == pytest.approx(most, rel=1e-4)


def test_a_run_is_charged_as_one_gaussian_and_each_round_as_far_as_it_got(world: Any) -> None:
    result = world.run(CONFIG)
    assert result.epsilon == pytest.approx(epsilon(user_level_event(1.0, 1.0, 1), 1e-5))
    factor = NoiseState.start(CONFIG, 1).factor
    for record in result.rounds:
        so_far = sensitivity(factor, record.round, 3, 3) / run_sensitivity(CONFIG, factor)
        assert record.epsilon == pytest.approx(epsilon(user_level_event(1.0, 1.0 / so_far, 1), 1e-5))
    assert realised_multiplier(CONFIG, factor, 8) == pytest.approx(1.0)
    assert epsilon(spent_event(CONFIG, 0, np.zeros(1, np.int64)), 1e-5) == 0.0
    with pytest.raises(ConfigError, match="rounds must be at most those of the run"):
        realised_multiplier(CONFIG, factor, 9)


def test_groups_are_even_and_take_part_in_turn(world: Any) -> None:
    groups = draw_groups(CONFIG, 20)
    assert sorted(np.bincount(groups).tolist()) == [6, 7, 7]
    assert not np.array_equal(groups, np.arange(20) % 3)
    for number in range(1, 9):
        assert np.array_equal(
            draw_cohort(CONFIG, 20, number, groups=groups), np.flatnonzero(groups == (number - 1) % 3)
        )
    assert [record.num_asked for record in world.run(CONFIG).rounds] == [
        int((groups == number % 3).sum()) for number in range(8)
    ]


def test_a_user_is_never_asked_too_soon_or_after_the_last_round() -> None:
    cohort = np.array([1, 4])
    check_separation(CONFIG, cohort, 5, np.array([4, 2, 4, 4, 0]))
    with pytest.raises(FederationError, match="rounds of one user must be 3 apart, got 2"):
        check_separation(CONFIG, cohort, 5, np.array([4, 2, 4, 4, 3]))
    with pytest.raises(FederationError, match="within the 8 that noise was made for"):
        check_separation(CONFIG, cohort, 9, np.zeros(5, np.int64))
    check_separation(replace(CONFIG, noise_plan=NoisePlan()), cohort, 5, np.zeros(0, np.int64))


def test_a_resumed_run_goes_on_with_its_buffers_and_groups(world: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(record: Any, vector: Any) -> None:
        if record.round == 4:
            raise Stop

    for seed in (3, None):
        config, path = replace(CONFIG, seed=seed), tmp_path / f"run-{seed}"
        with pytest.raises(Stop):
            world.run(config, checkpoint=path, on_round=stop)
        before = load_checkpoint(path, config, world.spec, world.num_users)
        resumed = world.run(config, checkpoint=path, resume=True)
        after = load_checkpoint(path, config, world.spec, world.num_users)
        assert np.array_equal(before.groups, after.groups)
        assert np.array_equal(after.participations, np.where(after.groups == 2, 2, 3))
        if seed is not None:
            np.testing.assert_array_equal(resumed.vector, world.run(config).vector)
        with pytest.raises(FederationError, match="other values of \\['rounds'\\]"):
            load_checkpoint(path, replace(config, rounds=9), world.spec, world.num_users)


def test_void_rounds_and_dropouts_are_charged_and_leave_the_noise_as_it_is(world: Any, broken_shard: Any) -> None:
    config = replace(CONFIG, quorum=0.5)
    grid = world.grid(2)
    calls = iter([1, 2, 0, 1, 2, 0, 2, 2])
    grid.tamper = lambda replies: sorted(replies, key=lambda reply: reply.metadata.src_node_id)[: next(calls)]
    result = world.run(config, grid=grid)
    assert [record.void for record in result.rounds] == [False, False, True, False, False, True, False, False]
    assert result.epsilon == world.run(config).epsilon
    nobody = _final(world, config, broken_shard(range(20)))
    sums = (result.vector - nobody)[world.spec.trainable] * config.expected_share * world.num_users
    groups = draw_groups(config, world.num_users)
    answered = [(0, 1), (1, 2), (0, 1), (1, 2), (0, 2), (1, 2)]  # (group, nodes) of the rounds that were not void
    expected = np.zeros(world.spec.num_trainable)
    for group, nodes in answered:
        users = [user for user in np.flatnonzero(groups == group).tolist() if user % 2 < nodes]
        alone = replace(config, noise_multiplier=0.0, rounds=3)
        expected += _of_users(world, alone, broken_shard, users)
    np.testing.assert_allclose(sums, expected, atol=1e-4)


def _final(world: Any, config: FederationConfig, shard: Any) -> Any:
    return world.run(config, grid=world.grid(2, shard)).vector


def _of_users(world: Any, config: FederationConfig, broken_shard: Any, users: list[int]) -> Any:
    """Return the sum of these users' clipped deltas."""
    shard = broken_shard([user for user in range(world.num_users) if user not in users])
    moved = (_final(world, config, shard) - world.start)[world.spec.trainable]
    return moved * config.expected_share * world.num_users


def test_what_does_not_go_together_is_refused() -> None:
    for changes, rule in (
        ({"unit": "none"}, "independent where unit is not user"),
        ({"turns": 2}, "turns must be 0 where noise_plan is blt"),
        ({"adaptive_clip": AdaptiveClip(quantile=0.5)}, "rounds of one clip norm"),
        ({"svd_every": 1}, "turned coordinates"),
        ({"rounds": 2}, "min_separation must be at most rounds, 2"),
    ):
        with pytest.raises(ConfigError, match=rule):
            replace(CONFIG, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name must be independent or blt"):
        NoisePlan(name="tree")  # type: ignore[arg-type]
