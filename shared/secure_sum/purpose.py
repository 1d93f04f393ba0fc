"""What a secure sum is about, the same for all clients: which round of which run, and how deltas are coded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.secure_sum.coding import Coding

__all__ = ["Purpose"]


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """Opaque to the protocol, which binds its bytes into every key and signature.

    Args:
        round: counted from 1.
        version: of the global adapter.
        base_hash: of the base.
        clip_norm: C, the bound on each user's whole delta.
        coding: how deltas become whole numbers, and what noise each client adds.
    """

    round: int
    version: int
    base_hash: str
    clip_norm: float
    coding: Coding

    def to_bytes(self) -> bytes:
        """Write it down."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Purpose:
        """Read what ``to_bytes`` wrote.

        Raises:
            FederationError: not that.
        """
        try:
            raw = json.loads(data)
            return cls(**{**raw, "coding": Coding(**raw["coding"])})
        except (ValueError, TypeError, KeyError, ConfigError) as error:
            raise FederationError(f"purpose must be readable, got {type(error).__name__}") from error
