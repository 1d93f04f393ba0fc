"""Shamir's secret sharing of 32 bytes (Shamir 1979, https://doi.org/10.1145/359168.359176).

The secret is the value at 0 of a random polynomial of degree ``threshold - 1`` over the integers modulo a prime; a
share is its value at another point. With ``threshold`` shares the polynomial is known, with fewer every secret is
equally likely. The prime is the first above 2^256, so that any 32 bytes are a value.

Nothing here tells a wrong share from a right one: whoever deals them out commits to them (``messages.Shares``).
Python's integers do not take constant time; shares are dealt and joined where the secret is known anyway.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from ownlet.shared.errors import FederationError, require

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "join_shares", "split_secret"]

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33


def split_secret(secret: bytes, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Return one share of 33 bytes for each point.

    Args:
        secret: 32 bytes.
        threshold: how many shares give the secret back.
        points: different numbers above 0, at least ``threshold``.

    Raises:
        ConfigError: a number is out of its range.
    """
    require(len(secret) == SECRET_BYTES, f"secret must have {SECRET_BYTES} bytes", length=len(secret))
    require(1 <= threshold <= len(points), "threshold must be in 1..number of points", threshold=threshold)
    require(len(set(points)) == len(points) and min(points) > 0, "points must be different and positive", points=points)
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]  # of the highest power first
    coefficients.append(int.from_bytes(secret, "big"))
    return [_value_at(coefficients, point).to_bytes(SHARE_BYTES, "big") for point in points]


def join_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Return the secret.

    Args:
        shares: point -> share; of more than ``threshold`` the first are used.
        threshold: as the secret was split with.

    Raises:
        FederationError: too few shares, or they cannot be those of 32 bytes. Wrong shares mostly give this error, and
            otherwise a wrong secret.
    """
    if len(shares) < threshold:
        raise FederationError(f"shares must be at least {threshold}, got {len(shares)}")
    used = dict(list(shares.items())[:threshold])
    secret = 0
    for point, share in used.items():
        above, below = 1, 1
        for other in used:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        secret += int.from_bytes(share, "big") * above * pow(below, -1, PRIME)
    secret %= PRIME
    if secret >= 2**256:
        raise FederationError("shares must be those of 32 bytes, got others")
    return secret.to_bytes(SECRET_BYTES, "big")


def _value_at(coefficients: Sequence[int], point: int) -> int:
    value = 0
    for coefficient in coefficients:  # Horner
        value = (value * point + coefficient) % PRIME
    return value
