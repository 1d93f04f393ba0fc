"""The plain loop: Opacus trains one user after the other, without any federation around it."""

from __future__ import annotations

import time

import torch

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.adapter import Vector
from ownlet.shared.noise import SimulatedNoise
from ownlet.shared.windows import Windows, cut_windows
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload

__all__ = ["measure_opacus_loop"]

_WARMUP_USERS = 8
_DEFAULT = Workload()


def measure_opacus_loop(num_users: int, *, num_threads: int = 1, workload: Workload = _DEFAULT) -> float:
    """Time the Opacus engine on one user after the other, in this process.

    Building the engine and cutting the windows are not timed; making each user's noise is. The noise is the fast one
    of simulations, so that the loop is not slowed down by what a real device would have to do.

    Args:
        num_users: how many are timed; a few before them are not.
        num_threads: of torch, during the measurement.
        workload: the users and the base.

    Returns:
        Users per second.
    """
    model, spec, vector = workload.base()
    engine = OpacusEngine(model, spec)
    users = [cut_windows(history, workload.windows) for history in workload.histories(_WARMUP_USERS + num_users)]
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for user in range(_WARMUP_USERS):
            _train_user(engine, vector, users[user], user)
        start = time.perf_counter()
        for user in range(_WARMUP_USERS, len(users)):
            _train_user(engine, vector, users[user], user)
        return num_users / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)


def _train_user(engine: OpacusEngine, vector: Vector, windows: Windows, user: int) -> None:
    engine.train(vector, [windows], DP_PLAN, [SimulatedNoise(0, 0, user)])
