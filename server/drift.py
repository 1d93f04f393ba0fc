"""Has quality fallen? A sequential detector that may look after every value, and says how seldom it is wrong.

Each value x (a device's bit, or a mean over public users) is weighed by L(x) = exp(k (b - x) - k^2 s^2 / 2). Where the
mean of x is at least the baseline b and x is sub-Gaussian with scale s, L has a mean of at most 1: it is an e-value.
The detector adds evidence as CUSUM does (Page 1954, https://doi.org/10.2307/2333009), anew where there is none:

    M = max(M, 1) L(x),    alarm where M >= A.

Such an e-detector gives at least A values, on average, between two false alarms (Shin, Ramdas and Rinaldo 2023,
https://arxiv.org/abs/2203.03532, section 2), and with k = d / s^2 it finds a fall of d after about
2 s^2 log(A) / d^2 values. A value in [0, 1] has s = 1/2 at the most (Hoeffding), whatever noise is in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ownlet.shared.errors import require

__all__ = ["DropDetector", "DropState", "look"]


@dataclass(frozen=True, kw_only=True)
class DropDetector:
    """What is watched for.

    Args:
        baseline: b, the mean that values must not fall below.
        drop: d, the fall that matters; smaller ones take longer to find.
        scale: s, of one value: 1/2 for bits, the standard error for means over many users.
        of_bits: whether devices' reports are watched; else values are shown to it one by one.
        false_alarm_every: A, values between two false alarms on average, at least.
    """

    baseline: float
    drop: float
    scale: float = 0.5
    of_bits: bool = False
    false_alarm_every: float = 1e6

    def __post_init__(self) -> None:
        require(math.isfinite(self.baseline), "baseline must be finite", baseline=self.baseline)
        for name in ("drop", "scale"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} must be positive", **{name: value})
        require(
            1 < self.false_alarm_every < math.inf,
            "false_alarm_every must be above 1",
            false_alarm_every=self.false_alarm_every,
        )

    @property
    def expected_delay(self) -> float:
        """About how many values it takes to find a fall of just ``drop``."""
        return 2 * self.scale**2 * math.log(self.false_alarm_every) / self.drop**2


@dataclass(frozen=True, kw_only=True)
class DropState:
    """What the detector remembers.

    Args:
        log_evidence: log of M.
        values: how many it has seen.
        alarm_at: the value at which it first raised the alarm, counted from 1; 0 for none.
    """

    log_evidence: float = 0.0
    values: int = 0
    alarm_at: int = 0

    @property
    def alarm(self) -> bool:
        """Whether quality has fallen."""
        return self.alarm_at > 0


def look(detector: DropDetector, state: DropState, values: Iterable[float]) -> DropState:
    """Return the state after more values; an alarm stays.

    Raises:
        ConfigError: a value is not finite.
    """
    tilt = detector.drop / detector.scale**2
    threshold, penalty = math.log(detector.false_alarm_every), (tilt * detector.scale) ** 2 / 2
    evidence, seen, alarm_at = state.log_evidence, state.values, state.alarm_at
    for value in values:
        if not math.isfinite(value):
            require(False, "watched value must be finite", value=value)
        evidence = max(evidence, 0.0) + tilt * (detector.baseline - value) - penalty
        seen += 1
        if not alarm_at and evidence >= threshold:
            alarm_at = seen
    return DropState(log_evidence=evidence, values=seen, alarm_at=alarm_at)
