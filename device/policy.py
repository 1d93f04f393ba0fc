"""When a device may train, as data: a policy, what the device reads of itself, and every reason that speaks against it.

The conditions are those of production systems (Bonawitz et al. 2019, "Towards Federated Learning at Scale: System
Design", https://arxiv.org/abs/1902.01046: idle, charging, on an unmetered network), and what apps ask for besides. A
policy says nothing about privacy: the ledger alone decides how much may be spent.

What a policy demands and a device does not know refuses. What it does not demand need not be known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from ownlet.shared.errors import ConfigError, require

__all__ = ["Conditions", "Policy", "Reading"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a device knows of itself at one moment; None is unknown.

    Args:
        charging: on mains power, a full battery included.
        unmetered: the network costs nothing by volume.
        idle: nobody uses the device.
        battery: charge from 0 to 1; 1 for a device without a battery.
        temperature_celsius: of the hottest part that matters.
        free_bytes: free storage where the state is kept.
        local_hour: time of day from 0 up to 24, minutes as a fraction: 22.5 is half past ten.
    """

    charging: bool | None = None
    unmetered: bool | None = None
    idle: bool | None = None
    battery: float | None = None
    temperature_celsius: float | None = None
    free_bytes: int | None = None
    local_hour: float | None = None

    def __post_init__(self) -> None:
        for name in ("charging", "unmetered", "idle"):
            value = getattr(self, name)
            require(value is None or isinstance(value, bool), f"{name} must be true, false or None", **{name: value})
        self._check("battery", "from 0 to 1", lambda value: 0 <= value <= 1)
        self._check("temperature_celsius", "finite", lambda value: -math.inf < value < math.inf)
        self._check("free_bytes", "at least 0", lambda value: 0 <= value < math.inf)
        self._check("local_hour", "from 0 and below 24", lambda value: 0 <= value < 24)

    def _check(self, name: str, rule: str, holds: Any) -> None:
        value = getattr(self, name)
        good = value is None or (_is_number(value) and bool(holds(value)))
        require(good, f"{name} must be {rule}, or None", **{name: value})


