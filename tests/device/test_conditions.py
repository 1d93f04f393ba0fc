"""Readings from the sensors of a machine, and from traces."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from ownlet.device.conditions import PsutilConditions, TraceConditions, eligible_at, read_trace, reading_at
from ownlet.device.policy import Policy, Reading
from ownlet.shared.errors import ConfigError, DataError

HOUR, DAY = 3600, 24 * 3600
Battery = namedtuple("Battery", "percent secsleft power_plugged")
Heat = namedtuple("Heat", "label current high critical")


def noon() -> datetime:
    return datetime(2025, 3, 1, 12, 30, 36)


def sensed(folder: Path, **settings: Any) -> Reading:
    return PsutilConditions(folder, now=noon, **settings).read()


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    monkeypatch.setattr(psutil, name, lambda *_: value, raising=False)


# psutil


def test_this_machine_is_read_without_an_exception(tmp_path: Path):
    reading = sensed(tmp_path)
    assert reading.local_hour == pytest.approx(12.51)
    assert reading.free_bytes is not None
    assert 0 < reading.free_bytes <= psutil.disk_usage(str(tmp_path)).total
    assert reading.unmetered is None


def test_a_machine_without_a_battery_is_on_mains_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, "sensors_battery", None)
    reading = sensed(tmp_path, unmetered=True)
    assert (reading.charging, reading.battery, reading.unmetered) == (True, 1.0, True)


@pytest.mark.parametrize(
    ("battery", "charging", "charge"),
    [
        (Battery(55.0, 100, False), False, 0.55),
        (Battery(100.0, -2, True), True, 1.0),
        (Battery(104.0, -2, True), True, 1.0),
        (Battery(20.0, -1, None), None, 0.2),
        (Battery(float("nan"), -1, True), True, None),
    ],
)
def test_a_battery_is_read_as_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, battery: Battery, charging: bool | None, charge: float | None
):
    pretend(monkeypatch, "sensors_battery", battery)
    reading = sensed(tmp_path)
    assert (reading.charging, reading.battery) == (charging, charge)


def test_the_hottest_sensor_counts_or_the_one_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    chips = {
        "coretemp": [Heat("Core 0", 41.0, None, None), Heat("Core 1", 44.0, None, None)],
        "nvme": [Heat("", 61.5, None, None), Heat("", None, None, None), Heat("", float("nan"), None, None)],
    }
    pretend(monkeypatch, "sensors_temperatures", chips)
    assert sensed(tmp_path).temperature_celsius == 61.5
    assert sensed(tmp_path, sensor="coretemp").temperature_celsius == 44.0
    assert sensed(tmp_path, sensor="other").temperature_celsius is None
    pretend(monkeypatch, "sensors_temperatures", {})
    assert sensed(tmp_path).temperature_celsius is None


@pytest.mark.parametrize(("load", "idle"), [(0.0, True), (2.0, True), (2.1, False)])
def test_a_machine_is_idle_up_to_a_load_per_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: float, idle: bool
):
    pretend(monkeypatch, "getloadavg", (load, 9.0, 9.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert sensed(tmp_path, idle_load=0.5).idle is idle


@pytest.mark.parametrize(
    "error",
    [OSError("no such file"), AttributeError("sensors"), NotImplementedError(), psutil.AccessDenied(), ValueError()],
)
def test_a_missing_sensor_is_unknown_and_never_an_exception(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def fail(*_: object) -> None:
        raise error

    for name in ("sensors_battery", "sensors_temperatures", "getloadavg", "disk_usage"):
        monkeypatch.setattr(psutil, name, fail, raising=False)
    assert sensed(tmp_path) == Reading(local_hour=12.51)


def test_a_folder_that_is_not_there_has_unknown_storage(tmp_path: Path):
    assert sensed(tmp_path / "none").free_bytes is None


def test_an_impossible_load_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="idle_load must be at least 0"):
        PsutilConditions(tmp_path, idle_load=-1)


# Traces


def test_a_reading_holds_until_the_next_one():
    on, off = Reading(charging=True, local_hour=1.0), Reading(charging=False, local_hour=2.0)
    now = SimpleNamespace(time=0.0)
    conditions = TraceConditions([(10, on), (20, off)], lambda: now.time)
    seen = []
    for now.time in (9.9, 10, 19.9, 20, 1e9, 10):  # the last one: a clock that goes back
        seen.append(conditions.read().charging)
    assert seen == [None, True, True, False, False, True]


@pytest.mark.parametrize(
    ("time", "hour"), [(0, 0), (HOUR * 1.5, 1.5), (DAY + 60, 1 / 60), (-HOUR, 23), (-1e-12, 0), (DAY - 1e-9, 24)]
)
def test_the_hour_follows_from_the_time_where_the_trace_does_not_name_it(time: float, hour: float):
    found = reading_at([(0, Reading(idle=True))], time).local_hour
    assert found is not None
    assert 0 <= found < 24
    assert found == pytest.approx(hour, abs=1e-6)


def test_the_seconds_of_a_trace_rise():
    with pytest.raises(ConfigError, match="seconds of a trace must rise, got before=5, after=5"):
        TraceConditions([(5, Reading()), (5, Reading())], lambda: 0)


CSV = """seconds,charging,battery,temperature_celsius,free_bytes,idle
0,true,0.5,31,1000000,
3600.5,FALSE,,,,true
"""
JSONL = """{"seconds": 0, "charging": true, "battery": 0.5, "temperature_celsius": 31, "free_bytes": 1000000}

