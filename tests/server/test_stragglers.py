"""Slow devices: deadlines, over-selection, late replies, and buffered asynchronous rounds, by a simulated clock."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ownlet.device.client import make_client_app
from ownlet.server.buffered import draw_idle, staleness_weight
from ownlet.server.cohorts import draw_cohort
from ownlet.server.rounds import FederationResult, run_rounds
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import epsilon, user_level_event, window_level_event
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.straggler_config import Buffer, Stragglers
from ownlet.simulations.slow_grid import SimulatedClock, SlowGrid

EVERYBODY = FederationConfig(
    rounds=1, cohort_rate=1.0, clip_norm=0.15, noise_multiplier=0.0, seed=1, quorum=0.1, server_momentum=0.0
)
LATE = Stragglers(deadline_seconds=100.0)


def _run(
    world: Any, config: FederationConfig, seconds_of: Callable[[int, int], float], **options: Any
) -> tuple[FederationResult, SimulatedClock]:
    """One node for each user, which takes as long as it is told."""
    shard, clock = world.shard(), SimulatedClock()
    grid = SlowGrid(make_client_app(lambda context: shard, simulated=True), world.num_users, clock, seconds_of)
    result = run_rounds(grid, config, world.spec, world.start, world.num_users, clock=clock, **options)
    return result, clock


def test_a_round_takes_what_has_come_by_its_deadline(world: Any) -> None:
    config = replace(EVERYBODY, stragglers=LATE)
    result, clock = _run(world, config, lambda user, times: 10.0 if user % 2 else 1000.0)
    np.testing.assert_allclose(result.vector, world.expected_step(config, range(1, 20, 2)), atol=1e-6)
    (record,) = result.rounds
    assert (record.num_admitted, record.num_missing, record.void) == (10, 10, False)
    assert record.seconds == clock.now() == pytest.approx(100.0)


def test_a_round_ends_when_all_have_answered(world: Any) -> None:
    result, clock = _run(world, replace(EVERYBODY, stragglers=LATE), lambda user, times: float(user))
    assert result.rounds[0].num_admitted == 20
    assert 19 <= clock.now() < 21


def test_what_comes_late_is_refused_by_its_round_and_counted(world: Any) -> None:
    config = replace(EVERYBODY, rounds=3, stragglers=LATE)
    slow = {3: 150.0, 4: 1000.0}  # one answers during the second round, one after the third
    result, _ = _run(world, config, lambda user, times: 0.0 if times else slow.get(user, 0.0))
    first, second, third = result.rounds
    assert [record.num_admitted for record in result.rounds] == [18, 20, 20]
    assert (first.num_late, second.num_late, third.num_late) == (0, 0, 0)  # both later rounds ended at once
    waiting = replace(config, rounds=4)
    result, _ = _run(
        world, waiting, lambda user, times: slow.get(user, 0.0) if times == 0 else (1000.0 if user == 9 else 0.0)
    )
    assert [record.num_late for record in result.rounds] == [0, 0, 1, 0]
    (reason,) = result.rounds[2].rejected
    assert reason.startswith("late: round 3, admit, partition 3: round must be 3")
    assert result.rounds[2].num_admitted == 19
    everybody_else = _run(world, replace(waiting, seed=1), lambda user, times: 0.0)[0]
    assert not np.array_equal(result.vector, everybody_else.vector)


def test_a_late_reply_never_counts_as_the_node_s_answer_to_this_round(world: Any) -> None:
    config = replace(EVERYBODY, rounds=2, stragglers=LATE)
    result, _ = _run(world, config, lambda user, times: 100.5 if user == 3 else 0.0 if user else 99.0)
    assert [record.num_missing for record in result.rounds] == [1, 1]


def test_over_selection_asks_and_charges_more_and_divides_by_what_was_wanted(world: Any) -> None:
    config = FederationConfig(
        rounds=3,
        cohort_rate=0.4,
        clip_norm=0.15,
        noise_multiplier=1.0,
        seed=3,
        stragglers=Stragglers(over_selection=1.5),
    )
    result, _ = _run(world, config, lambda user, times: 0.0)
    assert result.epsilon == epsilon(user_level_event(config.asked_rate, 1.0, 3), 1e-5)
    assert config.asked_rate == pytest.approx(0.6)
    assert [record.num_asked for record in result.rounds] == [len(draw_cohort(config, 20, at)) for at in (1, 2, 3)]
    np.testing.assert_array_equal(
        draw_cohort(config, 20, 1), draw_cohort(replace(EVERYBODY, cohort_rate=0.6, seed=3), 20, 1)
    )
    quiet = replace(config, rounds=1, noise_multiplier=0.0)
    result, _ = _run(world, quiet, lambda user, times: 0.0)
    np.testing.assert_allclose(  # expected_step divides by cohort_rate * 20 = 8
        result.vector, world.expected_step(quiet, draw_cohort(config, 20, 1).tolist()), atol=1e-6
    )


def test_the_first_to_answer_end_a_round(world: Any) -> None:
    config = replace(EVERYBODY, cohort_rate=0.5, stragglers=Stragglers(over_selection=2.0, take_first=True))
    result, clock = _run(world, config, lambda user, times: 10.0 * user)
    np.testing.assert_allclose(result.vector, world.expected_step(config, range(10)), atol=1e-6)
    assert clock.now() == pytest.approx(90.0, abs=1.01)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"stragglers": Stragglers(take_first=True)}, "another's place"),
        ({"stragglers": Stragglers(take_first=True), "secure": SecureConfig(enabled=True)}, "take_first"),
        ({"stragglers": Stragglers(over_selection=2.0), "turns": 3}, "not Poisson"),
        ({"buffer": Buffer(size=4)}, "shares? a buffer"),
        ({"buffer": Buffer(size=4), "noise_multiplier": 0.0, "ranks": (2, 1)}, "ranks"),
    ],
)
def test_what_cannot_be_promised_is_refused(given: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        FederationConfig(**given)
    with pytest.raises(ConfigError, match="at most concurrency"):
        Buffer(size=30, concurrency=20)


# Buffered rounds

ASYNC = replace(EVERYBODY, buffer=Buffer(size=4, concurrency=8), rounds=5)


def test_a_buffer_without_stale_updates_is_the_average_of_its_updates(world: Any) -> None:
    config = replace(ASYNC, rounds=1, buffer=Buffer(size=5, concurrency=5))
    result, _ = _run(world, config, lambda user, times: float(user))
    users = draw_idle(config, 20, 1, np.zeros(20, np.int64), np.zeros(0, np.int64))
    assert len(users) == 5
    fifth = replace(config, cohort_rate=5 / 20)
    np.testing.assert_allclose(result.vector, world.expected_step(fifth, users.tolist()), atol=1e-6)


def test_stale_updates_count_less_in_closed_form(world: Any) -> None:
    """Two users at a time, steps of one update: the slow one's comes when the adapter is three versions on."""
    config = replace(ASYNC, rounds=4, buffer=Buffer(size=1, concurrency=2, staleness_power=1.0), seed=5)
    first = draw_idle(config, 20, 1, np.zeros(20, np.int64), np.zeros(0, np.int64)).tolist()
    slow = first[0]
    steps: list[Any] = [world.start]
    result, _ = _run(
        world,
        config,
        lambda user, times: 35.0 if user == slow else 10.0,
        on_round=lambda record, vector: steps.append(vector.copy()),
    )
    deltas = world.clipped_deltas(0.15)
    moved = [(after - before)[world.spec.trainable] for before, after in pairwise(steps)]
    np.testing.assert_allclose(moved[0], deltas[first[1]], atol=1e-6)
    np.testing.assert_allclose(moved[3], deltas[slow] / (1 + 3), atol=1e-6)
    assert [record.num_asked for record in result.rounds] == [2, 1, 1, 1]
    assert staleness_weight(3, 0.5) == 0.5


