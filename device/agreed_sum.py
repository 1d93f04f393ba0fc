"""What a node knows of a secure sum when it is asked to train for it, and what it insists on before anybody is charged.

Users' ledgers are charged for the noise that the server promises. Here the nodes add it themselves, so a node need not
take the promise on trust: it follows from the coding and the terms that all nodes agreed on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ownlet.shared.distributed_noise import realised_noise_multiplier
from ownlet.shared.errors import FederationError
from ownlet.shared.secure_sum.coding import rounded_bound
from ownlet.shared.secure_sum.purpose import Purpose
from ownlet.shared.secure_sum.terms import SumTerms

if TYPE_CHECKING:  # importing it would load Flower
    from ownlet.shared.wire import TrainRequest

__all__ = ["AgreedSum"]

_FLOAT_ERROR = 1e-9  # relative: the share is the promise divided by a root, and multiplied by it again


@dataclass(frozen=True, kw_only=True)
class AgreedSum:
    """A sum that all nodes agreed on.

    Args:
        purpose: what it is about.
        terms: how many clients add to it, and how many must survive.
        transcript: names it among all others.
    """

    purpose: Purpose
    terms: SumTerms
    transcript: bytes

    @property
    def noise_multiplier(self) -> float:
        """Sigma of the noise of the fewest honest clients that may survive, measured by a user's largest norm."""
        share = self.purpose.coding.share_noise
        return realised_noise_multiplier(share, self.terms.least, self.terms.num_colluding)

    def check(self, request: TrainRequest, size: int) -> None:
        """Check a request against the sum: the same round, room to round in, and the noise that it promises.

        Args:
            request: what the server asks.
            size: numbers in a delta of this node.

        Raises:
            FederationError: it is not for this sum, or promises more noise than there will be.
        """
        purpose, number = self.purpose, request.round
        asked = (number, request.version, request.base_hash, request.clip_norm)
        if asked != (purpose.round, purpose.version, purpose.base_hash, purpose.clip_norm):
            raise FederationError(f"request must be what all nodes agreed on, got another in round {number}")
        if self.terms.size != size:
            raise FederationError(f"sum must be of {size} numbers, got {self.terms.size} in round {number}")
        coding = purpose.coding
        if coding.bound < rounded_bound(2.0**coding.scale * request.clip_norm, size):
            raise FederationError(f"bound must leave room to round in, got bound={coding.bound} in round {number}")
        promised = request.noise_multiplier if request.unit == "user" else 0.0
        if self.noise_multiplier < promised * (1 - _FLOAT_ERROR):
            raise FederationError(
                f"noise must be the promised {promised:g} at least, got {self.noise_multiplier:g} in round {number}"
            )
