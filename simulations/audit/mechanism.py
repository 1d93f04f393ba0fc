"""What the component audit looks at: one released step, seen from outside.

A mechanism has numbered candidate units (windows, or users), a claim, and one function that releases the noised sum of
a step when some of the units are there. Everything that the audit says follows from calling it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.noise import NoiseSource
from ownlet.simulations.audit.result import Claim
from ownlet.simulations.audit.sources import Batch

__all__ = ["LOUD", "Mechanism", "tensors_of"]

LOUD = 10.0
"""Raw norms of canaries are at least this many clip norms, so that what is not clipped shows."""


class Mechanism(Protocol):
    """One released step. Steps always start from the same public adapter, so that releases can be compared."""

    @property
    def name(self) -> str:
        """What is audited."""
        ...

    @property
    def claim(self) -> Claim:
        """What is promised of it."""
        ...

    @property
    def num_units(self) -> int:
        """Candidate units; any of them may be absent."""
        ...

    @property
    def tensors(self) -> Mapping[str, slice]:
        """Name -> its part of a release; together they are all that is released."""
        ...

    @property
    def noised(self) -> slice:
        """The part of a release that the noise of a step is drawn for."""
        ...

    def raw_norms(self) -> NDArray[np.float64]:
        """Return (num_units, tensors) norms of what each unit would contribute if nothing were clipped."""
        ...

    def release(self, present: NDArray[np.bool_], source: NoiseSource, batch: Batch = "all") -> NDArray[np.float64]:
        """Return the noised sum of one step, (P,), zeros where nothing is trained.

        Args:
            present: (num_units,) who is there.
            source: of coins and noise.
            batch: who of those present is in the step.
        """
        ...

    def training(self, source: NoiseSource) -> NDArray[np.float64]:
        """Return the noised sums of all steps of one training without data, (rows, P).

        One row per step where the mechanism shows them, otherwise one row, their sum.
        """
        ...


def tensors_of(spec: AdapterSpec) -> dict[str, slice]:
    """Return the matrices of an adapter as parts of its vector, also those that are not trained."""
    sizes = {f"{layer.name}.A": spec.rank * layer.in_features for layer in spec.layers}
    sizes |= {f"{layer.name}.B": spec.rank * layer.out_features for layer in spec.layers}
    stops = np.cumsum(list(sizes.values())).tolist()
    return {name: slice(stop - size, stop) for (name, size), stop in zip(sizes.items(), stops, strict=True)}