def test_updates_that_are_too_old_are_refused_and_counted(world: Any) -> None:
    config = replace(ASYNC, rounds=6, buffer=Buffer(size=1, concurrency=2, max_staleness=2), seed=5)
    slow = int(draw_idle(config, 20, 1, np.zeros(20, np.int64), np.zeros(0, np.int64))[0])
    result, _ = _run(world, config, lambda user, times: 45.0 if user == slow else 10.0)
    assert sum(record.num_late for record in result.rounds) == 1
    (reason,) = (reason for record in result.rounds for reason in record.rejected)
    assert reason.endswith("2 back, got 4")
    assert result.version == 6


def test_nobody_is_asked_while_under_way_or_more_often_than_turns(world: Any) -> None:
    config = replace(ASYNC, rounds=30, turns=2)
    asked: list[int] = []
    result, _ = _run(
        world, config, lambda user, times: (asked.append(user), 5.0 + AesNoise.seeded(user, times).uniform(1)[0])[1]
    )
    assert max(np.bincount(asked)) == 2
    assert len(asked) == 40  # everybody twice, and then nobody is left
    assert sum(record.num_admitted for record in result.rounds) == 40
    assert result.rounds[-1].void
    busy, counts = np.array([1, 5, 7]), np.zeros(20, np.int64)
    counts[2] = 2
    for number in range(20):
        drawn = draw_idle(config, 20, number, counts, busy)
        assert len(drawn) == 5
        assert not set(drawn.tolist()) & {1, 2, 5, 7}


def test_under_window_level_privacy_the_most_asked_user_is_charged(world: Any) -> None:
    plan = Plan(clip_norm=1.0, noise_multiplier=4.0)
    config = replace(ASYNC, unit="window", plan=plan, rounds=12, clip_norm=5.0)
    asked: list[int] = []
    result, _ = _run(world, config, lambda user, times: (asked.append(user), 1.0 + user)[1])
    assert result.epsilon == epsilon(window_level_event(plan, max(np.bincount(asked))), 1e-5)


def test_an_update_that_never_comes_makes_room_when_its_message_expires(world: Any) -> None:
    config = replace(ASYNC, rounds=8, buffer=Buffer(size=1, concurrency=1), reply_timeout_seconds=60.0, seed=2)
    never = int(draw_idle(config, 20, 1, np.zeros(20, np.int64), np.zeros(0, np.int64))[0])
    result, clock = _run(world, config, lambda user, times: 1e9 if user == never else 1.0)
    assert result.rounds[0].void
    assert result.version >= 5
    assert sum(record.num_missing for record in result.rounds) >= 1
    assert clock.now() >= 60
