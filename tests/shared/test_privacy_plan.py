"""Expectations: the closed form of Gaussians, whose noise grows with the root of how many there are."""

import json
import math

import pytest

from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import epsilon, event_from_json, user_level_event, user_turns_event
from ownlet.shared.privacy_plan import PLAN_FORMAT, delta_warning, plan_privacy
from ownlet.shared.releases import UserRelease, WindowRelease

DELTA = 1e-6
TURNS = UserRelease(rounds=30, turns=4, num_users=3000)


def test_the_noise_that_an_epsilon_takes_keeps_it() -> None:
    plan = plan_privacy(TURNS, dp_delta=DELTA, target_epsilon=2.0)
    chosen = plan.chosen
    assert 1.99 < chosen.epsilon <= 2.0
    assert chosen.epsilon == epsilon(user_turns_event(chosen.noise_multiplier, 4), DELTA)
    assert chosen.epsilon == epsilon(event_from_json(plan.event), DELTA)
    assert chosen.average_noise == pytest.approx(chosen.noise_multiplier / 400)  # 3,000 users, 4 of 30 rounds


def test_neighbours_are_solved_for_too() -> None:
    plan = plan_privacy(TURNS, dp_delta=DELTA, target_epsilon=2.0)
    rows = {row.label: row for row in plan.alternatives}
    assert set(rows) == {"2 turns", "8 turns", "epsilon 1", "epsilon 4"}
    assert rows["8 turns"].noise_multiplier == pytest.approx(math.sqrt(2) * plan.chosen.noise_multiplier, rel=2e-3)
    assert rows["epsilon 1"].noise_multiplier > plan.chosen.noise_multiplier > rows["epsilon 4"].noise_multiplier
    assert all(row.epsilon <= 2.0 for row in (rows["2 turns"], rows["8 turns"]))


def test_the_other_direction_gives_the_epsilon_of_a_noise() -> None:
    release = WindowRelease(turns=2, steps=3, expected_windows=5)
    plan = plan_privacy(release, dp_delta=DELTA, noise_multiplier=6.0)
    assert plan.chosen.epsilon == epsilon(user_turns_event(6.0, 6), DELTA)
    assert {row.label for row in plan.alternatives} == {
        *("1 turns", "4 turns", "1 steps", "6 steps", "sample rate 0.5", "noise multiplier 3", "noise multiplier 12")
    }
    assert (plan.unit, plan.chosen.sums, plan.chosen.average_noise) == ("window", 6, 6.0 / 5)


def test_the_curve_holds_the_plans_own_delta_and_falls() -> None:
    plan = plan_privacy(TURNS, dp_delta=3e-7, noise_multiplier=8.0)
    deltas, epsilons = zip(*plan.curve, strict=True)
    assert 3e-7 in deltas
    assert list(deltas) == sorted(deltas, reverse=True)
    assert list(epsilons) == sorted(epsilons)


def test_cohorts_are_planned_as_they_are_charged() -> None:
    release = UserRelease(rounds=10, cohort_rate=0.1, num_users=1000)
    assert release.event(2.0) == user_level_event(0.1, 2.0, 10)
    assert set(release.variants()) == {"5 rounds", "20 rounds", "cohort rate 0.05", "cohort rate 0.2"}
    assert (release.sampling, release.averaged_over) == ((0.1, 10), 100)


def test_a_delta_must_be_far_below_one_in_so_many_users() -> None:
    assert delta_warning(1e-6, 3000) == ""
    assert "not far below" in delta_warning(1e-6, 20_000_000)
    assert plan_privacy(TURNS, dp_delta=1e-4, noise_multiplier=8.0, num_users=10_000).warnings


def test_no_noise_is_warned_of_and_written_as_strict_json() -> None:
    plan = plan_privacy(TURNS, dp_delta=DELTA, noise_multiplier=0.0)
    assert plan.warnings == ("Without noise nothing is promised.",)
    plain = json.loads(json.dumps(plan.to_plain(), allow_nan=False))
    assert (plain["format"], plain["chosen"]["epsilon"]) == (PLAN_FORMAT, "inf")


@pytest.mark.parametrize(("target", "noise"), [(None, None), (2.0, 1.0)])
def test_exactly_one_of_epsilon_and_noise_is_asked_for(target: float | None, noise: float | None) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        plan_privacy(TURNS, dp_delta=DELTA, target_epsilon=target, noise_multiplier=noise)


def test_numbers_out_of_range_are_refused() -> None:
    for make in (
        lambda: UserRelease(rounds=0),
        lambda: UserRelease(rounds=3, turns=4),
        lambda: UserRelease(rounds=3, cohort_rate=1.5),
        lambda: WindowRelease(turns=0),
        lambda: WindowRelease(sample_rate=0.0),
    ):
        with pytest.raises(ConfigError, match="must be"):
            make()
