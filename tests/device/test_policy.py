"""When a device may train, and every reason that is given when it may not."""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import pytest

from ownlet.device.policy import Conditions, Policy, Reading
from ownlet.shared.errors import ConfigError

STRICT = Policy(
    charging=True,
    unmetered=True,
    idle=True,
    min_battery=0.4,
    max_temperature_celsius=38.5,
    min_free_bytes=1000,
    quiet_hours=(22, 7),
    min_new_events=5,
    max_participations_per_day=2,
)
GOOD = {
    "charging": True,
    "unmetered": True,
    "idle": True,
    "battery": 0.4,
    "temperature_celsius": 38.5,
    "free_bytes": 1000,
    "local_hour": 7.0,
}


def refusals(policy: Policy, *, new_events: int = 5, participations: int = 0, **reading: Any) -> list[str]:
    return policy.refusals(Reading(**reading), new_events=new_events, participations_last_day=participations)


def test_a_device_at_every_limit_is_eligible():
    assert refusals(STRICT, **GOOD, participations=1) == []


def test_the_default_demands_nothing():
    assert refusals(Policy(), new_events=0, participations=99) == []
    worst = Reading(charging=False, unmetered=False, idle=False, battery=0.0, temperature_celsius=90.0, free_bytes=0)
    assert Policy().refusals(worst, new_events=0, participations_last_day=10) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"charging": False}, "charging must be true, got False"),
        ({"unmetered": False}, "unmetered must be true, got False"),
        ({"idle": False}, "idle must be true, got False"),
        ({"battery": 0.39}, "battery must be at least 0.4, got 0.39"),
        ({"temperature_celsius": 38.6}, "temperature_celsius must be at most 38.5, got 38.6"),
        ({"free_bytes": 999}, "free_bytes must be at least 1000, got 999"),
        ({"local_hour": 6.99}, "local_hour must be outside the quiet hours 22 to 7, got 6.99"),
        ({"new_events": 4}, "new_events must be at least 5, got 4"),
        ({"participations": 2}, "participations_last_day must be below 2, got 2"),
        ({"charging": None}, "charging must be true, got unknown"),
        ({"unmetered": None}, "unmetered must be true, got unknown"),
        ({"idle": None}, "idle must be true, got unknown"),
        ({"battery": None}, "battery must be at least 0.4, got unknown"),
        ({"temperature_celsius": None}, "temperature_celsius must be at most 38.5, got unknown"),
        ({"free_bytes": None}, "free_bytes must be at least 1000, got unknown"),
        ({"local_hour": None}, "local_hour must be outside the quiet hours 22 to 7, got unknown"),
    ],
)
def test_each_condition_refuses_alone_and_by_name_when_it_is_not_met_or_not_known(changed: dict[str, Any], reason: str):
    assert refusals(STRICT, **{**GOOD, **changed}) == [reason]


def test_all_reasons_are_given_at_once():
    found = refusals(STRICT, new_events=0, participations=3)
    assert [reason.split(" must ")[0] for reason in found] == [*GOOD, "new_events", "participations_last_day"]
    assert all(" must " in reason and ", got " in reason for reason in found)


@pytest.mark.parametrize(
    ("quiet", "allowed"),
    [
        ((22, 7), set(range(7, 22))),
        ((7, 22), {*range(7), 22, 23}),
        ((0, 6), set(range(6, 24))),
        ((22, 0), set(range(22))),
        ((0, 23), {23}),
        ((23, 22), {22}),
    ],
)
def test_quiet_hours_begin_with_the_first_and_end_before_the_last_across_midnight(
    quiet: tuple[int, int], allowed: set[int]
):
    policy = Policy(quiet_hours=quiet)
    for minutes in (0.0, 0.5, 0.999):
        assert {hour for hour in range(24) if not refusals(policy, local_hour=hour + minutes)} == allowed


def test_the_mobile_preset_demands_power_a_free_network_and_rest():
    policy = Policy.mobile()
    assert (policy.charging, policy.unmetered, policy.idle, policy.max_participations_per_day) == (True, True, True, 1)
    assert refusals(policy, new_events=10, **{**GOOD, "free_bytes": 10**9}) == []
    assert len(refusals(policy, new_events=0, participations=1)) == 8


@pytest.mark.parametrize("policy", [Policy(), Policy.mobile(), STRICT])
def test_a_policy_survives_json(policy: Policy):
    assert Policy.from_json(policy.to_json()) == policy
    assert isinstance(json.loads(policy.to_json()), dict)


def test_a_policy_is_read_from_a_toml_table_with_either_spelling():
    table = tomllib.loads("[policy]\ncharging = true\nmin-battery = 0.5\nquiet_hours = [22, 7]\nmin_new_events = 3")
    expected = Policy(charging=True, min_battery=0.5, quiet_hours=(22, 7), min_new_events=3)
    assert Policy.from_dict(table["policy"]) == expected


def test_unknown_fields_are_refused_by_name():
    with pytest.raises(
        ConfigError, match=r"policy must have known fields .*min_battery.*, got unknown=\['min_charge'\]"
    ):
        Policy.from_dict({"min_charge": 0.5, "idle": True})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"charging"'])
def test_what_is_not_a_json_object_is_refused(text: str):
    with pytest.raises(ConfigError, match="policy must be"):
        Policy.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("charging", 1),
        ("idle", None),
        ("unmetered", "yes"),
        ("min_battery", 40),
        ("min_battery", -0.1),
        ("min_battery", math.nan),
        ("min_battery", True),
        ("max_temperature_celsius", math.inf),
        ("max_temperature_celsius", "40"),
        ("min_free_bytes", -1),
        ("min_free_bytes", 1.5),
        ("quiet_hours", (7, 7)),
        ("quiet_hours", (22, 24)),
        ("quiet_hours", (22,)),
        ("quiet_hours", (22.5, 7)),
        ("quiet_hours", 22),
        ("min_new_events", -1),
        ("min_new_events", True),
        ("max_participations_per_day", 0),
        ("max_participations_per_day", 1.0),
    ],
)
def test_a_setting_that_breaks_its_rule_is_refused_by_name(field: str, value: object):
    with pytest.raises(ConfigError, match=rf"^{field} must be .*, got {field}="):
        Policy.from_dict({field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("charging", "true"),
        ("idle", 1),
        ("battery", 80),  # percent, where a share is wanted
        ("battery", math.nan),
        ("battery", -0.01),
        ("temperature_celsius", math.inf),
        ("free_bytes", -1),
        ("local_hour", 24),
        ("local_hour", "noon"),
    ],
)
def test_a_reading_that_makes_no_sense_is_refused_by_name(field: str, value: Any):
    with pytest.raises(ConfigError, match=rf"^{field} must be .*, got {field}="):
        Reading(**{field: value})


def test_an_app_brings_its_own_conditions_as_any_object_that_reads():
    class Phone:
        def read(self) -> Reading:
            return Reading(**GOOD)

    phone: Conditions = Phone()
    assert STRICT.refusals(phone.read(), new_events=5, participations_last_day=0) == []
