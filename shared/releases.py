"""What is released about one unit in a whole run, in the numbers that are chosen before it: rounds, rates, steps.

A release turns a noise multiplier into the event that accountants read, and into the noise that is left on an average,
which is what quality feels. ``variants`` are the neighbouring choices that are worth a look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from ownlet.shared.errors import require
from ownlet.shared.privacy import user_level_event, user_turns_event

if TYPE_CHECKING:
    from dp_accounting import DpEvent

__all__ = ["Release", "UserRelease", "WindowRelease"]


class Release(Protocol):
    """Noised sums that one unit may be in."""

    @property
    def unit(self) -> Literal["user", "window"]:
        """Whose privacy it spends."""
        ...

    @property
    def sampling(self) -> tuple[float, int]:
        """The rate q that sampling amplifies by (1 for none), and the number T of noised sums."""
        ...

    @property
    def averaged_over(self) -> float | None:
        """The expected number of units in one sum; None where it is not known."""
        ...

    def event(self, noise_multiplier: float) -> DpEvent:
        """Return what the whole run spends on one unit with this noise."""
        ...

    def variants(self) -> Mapping[str, Release]:
        """Return neighbouring choices by what they are called."""
        ...


@dataclass(frozen=True, kw_only=True)
class UserRelease:
    """Rounds with central noise; the unit is a user.

    Args:
        rounds: how many rounds release an aggregate.
        cohort_rate: the chance of each user to be in a round (Poisson sampling); unused with ``turns``.
        turns: the most rounds that any user is in; 0 samples by ``cohort_rate``.
        num_users: N, the public size of the population, where it is known.
    """

    rounds: int
    cohort_rate: float = 1.0
    turns: int = 0
    num_users: int | None = None
    unit: Literal["user"] = "user"

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds must be at least 1", rounds=self.rounds)
        require(0 < self.cohort_rate <= 1, "cohort_rate must be in (0, 1]", cohort_rate=self.cohort_rate)
        require(0 <= self.turns <= self.rounds, f"turns must be in 0..{self.rounds}", turns=self.turns)
        require(self.num_users is None or self.num_users >= 1, "users must be at least 1", users=self.num_users)

    @property
    def sampling(self) -> tuple[float, int]:
        """See ``Release``."""
        return (1.0, self.turns) if self.turns else (self.cohort_rate, self.rounds)

    @property
    def averaged_over(self) -> float | None:
        """The expected size of a cohort."""
        share = self.turns / self.rounds if self.turns else self.cohort_rate
        return None if self.num_users is None else share * self.num_users

    def event(self, noise_multiplier: float) -> DpEvent:
        """See ``Release``."""
        if self.turns:
            return user_turns_event(noise_multiplier, self.turns)
        return user_level_event(self.cohort_rate, noise_multiplier, self.rounds)

    def variants(self) -> dict[str, Release]:
        """See ``Release``."""
        found: dict[str, Release] = {}
        if self.turns:
            for turns in _half_and_double(self.turns):
                if turns <= self.rounds:
                    found[f"{turns} turns"] = replace(self, turns=turns)
            return found
        for rounds in _half_and_double(self.rounds):
            found[f"{rounds} rounds"] = replace(self, rounds=rounds)
        for rate in (self.cohort_rate / 2, self.cohort_rate * 2):
            if rate <= 1:
                found[f"cohort rate {rate:g}"] = replace(self, cohort_rate=rate)
        return found


@dataclass(frozen=True, kw_only=True)
class WindowRelease:
    """Local DP-SGD on one device; the unit is a window. That few devices are asked gains nothing.

    Args:
        turns: how often a device takes part.
        steps: T of one local training, steps with an empty batch included.
        sample_rate: q, the chance of each window to be in a step's batch (Poisson sampling).
        expected_windows: the public number of windows that a device is taken to have, where it is known.
    """

    turns: int = 1
    steps: int = 1
    sample_rate: float = 1.0
    expected_windows: float | None = None
    unit: Literal["window"] = "window"

    def __post_init__(self) -> None:
        require(self.turns >= 1, "turns must be at least 1", turns=self.turns)
        require(self.steps >= 1, "steps must be at least 1", steps=self.steps)
        require(0 < self.sample_rate <= 1, "sample_rate must be in (0, 1]", sample_rate=self.sample_rate)

    @property
    def sampling(self) -> tuple[float, int]:
        """See ``Release``."""
        return self.sample_rate, self.turns * self.steps

    @property
    def averaged_over(self) -> float | None:
        """The expected batch."""
        return None if self.expected_windows is None else self.sample_rate * self.expected_windows

    def event(self, noise_multiplier: float) -> DpEvent:
        """See ``Release``."""
        return user_level_event(self.sample_rate, noise_multiplier, self.turns * self.steps)

    def variants(self) -> dict[str, Release]:
        """See ``Release``."""
        found: dict[str, Release] = {}
        for turns in _half_and_double(self.turns):
            found[f"{turns} turns"] = replace(self, turns=turns)
        for steps in _half_and_double(self.steps):
            found[f"{steps} steps"] = replace(self, steps=steps)
        for rate in (self.sample_rate / 2, self.sample_rate * 2):
            if rate <= 1:
                found[f"sample rate {rate:g}"] = replace(self, sample_rate=rate)
        return found


def _half_and_double(count: int) -> tuple[int, ...]:
    return (count // 2, 2 * count) if count >= 2 else (2 * count,)
