"""Exact sensitivity: the same step with and without a unit, under the same noise.

What differs is what the unit adds, exactly, so no statistics is needed. Two things make hidden clipping show: every
canary's raw norm is far above C in all tensors together (``Mechanism``), and it is taken away from company that points
against it, where clipping a sum or an average would turn it around. A difference counts only where it is a shift of the
noise: the same whenever the same source is replayed, and the same under another noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.mechanism import Mechanism
from ownlet.simulations.audit.result import Check

__all__ = ["Contributions", "measure_contributions", "sensitivity_checks"]

_CANARIES = 6  # that are also taken out of company
_COMPANY = 8  # units that point most against a canary
_TOLERANCE = 2e-3  # of C: sums in float32


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """What units add to a released sum.

    Args:
        alone: (units, P) added to a step without anybody else.
        differences: (differences, P) between neighbours, of units alone and of canaries taken out of company, as far
            as they are the unit's doing: none where a release is another one under the same source.
        additivity: the largest distance between a step of several units and the sum of what each adds alone.
        frozen: the largest movement of what is not trained.
        unsteady: the largest distance between two releases under the same source, or between what a unit adds under
            one noise and under another. Where it is not 0, a difference is not a shift of the same noise.
    """

    alone: NDArray[np.float64]
    differences: NDArray[np.float64]
    additivity: float
    frozen: float
    unsteady: float

    @property
    def sensitivity(self) -> float:
        """The largest difference between neighbours, in L2 norm."""
        return float(np.linalg.norm(self.differences, axis=1).max(initial=0.0))


class _Replays:
    """Releases under common noise, each made twice."""

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self.slack = _TOLERANCE * mechanism.claim.clip_norm
        self.unsteady = 0.0

    def release(self, *there: int, noise: str = "common noise") -> tuple[NDArray[np.float64], bool]:
        """Return the release of those who are there, and whether it can be had again."""
        present = np.zeros(self._mechanism.num_units, np.bool_)
        present[list(there)] = True
        first, again = (self._mechanism.release(present, AesNoise.seeded("audit", noise)) for _ in range(2))
        return first, self.is_steady(first, again)

    def is_steady(self, first: NDArray[np.float64], again: NDArray[np.float64]) -> bool:
        """Whether two things that should be the same are; remembers the largest distance."""
        gap = float(np.linalg.norm(first - again))
        self.unsteady = max(self.unsteady, gap)
        return gap <= self.slack


def measure_contributions(mechanism: Mechanism) -> Contributions:
    """Release with and without units under common noise."""
    units, replays = mechanism.num_units, _Replays(mechanism)
    nobody, calm = replays.release()
    found = [replays.release(unit) for unit in range(units)]
    alone = np.stack([release for release, _ in found]) - nobody  # (units, P)
    differences = [row for row, (_, steady) in zip(alone, found, strict=True) if steady and calm]
    products = alone @ alone.T
    gaps, shifts = [], []
    for canary in np.argsort(products.min(axis=1))[:_CANARIES].tolist():
        nearest = [unit for unit in np.argsort(products[canary]).tolist() if unit != canary]  # most opposed first
        for company in (nearest[:_COMPANY], nearest):
            (without, steady), (together, also) = replays.release(*company), replays.release(*company, canary)
            gaps.append(float(np.linalg.norm(without - nobody - alone[company].sum(axis=0))))
            if steady and also:
                differences.append(together - without)
            other = [replays.release(*there, noise="other noise")[0] for there in ((*company, canary), company)]
            shifts.append(replays.is_steady(other[0] - other[1], together - without))
    outside = np.ones(alone.shape[1], np.bool_)
    outside[mechanism.noised] = False
    return Contributions(
        alone=alone,
        differences=np.array(differences if all(shifts) else []).reshape(-1, alone.shape[1]),
        additivity=max(gaps),
        frozen=float(np.abs(alone[:, outside]).max(initial=0.0)),
        unsteady=replays.unsteady,
    )


def sensitivity_checks(mechanism: Mechanism, found: Contributions) -> tuple[Check, ...]:
    """Hold what was measured against the clip norm."""
    clip = mechanism.claim.clip_norm
    slack = _TOLERANCE * clip
    return (
        Check(
            name="sensitivity",
            passed=found.sensitivity <= clip + slack,
            statement=f"one {mechanism.claim.unit} moves a released sum by at most {found.sensitivity:.4g}; "
            f"the clip norm promises {clip:.4g}",
            measured=found.sensitivity,
            claimed=clip,
        ),
        Check(
            name="additivity",
            passed=found.additivity <= slack * mechanism.num_units**0.5,
            statement=f"a sum of several {mechanism.claim.unit}s is what each adds alone, to {found.additivity:.2g}; "
            "clipping, weighting or dividing all of them together would not be",
            measured=found.additivity,
        ),
        Check(
            name="steady",
            passed=found.unsteady <= slack,
            statement=f"the same source gives the same release, and other noise moves what one "
            f"{mechanism.claim.unit} adds by {found.unsteady:.2g} at the most",
            measured=found.unsteady,
            claimed=0.0,
        ),
        Check(
            name="frozen",
            passed=found.frozen <= slack,
            statement=f"what is not trained moves by {found.frozen:.2g} under data",
            measured=found.frozen,
            claimed=0.0,
        ),
    )
