"""Who shares a mask with whom: a regular graph with few edges, drawn anew for every sum.

Instead of all pairs (Bonawitz et al. 2017), each client has k neighbours (Bell et al. 2020, SecAgg+,
https://eprint.iacr.org/2020/704, section 3): clients sit on a circle in random order, and each is joined with the k /
2 next to it on either side, a Harary graph. The order is a hash of what all clients advertised, so that everyone
computes the same graph and the server does not choose it.

A sum hides its parts only as far as the survivors hang together: of a group without an edge to the others the server
would learn the group's own sum. Random dropouts do that with negligible probability; a server that lies about who
dropped out could do it on purpose. So each client checks it (``hangs_together``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

from ownlet.shared.errors import require

__all__ = ["hangs_together", "neighbours_of"]


def neighbours_of(num_clients: int, degree: int, seed: bytes) -> list[tuple[int, ...]]:
    """Return each client's neighbours, in order.

    Args:
        num_clients: n, the clients are 0..n-1.
        degree: k, how many neighbours; n - 1 for everybody, else even.
        seed: the same seed gives the same graph.

    Raises:
        ConfigError: no such graph.
    """
    everybody = degree == num_clients - 1
    require(
        everybody or (0 < degree < num_clients and degree % 2 == 0),
        "degree must be even and below num_clients, or num_clients - 1",
        degree=degree,
        num_clients=num_clients,
    )
    if everybody:
        return [tuple(other for other in range(num_clients) if other != own) for own in range(num_clients)]
    circle = sorted(range(num_clients), key=lambda own: hashlib.sha256(seed + own.to_bytes(4, "big")).digest())
    found: list[tuple[int, ...]] = [()] * num_clients
    steps = [step for step in range(-degree // 2, degree // 2 + 1) if step]
    for place, own in enumerate(circle):
        found[own] = tuple(sorted(circle[(place + step) % num_clients] for step in steps))
    return found


def hangs_together(neighbours: list[tuple[int, ...]], members: Collection[int]) -> bool:
    """Tell whether one can get from each of the members to each other one by edges between members."""
    left = set(members)
    reached = [left.pop()] if left else []
    while reached:
        for peer in neighbours[reached.pop()]:
            if peer in left:
                left.remove(peer)
                reached.append(peer)
    return not left
