"""Which Flower node hosts which partition of the population.

Flower's node ids are random, so the server asks every new node once. A partition whose node is not connected counts as
not answering; it never moves to another node, since a user's data does not. Nodes are met before every round, so one
that joins late, or comes back, is in the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ownlet.shared.errors import FederationError, require
from ownlet.shared.wire import PLACE_ACTION, Place, partition_of, place_from_records

__all__ = ["Nodes", "Presence", "split_cohort"]

_POLL_SECONDS = 1.0
_TELL_SECONDS = 15.0
_MOST_NAMED = 10

_log = logging.getLogger(__name__)


def split_cohort(cohort: NDArray[np.int64], num_partitions: int) -> dict[int, tuple[int, ...]]:
    """Return partition -> its users of a cohort; partitions without any are left out."""
    users_of: dict[int, list[int]] = {}
    for user in cohort.tolist():
        users_of.setdefault(partition_of(user, num_partitions), []).append(user)
    return {partition: tuple(users) for partition, users in sorted(users_of.items())}


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Which nodes a round waits for.

    Args:
        min_nodes: how many must be connected.
        num_partitions: of the population, where the server knows it: a node that says another number, or a partition
            that another node hosts already, is then left out, aloud. Without it, nodes that contradict each other end
            the run.
        wait_seconds: how long to wait for them; None is as long as for replies.
        on_connected: told how many nodes are connected, whenever the server looks; where it knows the partitions, every
            node that comes or goes is said aloud, too.
    """

    min_nodes: int = 1
    num_partitions: int | None = None
    wait_seconds: float | None = None
    on_connected: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        most = self.num_partitions or self.min_nodes
        require(1 <= self.min_nodes <= most, f"min_nodes must be from 1 to {most}", min_nodes=self.min_nodes)


@dataclass
class Nodes:
    """The nodes that the server has met.

    Args:
        grid: Flower's way to the nodes.
        timeout_seconds: how long to wait for answers.
        presence: which nodes to wait for.
    """

    grid: Grid
    timeout_seconds: float
    presence: Presence = field(default_factory=Presence)
    _places: dict[int, Place] = field(default_factory=dict)
    _left_out: set[int] = field(default_factory=set)
    _connected: frozenset[int] = frozenset()

    def connected(self) -> tuple[Mapping[int, int], int]:
        """Return partition -> node id of the nodes connected now, and the number of partitions.

        Raises:
            FederationError: too few nodes in time, or, where the server does not know how many partitions there are,
                two nodes for one partition or disagreement about the number.
        """
        wait_seconds = self.presence.wait_seconds
        wait_seconds = self.timeout_seconds if wait_seconds is None else wait_seconds
        deadline, tell_at = time.monotonic() + wait_seconds, 0.0
        while True:
            present = sorted(self.grid.get_node_ids())
            self._meet([node for node in present if node not in self._places])
            placed = [(node, self._places[node]) for node in present if node in self._places]
            node_of, num_partitions = self._check(placed)
            self._tell_of(frozenset(node_of), num_partitions)
            if len(node_of) >= self.presence.min_nodes:
                return node_of, num_partitions
            now = time.monotonic()
            wanted = "a node" if self.presence.min_nodes == 1 else f"{self.presence.min_nodes} nodes"
            got = "none" if not node_of else str(len(node_of))
            if now >= deadline:
                raise FederationError(f"{wanted} must connect in time, got {got} in {wait_seconds:g} seconds")
            if now >= tell_at:
                left = deadline - now
                _log.warning("waiting for %s to connect: %s so far, for %.0f more seconds", wanted, got, left)
                tell_at = now + _TELL_SECONDS
            time.sleep(min(_POLL_SECONDS, wait_seconds))

    def _tell_of(self, connected: frozenset[int], num_partitions: int) -> None:
        """Say which partitions' nodes have come or gone since the last look."""
        before, self._connected = self._connected, connected
        if self.presence.on_connected is not None:
            self.presence.on_connected(len(connected))
        if self.presence.num_partitions is None:
            return
        for change, partitions in (("connected", connected - before), ("gone", before - connected)):
            if partitions:
                count = f"{len(connected)} of {num_partitions}"
                _log.info("%s %s (%s)", _nodes_of(sorted(partitions)), change, count)

    def _meet(self, new: list[int]) -> None:
        if not new:
            return
        questions = [
            Message(RecordDict(), dst_node_id=node, message_type=f"query.{PLACE_ACTION}", ttl=self.timeout_seconds)
            for node in new
        ]
        for reply in self.grid.send_and_receive(questions, timeout=self.timeout_seconds):
            node = reply.metadata.src_node_id
            if reply.has_error() or node not in new:
                continue
            try:
                self._places[node] = place_from_records(reply.content)
            except FederationError as error:
                if self.presence.num_partitions is None:
                    raise
                _log.warning("left out: node %d: %s", node, error)

    def _check(self, placed: list[tuple[int, Place]]) -> tuple[Mapping[int, int], int]:
        if self.presence.num_partitions is not None:
            return self._agreeing(placed, self.presence.num_partitions), self.presence.num_partitions
        counts = {place.num_partitions for _, place in placed}
        node_of = {place.partition: node for node, place in placed}
        if len(counts) > 1:
            raise FederationError(f"nodes must agree on the number of partitions, got {sorted(counts)}")
        if len(node_of) != len(placed):
            raise FederationError(f"one node must host each partition, got {len(placed)} nodes for {len(node_of)}")
        return node_of, counts.pop() if counts else 0

    def _agreeing(self, placed: list[tuple[int, Place]], num_partitions: int) -> Mapping[int, int]:
        """Return partition -> node of those that fit; who came first keeps a partition."""
        node_of: dict[int, int] = {}
        met = {node: order for order, node in enumerate(self._places)}
        for node, place in sorted(placed, key=lambda pair: met[pair[0]]):
            if place.num_partitions == num_partitions and place.partition not in node_of:
                node_of[place.partition] = node
            elif node not in self._left_out:
                self._left_out.add(node)
                _log.warning(
                    "left out: node %d says partition %d of %d; there are %d, and each has one node",
                    *(node, place.partition, place.num_partitions, num_partitions),
                )
        return node_of


def _nodes_of(partitions: list[int]) -> str:
    """Say whose nodes these are, in a line that stays short for a fleet."""
    if len(partitions) == 1:
        return f"node of partition {partitions[0]}"
    shown = ", ".join(map(str, partitions[:_MOST_NAMED])) + (", ..." if len(partitions) > _MOST_NAMED else "")
    return f"{len(partitions)} nodes, of partitions {shown},"
