"""How often the sequential test of experiments is wrong, and how many reports it takes to find a lift.

Reports are drawn as devices draw them: an arm by a fair coin, a hit by the arm's hit rate, a bit that is flipped by
chance. The test looks after every report, up to the last. Without a lift the share of experiments that ever name an arm
must stay below alpha; with one, the median report at which it is found is told.

    python -m ownlet.simulations.benchmarks.ab_test
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from ownlet.server.sequential import boundary, tuned_rho
from ownlet.shared.counters import gain

__all__ = ["first_verdicts", "main"]


def first_verdicts(
    lift: float,
    epsilon: float,
    *,
    reports: int,
    trials: int,
    base_rate: float = 0.1,
    alpha: float = 0.05,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return (trials,) the report at which an arm was first named; negative where it was arm a, 0 where none was.

    Args:
        lift: hit rate in arm b above ``base_rate``, that of arm a.
        epsilon: of one report.
        reports: in both arms, of one experiment.
        trials: experiments.
        base_rate: hit rate in arm a.
        alpha: of the test, which is tuned to 100,000 reports.
        seed: of everything.
    """
    rng, floor = np.random.default_rng(seed), 1 / (1 + math.exp(epsilon))
    chance_a, chance_b = (floor + rate * gain(epsilon) for rate in (base_rate, base_rate + lift))
    bounds = boundary(np.arange(1, reports + 1, dtype=np.float64), alpha, tuned_rho(100_000, alpha))
    found = np.zeros(trials, np.int64)
    for trial in range(trials):
        arm_b = rng.random(reports) < 0.5
        bits = rng.random(reports) < np.where(arm_b, chance_b, chance_a)
        sums = np.cumsum(np.where(bits == arm_b, 1, -1))
        crossed = np.flatnonzero(np.abs(sums) >= bounds)
        if len(crossed):
            found[trial] = (crossed[0] + 1) * np.sign(sums[crossed[0]])
    return found


def main() -> None:
    """Print the table of docs/operations.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=500_000)
    parser.add_argument("--trials", type=int, default=40, help="per lift; ten times as many without one")
    arguments = parser.parse_args()
    null = first_verdicts(0.0, 1.0, reports=arguments.reports, trials=10 * arguments.trials)
    print(f"no lift, epsilon 1: an arm was named in {np.mean(null != 0):.1%} of {len(null)} experiments (alpha 5 %)")
    print("| epsilon | lift | found | wrong arm | median reports |\n|---|---|---|---|---|")
    for epsilon in (0.5, 1.0, 2.0):
        for lift in (0.02, 0.05):
            found = first_verdicts(lift, epsilon, reports=arguments.reports, trials=arguments.trials, seed=1)
            median = f"{np.median(found[found > 0]):,.0f}" if (found > 0).any() else "none"
            print(f"| {epsilon:g} | +{lift:g} | {np.mean(found > 0):.0%} | {np.sum(found < 0)} | {median} |")


if __name__ == "__main__":
    main()
