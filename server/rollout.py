"""The registry's changing part: which version serves whom. Pure steps from one state to the next.

A version is a candidate first, for a rising share of devices, and stable at 100 %. ``rollback`` takes a candidate back,
or without one the stable version; ``pause`` keeps new devices out until ``resume``. Every step raises the serial number
and is written into the log, with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ownlet.server.drift import DropDetector, DropState, look
from ownlet.server.sequential import tuned_rho
from ownlet.shared.counters import CountTerms
from ownlet.shared.errors import require

__all__ = [
    "Arms",
    "Count",
    "LogEntry",
    "Rollout",
    "observed",
    "pause",
    "promote",
    "restored",
    "resume",
    "rollback",
    "start_count",
    "stop_count",
    "watch",
]


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
        alpha: the chance to be wrong about the arms, ever.
        expected_reports: where the test is at its best; chosen, like alpha, before the first report.
    """

    a: int
    b: int
    percent: float
    salt: str
    alpha: float = 0.05
    expected_reports: int = 100_000

    def __post_init__(self) -> None:
        require(self.a != self.b, "versions of an experiment must differ", a=self.a, b=self.b)
        require(0 < self.percent <= 100, "percent must be in (0, 100]", percent=self.percent)
        tuned_rho(self.expected_reports, self.alpha)


@dataclass(frozen=True, kw_only=True)
class Count:
    """What devices are or were asked to report.

    Args:
        terms: of the reports.
        arms: the experiment under the same name, if it is one.
    """

    terms: CountTerms
    arms: Arms | None = None


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
        counts: all that devices were ever asked to report, oldest first.
        counting: whether the last of them is under way.
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
    counts: tuple[Count, ...] = ()
    counting: bool = False
    detector: DropDetector | None = None
    watched: DropState = field(default_factory=DropState)
    log: tuple[LogEntry, ...] = ()

    @property
    def count(self) -> Count | None:
        """The count that is under way."""
        return self.counts[-1] if self.counting else None


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


def restored(copy: Rollout, *, above: int, why: str, at: float) -> Rollout:
    """Go on from a copy of an older state, with a serial number that no device has followed.

    A rollout that was under way is paused: what was lost may have paused it, or taken it back.

    Args:
        copy: the state before what was lost.
        above: the highest serial number that devices may know.
        why: what it was restored from.
        at: unix seconds.
    """
    held = replace(copy, paused="restored from a copy") if copy.candidate and not copy.paused else copy
    return _step(replace(held, serial=max(held.serial, above)), at, "restored", why)


def start_count(state: Rollout, count: Count, *, at: float) -> Rollout:
    """Ask devices for reports under a new name.

    Raises:
        ConfigError: another count is under way, or the name was used before.
    """
    name, arms = count.terms.count, count.arms
    running = {"running": state.counts[-1].terms.count} if state.counting else {}
    require(not state.counting, "count must be stopped before another starts (`stop-count`)", **running)
    used = name in (earlier.terms.count for earlier in state.counts)
    require(not used, "count must have a name that was not used before", count=name)
    about = "" if arms is None else f", version {arms.b} against {arms.a} on {arms.percent:g} % of devices"
    changed = replace(state, counts=(*state.counts, count), counting=True)
    return _step(changed, at, f"count {name} started{about}")


def stop_count(state: Rollout, *, why: str, at: float) -> Rollout:
    """Ask for no more reports; an experiment ends with its count.

    Raises:
        ConfigError: no count is under way.
    """
    require(state.counting, "count must be under way", count=None)
    return _step(replace(state, counting=False), at, f"count {state.counts[-1].terms.count} stopped", why)


def watch(state: Rollout, detector: DropDetector | None, *, at: float) -> Rollout:
    """Let a detector watch quality from now on, or none.

    Raises:
        ConfigError: the baseline is no mean of bits or of quality.
    """
    said = "quality not watched"
    if detector is not None:
        require(0 <= detector.baseline <= 1, "baseline must be in [0, 1]", baseline=detector.baseline)
        said = f"{'bits of devices' if detector.of_bits else 'quality'} watched from {detector.baseline:g}"
    return _step(replace(state, detector=detector, watched=DropState()), at, said)


def observed(state: Rollout, values: Sequence[float], *, of_bits: bool, at: float) -> Rollout:
    """Show the detector more values; its alarm pauses the rollout.

    Args:
        state: before.
        values: in [0, 1].
        of_bits: whether they are devices' bits or measured quality; a detector takes one kind, never a mixture.
        at: unix seconds.

    Raises:
        ConfigError: nothing watches, it watches the other kind, or a value is outside [0, 1].
    """
    require(state.detector is not None, "quality must be watched (`registry watch --baseline`)", detector=None)
    assert state.detector is not None
    kinds = "bits of devices, which `registry collect` brings" if state.detector.of_bits else "quality as `observe`"
    require(state.detector.of_bits == of_bits, f"the watch must be of what it is shown: it takes {kinds}", bits=of_bits)
    for value in values:
        require(0 <= value <= 1, "watched value must be in [0, 1]", value=value)
    after = replace(state, watched=look(state.detector, state.watched, values))
    if after.watched.alarm and not state.watched.alarm and not state.paused:
        return pause(after, why=_alarm(state.detector, after.watched.alarm_at), at=at)
    return after


def _alarm(detector: DropDetector, at: int) -> str:
    return (
        f"quality fell: value {at} since the watch began was the one too many below {detector.baseline:g} "
        f"(a false alarm comes once in {detector.false_alarm_every:g} values)"
    )


def _without_candidate(state: Rollout) -> Rollout:
    return replace(state, candidate=0, percent=0.0, salt="", paused="", watched=DropState())


def _step(state: Rollout, at: float, what: str, why: str = "") -> Rollout:
    return replace(state, serial=state.serial + 1, log=(*state.log, LogEntry(at=at, what=what, why=why)))
