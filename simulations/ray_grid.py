"""Flower's ``Grid`` over Ray actors: nodes as processes, on one machine or on all machines of a Ray cluster.

Needs the extra ``[sim]``. Every actor loads the base and the population itself, from paths that must be readable on
every machine, and keeps them for the whole run; only adapters and sums travel. An actor that dies is started anew by
Ray: the round in which it died has one reply less, the next has them all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any

import ray
from flwr.app import UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from ray.exceptions import RayError

import ownlet.shared.quiet  # noqa: F401  (Ray reads the environment when it starts)
from ownlet.simulations.grid import Answer, Call, LocalGrid, answer_call, node_context, take_identity

__all__ = ["RayGrid"]

_RESTART_SECONDS = 120.0


class RayGrid(LocalGrid, AbstractContextManager["RayGrid"]):
    """One actor per node, spread over the machines of the cluster. Leaving the ``with`` block ends the actors."""

    def __init__(
        self,
        load_client_app: Callable[[], ClientApp],
        num_nodes: int,
        *,
        address: str | None = None,
        threads: int = 1,
        run_config: Mapping[str, UserConfigValue] | None = None,
    ) -> None:
        """Start the nodes and wait until every one has loaded its app.

        Args:
            load_client_app: called once in every actor; pickled on its way there.
            num_nodes: how many actors.
            address: of a running Ray cluster, ``auto`` for the one on this machine; None starts one in this process.
            threads: cores that an actor takes, and threads of its arithmetic.
            run_config: what each node's ``context.run_config`` holds.

        Raises:
            RayError: an actor could not load its app.
            ConnectionError: no cluster at the address.
        """
        super().__init__(num_nodes)
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(address=address, include_dashboard=False, configure_logging=True, logging_level=logging.ERROR)
        # Without a limit on restarts a crashed node is there again in the next round.
        node = ray.remote(_Node).options(num_cpus=threads, max_restarts=-1, scheduling_strategy="SPREAD")
        self._actors: list[Any] = [
            node.remote(load_client_app, partition, num_nodes, threads, dict(run_config or {}))
            for partition in range(num_nodes)
        ]
        self._pending: dict[str, Any] = {}
        self._fallen: set[int] = set()  # partitions whose actor died since it was last asked
        try:
            self.machines: tuple[str, ...] = tuple(ray.get([actor.machine.remote() for actor in self._actors]))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        if self._started_ray:
            ray.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, partition: int, call: Call) -> None:
        actor = self._actors[partition]
        if partition in self._fallen:  # asked while Ray still starts it anew it would only answer with an error
            with suppress(RayError):
                ray.get(actor.machine.options(max_task_retries=-1).remote(), timeout=_RESTART_SECONDS)
            self._fallen.discard(partition)
        self._pending[call.message_id] = actor.answer.remote(call)

    def _collect(self, message_ids: list[str], wait_seconds: float | None) -> dict[str, Answer]:
        asked = {self._pending[at]: at for at in message_ids}
        if not asked:
            return {}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=wait_seconds)
        for future in done:
            self._pending.pop(asked[future])
        return {asked[future]: self._answer_of(self._calls[asked[future]], future) for future in done}

    def _answer_of(self, call: Call, future: Any) -> Answer:
        try:
            answer: Answer = ray.get(future)
        except RayError as error:
            self._fallen.add(self._nodes.index(call.node))
            return Answer(error_code=ErrorCode.NODE_UNAVAILABLE, reason=type(error).__name__)
        return answer


class _Node:
    """An actor: one node's app and context."""

    def __init__(
        self,
        load_client_app: Callable[[], ClientApp],
        partition: int,
        num_nodes: int,
        threads: int,
        run_config: Mapping[str, UserConfigValue],
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        take_identity()
        self._app = load_client_app()
        self._context = node_context(partition, num_nodes, run_config)

    def machine(self) -> str:
        """Return Ray's id of the machine that the actor lives on; answers once the app is loaded."""
        machine: str = ray.get_runtime_context().get_node_id()
        return machine

    def answer(self, call: Call) -> Answer:
        """Answer a call."""
        return answer_call(self._app, self._context, call)
