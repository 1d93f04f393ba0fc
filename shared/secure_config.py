"""Whether the server may see single replies, or only their sum."""

from __future__ import annotations

from dataclasses import dataclass

from ownlet.shared.errors import require

__all__ = ["SecureConfig"]


@dataclass(frozen=True, kw_only=True)
class SecureConfig:
    """Secure aggregation (docs/secure_aggregation.md).

    Args:
        enabled: nodes mask their sums, so that the server learns nothing but the sum of all; with unit ``user`` they
            add the noise, too, in shares.
        dropout: the share of the nodes that may drop out; with more the round is void. The rest has enough noise, so
            where nobody drops out there is more than that.
        colluding: the share of the nodes that may work with the server; their noise is not counted.
        bits: 16, 24 or 32; sums are modulo 2^bits.
    """

    enabled: bool = False
    dropout: float = 0.2
    colluding: float = 0.1
    bits: int = 24

    def __post_init__(self) -> None:
        for name in ("dropout", "colluding"):
            require(0 <= getattr(self, name) < 0.5, f"{name} must be in [0, 0.5)", **{name: getattr(self, name)})
        require(self.bits in (16, 24, 32), "bits must be 16, 24 or 32", bits=self.bits)
