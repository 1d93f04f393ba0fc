"""The clip norm finds its quantile, and one user moves deltas and count together by what is charged for."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from ownlet.device.client import answer
from ownlet.device.train import local_deltas
from ownlet.server.adaptive_clip import count_std, delta_multiplier
from ownlet.server.checkpoint import ServerState
from ownlet.server.release import release
from ownlet.shared.config import FederationConfig
from ownlet.shared.delta import count_within
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.shared.server_config import AdaptiveClip
from ownlet.shared.wire import TrainRequest

CLIP = AdaptiveClip(quantile=0.5, learning_rate=0.3, count_noise=0.1)
CONFIG = FederationConfig(rounds=6, cohort_rate=0.5, clip_norm=0.15, noise_multiplier=1.0, adaptive_clip=CLIP, seed=3)


@pytest.mark.parametrize("clip_norm", [0.15, 0.21, 10.0])
def test_one_user_moves_deltas_and_count_together_by_one_over_the_noise_multiplier(
    world: Any, broken_shard: Any, clip_norm: float
) -> None:
    """The claim of the accounting, measured: the same noise with and without each user, scaled by its deviation."""
    config, shard, size = replace(CONFIG, clip_norm=clip_norm), broken_shard([7]), world.spec.num_trainable
    m = config.cohort_rate * world.num_users
    state = ServerState.start(config, world.spec, world.start, world.num_users)

    def released(users: list[int]) -> Any:
        request = TrainRequest(
            vector=world.start,
            round=1,
            version=0,
            base_hash=world.spec.base_hash,
            plan=config.plan,
            unit="user",
            clip_norm=clip_norm,
            users=tuple(users),
            seed=3,
            counts=True,
        )
        total = answer(request, shard).total.astype(np.float64)
        average, after = release(total, config, state, world.num_users, AesNoise.seeded("common"))
        share = config.adaptive_clip.quantile - math.log(after.clip_norm / clip_norm) / CLIP.learning_rate
        deltas = average * m / (delta_multiplier(config, world.num_users) * clip_norm)
        return np.append(deltas, share * m / count_std(config, world.num_users))

    everybody = list(range(10))
    moved = [np.linalg.norm(released(everybody) - released([u for u in everybody if u != gone])) for gone in everybody]
    assert max(moved) <= 1 / config.noise_multiplier * (1 + 1e-4)
    if clip_norm == 0.15:  # all deltas are longer than the clip but for the broken user's, who has none
        np.testing.assert_allclose([m for u, m in enumerate(moved) if u != 7], 1.0, rtol=1e-4)
        assert len(everybody) == size + 2


def test_the_round_costs_what_it_costs_with_a_fixed_clip(world: Any) -> None:
    result = world.run(CONFIG, 2)
    assert result.epsilon == epsilon(user_level_event(0.5, 1.0, 6), 1e-5)
    z, bits = delta_multiplier(CONFIG, world.num_users), 2 * count_std(CONFIG, world.num_users)
    assert z > 1.0
    assert 1 / math.sqrt(1 / z**2 + 1 / bits**2) == pytest.approx(1.0)


def test_the_clip_norm_comes_to_the_quantile_of_the_deltas(world: Any, broken_shard: Any) -> None:
    shard, users = broken_shard([]), range(world.num_users)
    noises = [AesNoise() for _ in users]
    deltas = local_deltas(shard.engine, world.start, shard.windows(users), CONFIG.plan, noises)
    norms = np.sort(np.linalg.norm(deltas, axis=1))
    for quantile, start in ((0.25, 0.1), (0.75, 0.5)):
        clip = AdaptiveClip(quantile=quantile, learning_rate=0.1)
        config = replace(CONFIG, rounds=60, cohort_rate=1.0, noise_multiplier=0.0, clip_norm=start, adaptive_clip=clip)
        last = [record.clip_norm for record in world.run(config).rounds][-5:]  # it steps to and fro by some percent
        place = int(quantile * world.num_users)  # between these two any clip has the right share within it
        assert 0.95 * norms[place - 1] < min(last) <= max(last) < 1.05 * norms[place]


def test_devices_are_told_the_clip_of_the_round_and_the_result_does_not_depend_on_nodes(world: Any) -> None:
    one, seven = world.run(CONFIG, 1), world.run(CONFIG, 7)
    clips = [record.clip_norm for record in one.rounds]
    assert clips[0] == 0.15
    assert len(set(clips)) == 6
    assert all(record.num_admitted == record.num_nodes for record in seven.rounds)  # norms fit the clip of the round
    assert clips == [record.clip_norm for record in seven.rounds]
    np.testing.assert_allclose(one.vector, seven.vector, atol=1e-5)


def test_a_resumed_run_goes_on_from_its_clip(world: Any, tmp_path: Path) -> None:
    path = tmp_path / "run"
    world.run(replace(CONFIG, rounds=3), checkpoint=path)
    resumed, whole = world.run(CONFIG, checkpoint=path, resume=True), world.run(CONFIG)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    assert [r.clip_norm for r in resumed.rounds] == [r.clip_norm for r in whole.rounds]


def test_a_void_round_leaves_the_clip_alone(world: Any) -> None:
    grid = world.grid(2)
    grid.tamper = lambda replies: []
    assert {record.clip_norm for record in world.run(CONFIG, grid=grid).rounds} == {0.15}


def test_a_count_that_users_cannot_have_is_rejected(world: Any) -> None:
    def tamper(replies: list[Message]) -> list[Message]:
        for reply in replies[:1]:
            total = reply.content["delta"]["total"].numpy().copy()
            total[-1] = 400.0
            reply.content["delta"] = ArrayRecord({"total": Array(total)})
        return replies

    grid = world.grid(4)
    grid.tamper = tamper
    (record,) = world.run(replace(CONFIG, rounds=1), grid=grid).rounds
    assert record.num_admitted == record.num_nodes - 1
    assert "the count must be at most half the users" in record.rejected[0]


def test_a_delta_that_is_not_finite_counts_as_outside() -> None:
    deltas = np.array([[0.1, 0.0], [np.nan, 0.0], [np.inf, 0.0], [3.0, 4.0]], np.float32)
    assert count_within(deltas, 1.0) == 1 - 2.0
    assert count_within(deltas, 5.0) == 2 - 2.0
    assert count_within(deltas[:0], 5.0) == 0.0


def test_a_cohort_too_small_for_the_noise_on_its_count_is_refused(world: Any) -> None:
    with pytest.raises(ConfigError, match="twice count_noise times the expected cohort must be above noise_multiplier"):
        world.run(replace(CONFIG, adaptive_clip=replace(CLIP, count_noise=0.01)))
    with pytest.raises(ConfigError, match="must be 0 where unit is not user"):
        replace(CONFIG, unit="none")
    with pytest.raises(ConfigError, match=r"quantile must be in \[0, 1\), got quantile=1.0"):
        AdaptiveClip(quantile=1.0)