class Conditions(Protocol):
    """Where readings come from: the app's own sensors, ``device/conditions.py``, or a trace."""

    def read(self) -> Reading:
        """Return what is known now; what is not known is None, and nothing is raised for it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When training is allowed. The default demands nothing.

    Args:
        charging: demanded.
        unmetered: network, demanded.
        idle: demanded.
        min_battery: charge from 0 to 1; 0 demands nothing.
        max_temperature_celsius: at most; None demands nothing.
        min_free_bytes: free storage; 0 demands nothing.
        quiet_hours: (start, end) whole local hours in which training is NOT allowed, start included, end not; wraps
            midnight where start is the larger: (22, 7) is from ten in the evening to seven in the morning.
        min_new_events: events recorded since the last training.
        max_participations_per_day: trainings that may begin within 24 hours; None sets no limit.
    """

    charging: bool = False
    unmetered: bool = False
    idle: bool = False
    min_battery: float = 0.0
    max_temperature_celsius: float | None = None
    min_free_bytes: int = 0
    quiet_hours: tuple[int, int] | None = None
    min_new_events: int = 0
    max_participations_per_day: int | None = None

    def __post_init__(self) -> None:
        for name in ("charging", "unmetered", "idle"):
            require(
                isinstance(getattr(self, name), bool), f"{name} must be true or false", **{name: getattr(self, name)}
            )
        in_range = _is_number(self.min_battery) and 0 <= self.min_battery <= 1
        require(in_range, "min_battery must be from 0 to 1", min_battery=self.min_battery)
        limit = self.max_temperature_celsius
        require(
            limit is None or (_is_number(limit) and math.isfinite(limit)),
            "max_temperature_celsius must be finite, or None",
            max_temperature_celsius=limit,
        )
        for name in ("min_free_bytes", "min_new_events"):
            require(_is_count(getattr(self, name), 0), f"{name} must be at least 0", **{name: getattr(self, name)})
        cap = self.max_participations_per_day
        require(
            cap is None or _is_count(cap, 1),
            "max_participations_per_day must be at least 1, or None",
            max_participations_per_day=cap,
        )
        require(
            self.quiet_hours is None or _are_hours(self.quiet_hours),
            "quiet_hours must be two different whole hours from 0 to 23, or None",
            quiet_hours=self.quiet_hours,
        )

    @classmethod
    def mobile(cls) -> Policy:
        """Return a policy for phones: nothing that the user could notice, and once a day."""
        return cls(
            charging=True,
            unmetered=True,
            idle=True,
            min_battery=0.3,
            max_temperature_celsius=40.0,
            min_free_bytes=100_000_000,
            min_new_events=10,
            max_participations_per_day=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """Read what ``to_json`` wrote; fields that are not named keep their default.

        Raises:
            ConfigError: not a JSON object, an unknown field, or a value that breaks its rule.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"policy must be JSON, got {text[:80]!r}: {error}") from error
        require(isinstance(values, dict), "policy must be a JSON object", policy=values)
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Build a policy from plain values, as a TOML table gives them; ``min-battery`` is ``min_battery``.

        Raises:
            ConfigError: an unknown field, or a value that breaks its rule.
        """
        named = {key.replace("-", "_"): value for key, value in values.items()}
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(named) - set(known))
        require(not unknown, f"policy must have known fields ({', '.join(known)})", unknown=unknown)
        if isinstance(named.get("quiet_hours"), list):
            named["quiet_hours"] = tuple(named["quiet_hours"])
        return cls(**named)

    def to_json(self) -> str:
        """Return the policy as a JSON object."""
        return json.dumps(asdict(self), sort_keys=True)

    def refusals(self, reading: Reading, *, new_events: int, participations_last_day: int) -> list[str]:
        """Return every reason why training is not allowed now; none means that it is.

        Args:
            reading: what the device knows of itself.
            new_events: recorded since the last training.
            participations_last_day: trainings that began within the last 24 hours.

        Returns:
            One ``name must rule, got value`` per reason.
        """
        checks = (
            *(self._demanded(name, reading) for name in ("charging", "unmetered", "idle")),
            self._battery(reading),
            self._temperature(reading),
            self._storage(reading),
            self._quiet(reading),
            self._events(new_events),
            self._participations(participations_last_day),
        )
        return [reason for reason in checks if reason]

    def _demanded(self, name: str, reading: Reading) -> str:
        value = getattr(reading, name)
        return f"{name} must be true, got {_shown(value)}" if getattr(self, name) and value is not True else ""

    def _battery(self, reading: Reading) -> str:
        value = reading.battery
        met = self.min_battery == 0 or (value is not None and value >= self.min_battery)
        return "" if met else f"battery must be at least {self.min_battery}, got {_shown(value)}"

    def _temperature(self, reading: Reading) -> str:
        value, limit = reading.temperature_celsius, self.max_temperature_celsius
        met = limit is None or (value is not None and value <= limit)
        return "" if met else f"temperature_celsius must be at most {limit}, got {_shown(value)}"

    def _storage(self, reading: Reading) -> str:
        value = reading.free_bytes
        met = self.min_free_bytes == 0 or (value is not None and value >= self.min_free_bytes)
        return "" if met else f"free_bytes must be at least {self.min_free_bytes}, got {_shown(value)}"

    def _quiet(self, reading: Reading) -> str:
        if self.quiet_hours is None:
            return ""
        start, end = self.quiet_hours
        hour = reading.local_hour
        met = hour is not None and not (start <= hour < end if start < end else hour >= start or hour < end)
        return "" if met else f"local_hour must be outside the quiet hours {start} to {end}, got {_shown(hour)}"

    def _events(self, new_events: int) -> str:
        met = new_events >= self.min_new_events
        return "" if met else f"new_events must be at least {self.min_new_events}, got {new_events}"

    def _participations(self, last_day: int) -> str:
        cap = self.max_participations_per_day
        met = cap is None or last_day < cap
        return "" if met else f"participations_last_day must be below {cap}, got {last_day}"


def _shown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_hours(value: object) -> bool:
    pair = isinstance(value, tuple) and len(value) == 2 and all(_is_count(hour, 0) and hour <= 23 for hour in value)
    return pair and value[0] != value[1]  # type: ignore[index]
