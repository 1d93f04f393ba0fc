"""Is arm b better than arm a? A sequential test that may be looked at after every report.

Devices are put into the arms by a fair coin (``shared.rollout``), and each reports one bit. So with x = bit - 1/2, a
report is worth +2 x in arm b and -2 x in arm a: always +1 or -1, with the mean E[bit | b] - E[bit | a]. Such values are
sub-Gaussian with variance 1 at the most (Hoeffding), the noise that devices add included, and their sum S over n
reports stays, if the arms are alike, within Robbins' normal mixture for all n at once with probability 1 - alpha:

    |S| < sqrt((n + rho) log((n + rho) / (rho alpha^2)))

(Robbins 1970, https://doi.org/10.1214/aoms/1177696786; Howard, Ramdas, McAuliffe and Sekhon 2021,
https://arxiv.org/abs/1810.08240, equation 14). S / n plus or minus that over n is a confidence sequence for the mean
difference, also where devices differ from one another. No correction for looking is needed, and no sample size fixed.

It rests on reports coming from both arms alike. The same boundary on the number of b less the number of a tests that;
where it fails the arms lost reports unequally, and the difference means nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.counters import gain
from ownlet.shared.errors import require

__all__ = ["Tally", "Verdict", "boundary", "judge_arms", "tuned_rho"]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Reports of an experiment so far: how many in each arm, and how many of them said 1."""

    reports_a: int = 0
    ones_a: int = 0
    reports_b: int = 0
    ones_b: int = 0

    def __post_init__(self) -> None:
        sound = 0 <= self.ones_a <= self.reports_a and 0 <= self.ones_b <= self.reports_b
        require(sound, "ones must be in 0..reports of each arm", tally=(self.ones_a, self.reports_a, self.ones_b))

    @property
    def reports(self) -> int:
        """In both arms."""
        return self.reports_a + self.reports_b


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What may be said now, at any time.

    Args:
        better: the arm that is better; None while that is open.
        lift: hit rate in arm b minus that in arm a.
        low: lower end of its confidence sequence.
        high: upper end.
        unequal: reports came from the arms unequally: then nothing is said about which is better.
    """

    better: Literal["a", "b"] | None
    lift: float
    low: float
    high: float
    unequal: bool


def boundary(num_reports: NDArray[np.float64] | float, alpha: float, rho: float) -> NDArray[np.float64]:
    """Return what |S| stays below for all numbers of reports at once, with probability 1 - alpha; two-sided."""
    above = np.asarray(num_reports, np.float64) + rho
    bound: NDArray[np.float64] = np.sqrt(above * np.log(above / (rho * alpha**2)))
    return bound


def tuned_rho(expected_reports: int, alpha: float) -> float:
    """Return the rho with which the boundary is tightest at so many reports; valid whatever it is.

    Howard et al. 2021, proposition 3: rho = n / (w - 1), where w = -W_{-1}(-alpha^2 / e) is Lambert's function: the
    root above 1 of w - log w = 1 + 2 log(1 / alpha), which iteration finds.
    """
    require(expected_reports >= 1, "expected_reports must be at least 1", expected_reports=expected_reports)
    require(0 < alpha < 1, "alpha must be in (0, 1)", alpha=alpha)
    root = right = 1 - 2 * math.log(alpha)
    for _ in range(100):
        root = right + math.log(root)
    return expected_reports / (root - 1)


def judge_arms(tally: Tally, epsilon: float, *, alpha: float = 0.05, expected_reports: int = 100_000) -> Verdict:
    """Judge an experiment by its reports so far.

    Args:
        tally: the reports.
        epsilon: of the terms; it says how far the bits' means lie apart for a given lift.
        alpha: the chance to be wrong about the arms, ever.
        expected_reports: where the test is to be at its best; must be chosen before the first report.
    """
    if not tally.reports:
        return Verdict(better=None, lift=0.0, low=-1.0, high=1.0, unequal=False)
    rho = tuned_rho(expected_reports, alpha)
    radius = float(boundary(tally.reports, alpha, rho)) / tally.reports
    balance = (tally.reports_b - tally.reports_a) / tally.reports
    total = (2 * tally.ones_b - tally.reports_b) - (2 * tally.ones_a - tally.reports_a)
    mean, scale = total / tally.reports, gain(epsilon)
    unequal = abs(balance) >= radius
    better: Literal["a", "b"] | None = None
    if abs(mean) >= radius and not unequal:
        better = "b" if mean > 0 else "a"
    low, high = max(-1.0, (mean - radius) / scale), min(1.0, (mean + radius) / scale)
    return Verdict(better=better, lift=mean / scale, low=low, high=high, unequal=unequal)
