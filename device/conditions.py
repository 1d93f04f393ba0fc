"""Where readings come from without an app: the sensors of a Linux box, or a trace of what a device once read.

A trace is a step function: a reading holds until the next one. ``seconds`` count from a local midnight, so a row that
names no ``local_hour`` has the hour that follows from the time that is simulated, not from the time of the row.
"""

from __future__ import annotations

import csv
import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from ownlet.device.policy import Policy, Reading
from ownlet.shared.errors import ConfigError, DataError, require

__all__ = ["PsutilConditions", "Trace", "TraceConditions", "eligible_at", "read_trace", "reading_at"]

Trace = Sequence[tuple[float, Reading]]
"""(seconds, reading) in the order of seconds, which rise."""

_FIELDS = tuple(field.name for field in fields(Reading))
_FLAGS = ("charging", "unmetered", "idle")
_MISSING = (OSError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What psutil raises for sensors that a machine lacks, forbids, or describes in files that make no sense."""


class PsutilConditions:
    """The sensors of a Linux edge box, through psutil.

    A sensor that is missing reads as None, and never as an exception. A machine without a battery is on mains power.
    ``idle`` follows the load average of the last minute, in which the device's own training counts too: read before a
    training, not within one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        unmetered: bool | None = None,
        idle_load: float = 0.5,
        sensor: str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Choose what is read.

        Args:
            folder: whose file system must have free storage.
            unmetered: what psutil cannot know; None leaves it unknown.
            idle_load: the machine is idle at or below this load per CPU.
            sensor: the chip whose temperature counts, as psutil names it; None takes the hottest of all.
            now: gives the local time.
        """
        import psutil  # here, so that a phone without it can import the rest

        require(0 <= idle_load < math.inf, "idle_load must be at least 0", idle_load=idle_load)
        self._folder, self._unmetered, self._idle_load, self._sensor = folder, unmetered, idle_load, sensor
        self._now, self._psutil = now, psutil

    def read(self) -> Reading:
        """Return what the sensors say now."""
        charging, battery = self._known(self._power) or (None, None)
        return Reading(
            charging=charging,
            unmetered=self._unmetered,
            idle=self._known(self._idle),
            battery=battery,
            temperature_celsius=self._known(self._temperature),
            free_bytes=self._known(self._free_bytes),
            local_hour=_hour(self._now()),
        )

    def _known(self, sensor: Callable[[], Any]) -> Any:
        """Return what a sensor says, None where it is missing."""
        try:
            return sensor()
        except (*_MISSING, self._psutil.Error):
            return None

    def _power(self) -> tuple[bool | None, float | None]:
        battery = self._psutil.sensors_battery()
        if battery is None:
            return True, 1.0
        charge = min(1.0, max(0.0, battery.percent / 100)) if math.isfinite(battery.percent) else None
        return battery.power_plugged, charge

    def _idle(self) -> bool:
        return bool(self._psutil.getloadavg()[0] / (os.cpu_count() or 1) <= self._idle_load)

    def _temperature(self) -> float | None:
        chips = self._psutil.sensors_temperatures()
        wanted = [self._sensor] if self._sensor else list(chips)
        values = [float(entry.current) for chip in wanted for entry in chips.get(chip, ()) if entry.current is not None]
        return max((value for value in values if math.isfinite(value)), default=None)

    def _free_bytes(self) -> int:
        return int(self._psutil.disk_usage(str(self._folder)).free)


class TraceConditions:
    """What a device once read, replayed at the time of a clock."""

    def __init__(self, readings: Trace, clock: Callable[[], float]) -> None:
        """Choose a trace.

        Args:
            readings: (seconds, reading), seconds rising.
            clock: gives the simulated time in seconds.

        Raises:
            ConfigError: seconds that do not rise.
        """
        for (before, _), (after, _) in pairwise(readings):
            require(before < after, "seconds of a trace must rise", before=before, after=after)
        self._readings, self._clock = tuple(readings), clock

    def read(self) -> Reading:
        """Return the reading that holds now."""
        return reading_at(self._readings, self._clock())


def reading_at(trace: Trace, time: float) -> Reading:
    """Return the reading of a trace that holds at a time.

    Args:
        trace: seconds rising.
        time: seconds on the same scale.

    Returns:
        The last reading at or before ``time``; all but the hour is unknown before the first.
    """
    last = bisect_right(trace, time, key=lambda row: row[0]) - 1
    reading = trace[last][1] if last >= 0 else Reading()
    if reading.local_hour is not None:
        return reading
    return replace(reading, local_hour=time / 3600 % 24 % 24)  # twice: just below 0, the first gives 24.0


def eligible_at(
    policy: Policy,
    traces: Sequence[Trace],
    time: float,
    *,
    new_events: Sequence[int] | None = None,
    participations_last_day: Sequence[int] | None = None,
) -> list[int]:
    """Return which devices of a simulation may train at a time.

    Args:
        policy: the same for all.
        traces: one per device.
        time: seconds on the scale of the traces.
        new_events: of each device; None takes it that there are enough.
        participations_last_day: of each device; None takes it that there were none.

    Returns:
        Indices into ``traces``, ascending.
    """
    events = new_events if new_events is not None else [policy.min_new_events] * len(traces)
    taken = participations_last_day if participations_last_day is not None else [0] * len(traces)
    readings = (reading_at(trace, time) for trace in traces)
    rows = zip(readings, events, taken, strict=True)
    return [
        device
        for device, (reading, new, last_day) in enumerate(rows)
        if not policy.refusals(reading, new_events=new, participations_last_day=last_day)
    ]


def read_trace(path: Path) -> list[tuple[float, Reading]]:
    """Read the trace of one device.

    Args:
        path: ``.csv`` with a header, or ``.jsonl`` with an object per line: ``seconds`` and any fields of ``Reading``.
            An empty cell, null or an absent field is unknown. Flags are ``true`` and ``false``.

    Raises:
        DataError: unreadable, an unknown column, or a value that breaks its rule; names line and field.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows}
    if path.suffix not in readers:
        raise DataError(f"trace must be a .csv or .jsonl file, got {path}")
    trace: list[tuple[float, Reading]] = []
    try:
        for line, row in readers[path.suffix](path):
            seconds, reading = _parsed(row, f"line {line} of {path}")
            if trace and seconds <= trace[-1][0]:
                raise DataError(f"seconds must rise, got {seconds} after {trace[-1][0]} in line {line} of {path}")
            trace.append((seconds, reading))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"trace must be a readable text file, got {path}: {error}") from error
    return trace


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        _check_names(reader.fieldnames or (), f"the header of {path}")
        for row in reader:
            if None in row or None in row.values():
                width = len(reader.fieldnames or ())
                raise DataError(f"row must have {width} cells, got another number in line {reader.line_num} of {path}")
            yield reader.line_num, {name: _cell(name, text.strip()) for name, text in row.items()}


def _cell(name: str, text: str) -> Any:
    """Return a cell as JSON would give it; what makes no sense stays text, and is refused with its name later."""
    if not text:
        return None
    if name in _FLAGS:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return text


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(f"row must be JSON, got line {line} of {path}: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"row must be a JSON object, got {row!r} in line {line} of {path}")
            _check_names(list(row), f"line {line} of {path}")
            yield line, row


def _check_names(names: Sequence[str], where: str) -> None:
    unknown = sorted(set(names) - {"seconds", *_FIELDS})
    if unknown or "seconds" not in names or len(set(names)) != len(names):
        raise DataError(f"trace must have seconds and any of {', '.join(_FIELDS)}, got {list(names)} in {where}")


def _parsed(row: dict[str, Any], where: str) -> tuple[float, Reading]:
    seconds = row["seconds"]
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not abs(seconds) < 1e15:
        raise DataError(f"seconds must be a finite number, got {seconds!r} in {where}")
    try:
        return float(seconds), Reading(**{name: row[name] for name in _FIELDS if name in row})
    except ConfigError as error:
        raise DataError(f"{error} in {where}") from error


def _hour(time: datetime) -> float:
    return time.hour + time.minute / 60 + time.second / 3600