{"seconds": 3600.5, "charging": false, "battery": null, "idle": true}
"""


@pytest.mark.parametrize(("name", "text"), [("trace.csv", CSV), ("trace.jsonl", JSONL), ("trace.csv", "\ufeff" + CSV)])
def test_a_trace_is_read_from_csv_and_from_json_lines(tmp_path: Path, name: str, text: str):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_trace(path) == [
        (0.0, Reading(charging=True, battery=0.5, temperature_celsius=31, free_bytes=1_000_000)),
        (3600.5, Reading(charging=False, idle=True)),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "trace must have seconds and any of charging.*header"),
        ("t.csv", "charging\ntrue\n", r"got \['charging'\] in the header"),
        ("t.csv", "seconds,charge\n1,1\n", "got .*'charge'.* in the header"),
        ("t.csv", "seconds,seconds\n1,1\n", "got .* in the header"),
        ("t.csv", "seconds,battery\n1,0.5\n2,1.5\n", "battery must be from 0 to 1.*battery=1.5 in line 3 of"),
        ("t.csv", "seconds,battery\n1,high\n", "battery must be .*'high' in line 2 of"),
        ("t.csv", "seconds,battery\n1,nan\n", "battery must be .*nan in line 2 of"),
        ("t.csv", "seconds,idle\n1,yes\n", "idle must be true, false or None, got idle='yes' in line 2 of"),
        ("t.csv", "seconds,idle\n,true\n", "seconds must be a finite number, got None in line 2 of"),
        ("t.csv", "seconds\n1\nnow\n", "seconds must be a finite number, got 'now' in line 3 of"),
        ("t.csv", "seconds\n1e400\n", "seconds must be a finite number, got inf in line 2 of"),
        ("t.csv", "seconds\n2\n2\n", r"seconds must rise, got 2.0 after 2.0 in line 3 of"),
        ("t.csv", "seconds,idle\n1\n", "row must have 2 cells, got another number in line 2 of"),
        ("t.csv", "seconds,idle\n1,true,3\n", "row must have 2 cells, got another number in line 2 of"),
        ("t.jsonl", '{"seconds": 1}\n{"seconds": 2', "row must be JSON, got line 2 of"),
        ("t.jsonl", "[1]", r"row must be a JSON object, got \[1\] in line 1 of"),
        ("t.jsonl", '{"idle": true}', r"got \['idle'\] in line 1 of"),
        ("t.jsonl", '{"seconds": true}', "seconds must be a finite number, got True in line 1 of"),
        ("t.jsonl", '{"seconds": 1, "idle": 1}', "idle must be true, false or None, got idle=1 in line 1 of"),
        ("t.jsonl", '{"seconds": 1, "local_hour": 25}', "local_hour must be .* in line 1 of"),
        (
            "t.jsonl",
            '{"seconds": 1, "temperature_celsius": 1' + "0" * 400 + "e9}",
            "temperature_celsius must be finite",
        ),
        ("t.txt", "seconds\n1\n", r"trace must be a \.csv or \.jsonl file"),
    ],
)
def test_a_trace_that_cannot_be_read_names_the_line_and_the_field(tmp_path: Path, name: str, text: str, message: str):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_trace(path)


def test_a_trace_that_is_no_text_or_not_there_is_refused(tmp_path: Path):
    (tmp_path / "t.csv").write_bytes(b"seconds\n\xff\xfe\n")
    for name in ("t.csv", "none.csv"):
        with pytest.raises(DataError, match="trace must be a readable text file"):
            read_trace(tmp_path / name)


# A week of a small population

MONDAY_TO_SUNDAY = range(7)


def at(day: int, hour: float) -> float:
    return day * DAY + hour * HOUR


def nightly(day: int) -> list[tuple[float, Reading]]:
    """On its charger, unused and on wifi from 22 to 6; on the first day from midnight."""
    away = Reading(charging=False, unmetered=False, idle=False, battery=0.5)
    docked = Reading(charging=True, unmetered=True, idle=True, battery=0.9)
    return [*([(at(0, 0), docked)] if day == 0 else []), (at(day, 6), away), (at(day, 22), docked)]


def at_work(day: int) -> list[tuple[float, Reading]]:
    """Charged at a desk from 9 to 17 on working days; the battery is below 0.4 in the first two hours."""
    base = Reading(charging=False, unmetered=True, idle=True, battery=0.3)
    if day >= 5:
        return [(at(day, 0), base)]
    low, full = (Reading(charging=True, unmetered=True, idle=True, battery=battery) for battery in (0.35, 0.8))
    return [(at(day, 0), base), (at(day, 9), low), (at(day, 11), full), (at(day, 17), base)]


def always_on(day: int) -> list[tuple[float, Reading]]:
    """A box on mains power; hot from 12 to 15."""
    cool, hot = (
        Reading(charging=True, unmetered=True, idle=True, battery=1.0, temperature_celsius=t) for t in (35, 60)
    )
    return [(at(day, 0), cool), (at(day, 12), hot), (at(day, 15), cool)]


def metered(day: int) -> list[tuple[float, Reading]]:
    return [(at(day, 0), Reading(charging=True, unmetered=False, idle=True, battery=1.0))]


POPULATION = (nightly, at_work, always_on, metered)
TRACES = [[row for day in MONDAY_TO_SUNDAY for row in device(day)] for device in POPULATION]
DOCKED = Policy(charging=True, unmetered=True, idle=True, min_battery=0.4)


def hours_eligible(policy: Policy) -> list[int]:
    """Count the hours of the week in which each device may train."""
    found = [0] * len(TRACES)
    for hour in range(7 * 24):
        for device in eligible_at(policy, TRACES, hour * HOUR):
            found[device] += 1
    return found


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), [168, 168, 168, 168]),
        # nightly: 0-6 and 22-24, 8 hours on 7 days; at work: 11-17 on 5 days; the box always; metered never
        (DOCKED, [7 * 8, 5 * 6, 7 * 24, 0]),
        # without the demand on the battery the desk counts from 9
        (Policy(charging=True, unmetered=True), [7 * 8, 5 * 8, 7 * 24, 0]),
        (Policy(charging=True), [7 * 8, 5 * 8, 7 * 24, 7 * 24]),
        # quiet from 22 to 5: nightly keeps 5-6, the box 5-22
        (Policy(charging=True, unmetered=True, min_battery=0.4, quiet_hours=(22, 5)), [7 * 1, 5 * 6, 7 * 17, 0]),
        # only the box has a thermometer, and is too hot for 3 hours a day
        (Policy(max_temperature_celsius=45.0), [0, 0, 7 * 21, 0]),
        (Policy(min_free_bytes=1), [0, 0, 0, 0]),
    ],
)
def test_a_week_of_four_devices_gives_the_hours_that_their_days_imply(policy: Policy, expected: list[int]):
    assert hours_eligible(policy) == expected


def test_new_events_and_the_daily_cap_bound_the_trainings_of_a_week():
    policy = Policy(
        charging=True, unmetered=True, idle=True, min_battery=0.4, min_new_events=10, max_participations_per_day=1
    )
    began: list[list[float]] = [[] for _ in TRACES]
    recorded_per_hour, taken_up_to = (2, 1, 0, 5), [0] * len(TRACES)
    for hour in range(7 * 24):
        new = [rate * hour - used for rate, used in zip(recorded_per_hour, taken_up_to, strict=True)]
        last_day = [sum(hour - then < 24 for then in times) for times in began]
        for device in eligible_at(policy, TRACES, hour * HOUR, new_events=new, participations_last_day=last_day):
            began[device].append(hour)
            taken_up_to[device] += new[device]
    # nightly has 10 events after 5 hours, then trains at the same hour of every night; the desk at 11 on working days;
    # the box records nothing, the last one pays for its network
    assert began == [[5 + 24 * day for day in range(7)], [11 + 24 * day for day in range(5)], [], []]


@pytest.mark.parametrize("write", ["csv", "jsonl"])
def test_a_trace_on_disk_gives_the_same_week(tmp_path: Path, write: str):
    names = ("charging", "unmetered", "idle", "battery", "temperature_celsius")
    lines: dict[str, Callable[[float, Reading], str]] = {
        "csv": lambda seconds, row: ",".join(
            [str(seconds), *("" if getattr(row, name) is None else str(getattr(row, name)) for name in names)]
        ),
        "jsonl": lambda seconds, row: json.dumps({"seconds": seconds, **{name: getattr(row, name) for name in names}}),
    }
    for number, trace in enumerate(TRACES):
        header = [",".join(("seconds", *names))] if write == "csv" else []
        text = "\n".join([*header, *(lines[write](seconds, row) for seconds, row in trace)])
        (tmp_path / f"{number}.{write}").write_text(text)
    again = [read_trace(tmp_path / f"{number}.{write}") for number in range(len(TRACES))]
    assert again == TRACES


def test_one_number_per_device_is_needed():
    with pytest.raises(ValueError, match="zip"):
        eligible_at(Policy(), TRACES, 0.0, new_events=[1, 2])
