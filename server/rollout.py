"""The registry's changing part: which version serves whom. Pure steps from one state to the next.

A version is a candidate first, for a rising share of devices, and stable at 100 %. ``rollback`` takes a candidate back,
or without one the stable version; ``pause`` keeps new devices out until ``resume``. Every step raises the serial number
and is written into the log, with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ownlet.server.drift import DropDetector, DropState
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import require
from ownlet.shared.sealed_json import opened_json, sealed_json

__all__ = [
    "Arms",
    "LogEntry",
    "Rollout",
    "dump_rollout",
    "pause",
    "promote",
    "read_rollout",
    "resume",
    "rollback",
    "start_count",
    "stop_count",
    "watch",
]

_FORMAT = "ownlet-registry-1"


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One step: when (unix seconds), what, and why."""

    at: float
    what: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Arms:
    """The two versions of an experiment, by number; 0 is the bundle's own adapter.

    Args:
        a: the one to compare with.
        b: the one that is asked about.
        percent: of all devices that take part, half in each arm.
        salt: of the assignment.
    """

    a: int
    b: int
    percent: float
    salt: str


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Everything that changes in a registry. Versions are numbers, 0 for none.

    Args:
        serial: of this state.
        stable: for everybody.
        earlier: the stable versions before it, the latest last.
        candidate: for ``percent`` of the devices.
        percent: of devices.
        salt: of the candidate's rollout.
        paused: why nobody new gets the candidate; empty where the rollout goes on.
        count: what devices are asked to report.
        arms: the experiment under the count's name, if it is one.
        detector: of a fall in quality, if one watches.
        watched: what it has seen.
        log: all steps, oldest first.
    """

    serial: int = 0
    stable: int = 0
    earlier: tuple[int, ...] = ()
    candidate: int = 0
    percent: float = 0.0
    salt: str = ""
    paused: str = ""
    count: CountTerms | None = None
    arms: Arms | None = None
    detector: DropDetector | None = None
    watched: DropState = field(default_factory=DropState)
    log: tuple[LogEntry, ...] = ()


def promote(state: Rollout, number: int, percent: float, *, salt: str, at: float) -> Rollout:
    """Give a version to more devices; at 100 % it becomes the stable one.

    Args:
        state: before.
        number: of an intact published version.
        percent: of devices; never lower than it was.
        salt: fresh and random; used where a rollout begins.
        at: unix seconds.

    Raises:
        ConfigError: the rollout is paused, another one is under way, or the share would fall.
    """
    require(0 < percent <= 100, "percent must be in (0, 100]", percent=percent)
    require(not state.paused, "rollout must not be paused (resume it, or roll back)", paused=state.paused)
    require(number != state.stable, "version must not be the stable one already", version=number)
    going = state.candidate
    require(going in (0, number), f"version must be {going}, whose rollout is under way (or roll back)", version=number)
    begun = state.percent if going else 0.0
    require(percent >= begun, f"percent must not fall below {begun:g} (roll back instead)", percent=percent)
    said = f"version {number} to {percent:g} % of devices"
    if percent == 100:
        earlier = (*state.earlier, state.stable)
        return _step(replace(_without_candidate(state), stable=number, earlier=earlier), at, f"{said}, now stable")
    changed = replace(state, candidate=number, percent=percent, salt=state.salt if going else salt)
    return _step(changed, at, said)


def rollback(state: Rollout, *, why: str, at: float) -> Rollout:
    """Take the candidate back, or without one the stable version; a pause ends with it.

    Raises:
        ConfigError: nothing is there to go back to.
    """
    if state.candidate:
        return _step(_without_candidate(state), at, f"version {state.candidate} taken back", why)
    require(bool(state.earlier), "rollback must have an earlier version", stable=state.stable)
    to, earlier = state.earlier[-1], state.earlier[:-1]
    name = f"version {to}" if to else "the bundle's adapter"
    changed = replace(_without_candidate(state), stable=to, earlier=earlier)
    return _step(changed, at, f"version {state.stable} taken back, {name} stable", why)


def pause(state: Rollout, *, why: str, at: float) -> Rollout:
    """Let nobody new have the candidate.

    Raises:
        ConfigError: no reason, or already paused.
    """
    require(bool(why.strip()), "reason must be given", reason=why)
    require(not state.paused, "rollout must not be paused already", paused=state.paused)
    return _step(replace(state, paused=why), at, "paused", why)


def resume(state: Rollout, *, why: str, at: float) -> Rollout:
    """End a pause; the monitor starts anew.

    Raises:
        ConfigError: not paused.
    """
    require(bool(state.paused), "rollout must be paused", paused=state.paused)
    return _step(replace(state, paused="", watched=DropState()), at, "resumed", why)


def start_count(state: Rollout, terms: CountTerms, arms: Arms | None, *, at: float) -> Rollout:
    """Ask devices for reports under a new name, as an experiment or not.

    Raises:
        ConfigError: another count is under way, or the experiment compares a version with itself.
    """
    require(state.count is None, "count must be stopped before another starts", count=state.count and state.count.count)
    if arms is not None:
        require(arms.a != arms.b, "versions of an experiment must differ", a=arms.a, b=arms.b)
        require(0 < arms.percent <= 100, "percent must be in (0, 100]", percent=arms.percent)
    about = "" if arms is None else f", version {arms.a} against {arms.b} on {arms.percent:g} % of devices"
    return _step(replace(state, count=terms, arms=arms), at, f"count {terms.count} started{about}")


def stop_count(state: Rollout, *, why: str, at: float) -> Rollout:
    """Ask for no more reports, and end the experiment if the count is one.

    Raises:
        ConfigError: no count is under way.
    """
    require(state.count is not None, "count must be under way", count=None)
    assert state.count is not None
    return _step(replace(state, count=None, arms=None), at, f"count {state.count.count} stopped", why)


def watch(state: Rollout, detector: DropDetector | None, *, at: float) -> Rollout:
    """Let a detector watch quality from now on, or none."""
    said = "quality not watched" if detector is None else f"quality watched from {detector.baseline:g}"
    return _step(replace(state, detector=detector, watched=DropState()), at, said)


def dump_rollout(state: Rollout) -> bytes:
    """Return the state's file."""
    return sealed_json({"format": _FORMAT, **asdict(state)})


def read_rollout(content: bytes, name: str) -> Rollout:
    """Read what ``dump_rollout`` wrote.

    Raises:
        StoreError: altered or torn.
    """
    plain = opened_json(content, name, _FORMAT)
    parts: dict[str, Any] = {
        "earlier": tuple(plain.pop("earlier")),
        "count": _made(CountTerms, plain.pop("count")),
        "arms": _made(Arms, plain.pop("arms")),
        "detector": _made(DropDetector, plain.pop("detector")),
        "watched": DropState(**plain.pop("watched")),
        "log": tuple(LogEntry(**entry) for entry in plain.pop("log")),
    }
    return Rollout(**plain, **parts)


def _made(kind: type[Any], plain: Mapping[str, Any] | None) -> Any:
    return None if plain is None else kind(**plain)


def _without_candidate(state: Rollout) -> Rollout:
    return replace(state, candidate=0, percent=0.0, salt="", paused="", watched=DropState())


def _step(state: Rollout, at: float, what: str, why: str = "") -> Rollout:
    return replace(state, serial=state.serial + 1, log=(*state.log, LogEntry(at=at, what=what, why=why)))
