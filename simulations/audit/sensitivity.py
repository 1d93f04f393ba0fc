"""Exact sensitivity: the same step with and without a unit, under the same noise.

What differs is what the unit adds, exactly, so no statistics is needed. Two further units of measurement make hidden
clipping show: every canary's raw norm is far above C in all tensors together (``Mechanism``), and it is taken away from
company that points against it, where clipping a sum or an average would turn it around.
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
        taken: (canaries, P) what a release loses with a canary that is taken out of company.
        additivity: the largest distance between a step of several units and the sum of what each adds alone.
        frozen: the largest movement of what is not trained.
    """

    alone: NDArray[np.float64]
    taken: NDArray[np.float64]
    additivity: float
    frozen: float

    @property
    def differences(self) -> NDArray[np.float64]:
        """(differences, P): every measured difference between neighbours."""
        return np.concatenate([self.alone, self.taken])

    @property
    def sensitivity(self) -> float:
        """The largest of them, in L2 norm."""
        return float(np.linalg.norm(self.differences, axis=1).max())


def measure_contributions(mechanism: Mechanism) -> Contributions:
    """Release with and without units under common noise."""
    units = mechanism.num_units

    def released(*there: int) -> NDArray[np.float64]:
        present = np.zeros(units, np.bool_)
        present[list(there)] = True
        return mechanism.release(present, AesNoise.seeded("audit", "common noise"))

    nobody = released()
    alone = np.stack([released(unit) - nobody for unit in range(units)])  # (units, P)
    against = np.argsort(alone @ alone.T, axis=1)  # (units, units), most opposed first
    taken, gaps = [], []
    for canary in np.argsort((alone @ alone.T).min(axis=1))[:_CANARIES].tolist():
        nearest = [unit for unit in against[canary].tolist() if unit != canary]
        for company in (nearest[:_COMPANY], nearest):
            without, together = released(*company), released(*company, canary)
            taken.append(together - without)
            gaps.append(float(np.linalg.norm(without - nobody - alone[company].sum(axis=0))))
    outside = np.ones(alone.shape[1], np.bool_)
    outside[mechanism.noised] = False
    return Contributions(
        alone=alone,
        taken=np.stack(taken),
        additivity=max(gaps),
        frozen=float(np.abs(alone[:, outside]).max(initial=0.0)),
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
            name="frozen",
            passed=found.frozen <= slack,
            statement=f"what is not trained moves by {found.frozen:.2g} under data",
            measured=found.frozen,
            claimed=0.0,
        ),
    )
