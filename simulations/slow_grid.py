"""Nodes that take their time, by a clock that does not: hours of waiting pass as fast as the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flwr.clientapp import ClientApp

from ownlet.simulations.grid import Answer, Call, InProcessGrid

__all__ = ["SimulatedClock", "SlowGrid"]


@dataclass
class SimulatedClock:
    """Stands still until somebody sleeps; implements ``server.clock.Clock``."""

    seconds: float = 0.0

    def now(self) -> float:
        """Return how much time has passed."""
        return self.seconds

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds


class SlowGrid(InProcessGrid):
    """An answer is there so long after its message was sent as its node takes.

    Questions about places are answered at once; a node trains when its answer is taken.
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, clock: SimulatedClock, seconds_of: Callable[[int, int], float]
    ) -> None:
        """Start the nodes.

        Args:
            client_app: the app of every node.
            num_nodes: how many.
            clock: that the server waits by, too.
            seconds_of: from a partition, and how often it was asked before, to the seconds that it takes.
        """
        super().__init__(client_app, num_nodes)
        self._clock, self._seconds_of = clock, seconds_of
        self._ready: dict[str, float] = {}
        self._times_asked = [0] * num_nodes

    def _send(self, partition: int, call: Call) -> None:
        super()._send(partition, call)
        if call.message_type == "train":
            taken = self._seconds_of(partition, self._times_asked[partition])
            self._ready[call.message_id] = self._clock.now() + taken
            self._times_asked[partition] += 1

    def _collect(self, message_ids: list[str], wait_seconds: float | None) -> dict[str, Answer]:
        now = self._clock.now()
        return super()._collect([at for at in message_ids if self._ready.get(at, now) <= now], wait_seconds)
