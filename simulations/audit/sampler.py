"""The sampler, seen from outside: noise is silenced, so that the released sum tells who was in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.bounds import (
    dispersion_p_value,
    proportion_lower,
    proportion_p_value,
    spread_p_value,
)
from ownlet.simulations.audit.mechanism import Mechanism
from ownlet.simulations.audit.result import Check
from ownlet.simulations.audit.sensitivity import Contributions
from ownlet.simulations.audit.sources import Silenced

__all__ = ["SamplingFound", "measure_sampling", "sampling_checks"]

_CLEAR = 0.05  # how far from 0 or 1 a recovered coin may be


@dataclass(frozen=True, kw_only=True)
class SamplingFound:
    """Who was in which batch.

    Args:
        taken: (steps, units) whether each was; None where sums do not tell.
    """

    taken: NDArray[np.bool_] | None

    def rate_lower(self, alpha: float) -> float:
        """Return a lower bound on the largest sampling rate of any unit, wrong with probability at most alpha.

        All units together give the tight bound where they are alike, one unit alone where one is preferred.
        """
        if self.taken is None:
            return 0.0
        trials, units = self.taken.shape
        pooled = proportion_lower(int(self.taken.sum()), self.taken.size, alpha / 2)
        most = int(self.taken.sum(axis=0).max())
        return max(pooled, proportion_lower(most, trials, alpha / 2 / units))


def measure_sampling(mechanism: Mechanism, contributions: Contributions, steps: int) -> SamplingFound:
    """Release ``steps`` sums with real coins and no noise, and solve each for who was in it."""
    everybody = np.ones(mechanism.num_units, np.bool_)
    rest = mechanism.release(np.zeros_like(everybody), Silenced(AesNoise()), "drawn")
    source = Silenced(AesNoise())
    sums = np.stack([mechanism.release(everybody, source, "drawn") - rest for _ in range(steps)])  # (steps, P)
    alone = contributions.alone
    coins, *_ = np.linalg.lstsq(alone @ alone.T, alone @ sums.T)  # (units, steps), by the normal equations
    taken = coins.T > 0.5
    told = np.abs(coins.T - taken).max() <= _CLEAR
    left = np.linalg.norm(sums - taken @ alone, axis=1).max()
    explained = left <= _CLEAR * mechanism.claim.clip_norm
    return SamplingFound(taken=taken if told and explained else None)


def sampling_checks(mechanism: Mechanism, found: SamplingFound, alarm: float) -> list[Check]:
    """Test the rate, the sizes of batches, and that every unit is as likely as the others."""
    rate, units = mechanism.claim.sample_rate, mechanism.num_units
    if found.taken is None:
        return [
            Check(name="sampling-rate", passed=False, statement="sums do not tell who was in a batch; nothing is known")
        ]
    taken = found.taken
    measured = float(taken.mean())
    sampled = Check(
        name="sampling-rate",
        passed=proportion_p_value(int(taken.sum()), taken.size, rate) >= alarm / 3 if rate < 1 else measured == 1,
        statement=f"each {mechanism.claim.unit} was in {measured:.4f} of the batches; the plan promises {rate:g}",
        measured=measured,
        claimed=rate,
    )
    if rate == 1:
        return [sampled]
    sizes, counts = taken.sum(axis=1), taken.sum(axis=0)
    size_p, spread_p = dispersion_p_value(sizes, units, rate), spread_p_value(counts, len(taken), rate)
    return [
        sampled,
        Check(
            name="batch-sizes",
            passed=size_p >= alarm / 3,
            statement=f"batch sizes have a variance of {float(np.square(sizes - units * rate).mean()):.3g}, where "
            f"independent coins have {units * rate * (1 - rate):.3g} (p-value {size_p:.2g})",
            measured=float(np.square(sizes - units * rate).mean()),
            claimed=units * rate * (1 - rate),
        ),
        Check(
            name="equal-chances",
            passed=spread_p >= alarm / 3,
            statement=f"every {mechanism.claim.unit} is as likely as the others, and steps choose anew "
            f"(p-value {spread_p:.2g})",
            measured=spread_p,
        ),
    ]
