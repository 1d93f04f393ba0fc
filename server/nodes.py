"""Which Flower node hosts which partition of the population.

Flower's node ids are random, so the server asks every new node once. A partition whose node is not connected counts as
not answering; it never moves to another node, since a user's data does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ownlet.shared.errors import FederationError
from ownlet.shared.wire import PLACE_ACTION, Place, partition_of, place_from_records

__all__ = ["Nodes", "split_cohort"]

_POLL_SECONDS = 1.0


def split_cohort(cohort: NDArray[np.int64], num_partitions: int) -> dict[int, tuple[int, ...]]:
    """Return partition -> its users of a cohort; partitions without any are left out."""
    users_of: dict[int, list[int]] = {}
    for user in cohort.tolist():
        users_of.setdefault(partition_of(user, num_partitions), []).append(user)
    return {partition: tuple(users) for partition, users in sorted(users_of.items())}


@dataclass
class Nodes:
    """The nodes that the server has met.

    Args:
        grid: Flower's way to the nodes.
        timeout_seconds: how long to wait for the first node, and for answers.
    """

    grid: Grid
    timeout_seconds: float
    _places: dict[int, Place] = field(default_factory=dict)

    def connected(self) -> tuple[Mapping[int, int], int]:
        """Return partition -> node id of the nodes connected now, and the number of partitions.

        Raises:
            FederationError: no node in time, two nodes for one partition, or disagreement about the number.
        """
        deadline = time.monotonic() + self.timeout_seconds
        while True:
            present = sorted(self.grid.get_node_ids())
            self._meet([node for node in present if node not in self._places])
            placed = [(node, self._places[node]) for node in present if node in self._places]
            if placed:
                return self._check(placed)
            if time.monotonic() >= deadline:
                raise FederationError(f"a node must connect in time, got none in {self.timeout_seconds} seconds")
            time.sleep(min(_POLL_SECONDS, self.timeout_seconds))

    def _meet(self, new: list[int]) -> None:
        if not new:
            return
        questions = [
            Message(RecordDict(), dst_node_id=node, message_type=f"query.{PLACE_ACTION}", ttl=self.timeout_seconds)
            for node in new
        ]
        for reply in self.grid.send_and_receive(questions, timeout=self.timeout_seconds):
            node = reply.metadata.src_node_id
            if not reply.has_error() and node in new:
                self._places[node] = place_from_records(reply.content)

    @staticmethod
    def _check(placed: list[tuple[int, Place]]) -> tuple[Mapping[int, int], int]:
        counts = {place.num_partitions for _, place in placed}
        node_of = {place.partition: node for node, place in placed}
        if len(counts) != 1:
            raise FederationError(f"nodes must agree on the number of partitions, got {sorted(counts)}")
        if len(node_of) != len(placed):
            raise FederationError(f"one node must host each partition, got {len(placed)} nodes for {len(node_of)}")
        return node_of, counts.pop()
