"""The public numbers of one secure sum, and how the graph's are chosen.

``choose_terms`` takes the smallest even degree for which all three bad events of Bell et al. 2020 (section 3, what
makes a graph good) are unlikely, for any client at once:

* too many of a client's neighbours collude: P[X >= t] <= 2^-40 / n, X hypergeometric with c colluding among n - 1;
* the honest survivors fall apart: n (share of dropouts and of colluding clients)^(k/2) <= 2^-40;
* too few of its neighbours answer: P[Y < t] <= 2^-30 / n, Y hypergeometric with those who stay among n - 1.

Where no degree below n - 1 will do, everybody is everybody's neighbour and nothing is left to chance. The threshold is
always more than half of the neighbours, so that even without any other check no two groups of honest neighbours could
give away one client's mask key and its self-mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ownlet.shared.errors import require

__all__ = ["SumTerms", "choose_terms", "least_survivors"]

_SECURITY_BITS = 40
_CORRECTNESS_BITS = 30
_LEAST_CLIENTS = 3  # of two, each knows the other's part from the sum


@dataclass(frozen=True, kw_only=True)
class SumTerms:
    """What every client must know, and signs, of a sum.

    Args:
        num_clients: n, those who advertised keys.
        degree: k, neighbours of each.
        threshold: t, neighbours whose shares give a secret back.
        least: with fewer survivors nothing is unmasked.
        num_colluding: c, clients that may work with the server without anything about the others being learnt.
        size: numbers in a vector.
        bits: the sum is modulo 2^bits.
    """

    num_clients: int
    degree: int
    threshold: int
    least: int
    num_colluding: int
    size: int
    bits: int

    def __post_init__(self) -> None:
        """Check what a client must insist on, whoever chose the numbers."""
        n, k, t = self.num_clients, self.degree, self.threshold
        require(n >= _LEAST_CLIENTS, f"num_clients must be at least {_LEAST_CLIENTS}", num_clients=n)
        require(2 <= k < n and (k == n - 1 or k % 2 == 0), "degree must be even and below num_clients", degree=k)
        require(2 * t > k and t <= k, "threshold must be more than half of the degree", threshold=t, degree=k)
        require(0 <= self.num_colluding < t, "num_colluding must be below the threshold", colluding=self.num_colluding)
        require(
            self.agreement <= self.least <= n, "least must be enough for an agreement", least=self.least, num_clients=n
        )
        require(self.size >= 1, "size must be at least 1", size=self.size)
        require(self.bits in (8, 16, 24, 32), "bits must be 8, 16, 24 or 32", bits=self.bits)

    @property
    def agreement(self) -> int:
        """How many must have signed one set of survivors: two sets with so many signers share an honest one."""
        return (self.num_clients + self.num_colluding) // 2 + 1


def least_survivors(num_clients: int, dropout: float) -> int:
    """Return how many of the clients must survive where the share ``dropout`` may drop out."""
    return num_clients - math.floor(dropout * num_clients + 1e-9)


def choose_terms(num_clients: int, *, dropout: float, colluding: float, size: int, bits: int) -> SumTerms:
    """Return the terms for a number of clients.

    Args:
        num_clients: n.
        dropout: the share of clients that may drop out, at any stage.
        colluding: the share that may work with the server.
        size: numbers in a vector.
        bits: of the modulus.

    Raises:
        ConfigError: too few clients for these shares.
    """
    require(num_clients >= _LEAST_CLIENTS, f"num_clients must be at least {_LEAST_CLIENTS}", num_clients=num_clients)
    least, bad = least_survivors(num_clients, dropout), math.floor(colluding * num_clients + 1e-9)
    for degree in range(2, num_clients - 1, 2):
        if num_clients * (dropout + colluding) ** (degree // 2) > 2.0**-_SECURITY_BITS:
            continue
        threshold = _threshold(num_clients, degree, least, bad)
        if threshold is not None:
            break
    else:
        degree, threshold = num_clients - 1, max(bad + 1, (num_clients - 1) // 2 + 1)
        require(
            threshold <= least - 1,
            "num_clients must be more for these shares of dropouts and colluding clients",
            num_clients=num_clients,
            dropout=dropout,
            colluding=colluding,
        )
    return SumTerms(
        num_clients=num_clients,
        degree=degree,
        threshold=threshold,
        least=least,
        num_colluding=min(bad, threshold - 1),
        size=size,
        bits=bits,
    )


def _threshold(num_clients: int, degree: int, least: int, bad: int) -> int | None:
    """Return the least safe threshold of a sparse graph, or None where a bad event is too likely."""
    from scipy.stats import hypergeom  # type: ignore[import-untyped]  # slow, and clients do without

    threshold = degree // 2 + 1
    while hypergeom.sf(threshold - 1, num_clients - 1, bad, degree) > 2.0**-_SECURITY_BITS / num_clients:
        threshold += 1
    enough = hypergeom.cdf(threshold - 1, num_clients - 1, least - 1, degree) <= 2.0**-_CORRECTNESS_BITS / num_clients
    return threshold if enough and threshold <= degree else None
