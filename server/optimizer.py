"""The server's optimisers: from the average delta of a round to the next adapter.

FedAvgM is that of Hsu et al. 2019 (https://arxiv.org/abs/1909.06335); FedAdam and FedYogi those of Reddi et al. 2021
(https://arxiv.org/abs/2003.00295, algorithm 2), without bias correction, as there. With the average delta d of a round:

    fedavgm    m = beta1 m + d                       x = x + rate m
    fedadam    m = beta1 m + (1 - beta1) d           v = beta2 v + (1 - beta2) d²
    fedyogi    m = beta1 m + (1 - beta1) d           v = v - (1 - beta2) d² sign(v - d²)
    both       x = x + rate m / (sqrt(v) + tau)      v = tau² at first

Each sees nothing but averages that carry their noise, so whatever it does with them is free post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.alternate import part_of_round, places_of_part, spec_of_part
from ownlet.shared.config import FederationConfig
from ownlet.shared.schedule import schedule_factor
from ownlet.shared.server_config import OptimizerName, ServerOptimizer

__all__ = ["OptimizerState", "server_step"]


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimizerState:
    """What an optimiser remembers between rounds.

    Args:
        momentum: (num_trainable,) m.
        squares: (num_trainable,) v; zeros where the optimiser has none.
    """

    momentum: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def start(cls, optimizer: ServerOptimizer, num_trainable: int) -> OptimizerState:
        """Return the state before the first step."""
        first = 0.0 if optimizer.name == "fedavgm" else optimizer.tau**2
        return cls(momentum=np.zeros(num_trainable), squares=np.full(num_trainable, first))

    def of(self, places: slice) -> OptimizerState:
        """Return what is remembered of some of the trained numbers."""
        return OptimizerState(momentum=self.momentum[places], squares=self.squares[places])

    def with_part(self, places: slice, part: OptimizerState) -> OptimizerState:
        """Return the state in which some of the trained numbers are remembered otherwise."""
        momentum, squares = self.momentum.copy(), self.squares.copy()
        momentum[places], squares[places] = part.momentum, part.squares
        return OptimizerState(momentum=momentum, squares=squares)


_Squares = Callable[[NDArray[np.float64], NDArray[np.float64], float], NDArray[np.float64]]


def _adam_squares(
    squares: NDArray[np.float64], delta_squares: NDArray[np.float64], beta2: float
) -> NDArray[np.float64]:
    return beta2 * squares + (1 - beta2) * delta_squares


def _yogi_squares(
    squares: NDArray[np.float64], delta_squares: NDArray[np.float64], beta2: float
) -> NDArray[np.float64]:
    moved: NDArray[np.float64] = squares - (1 - beta2) * delta_squares * np.sign(squares - delta_squares)
    return moved


_SQUARES: Mapping[OptimizerName, _Squares] = {"fedadam": _adam_squares, "fedyogi": _yogi_squares}


def server_step(
    spec: AdapterSpec,
    vector: Vector,
    state: OptimizerState,
    average: NDArray[np.float64],
    config: FederationConfig,
    round_number: int,
) -> tuple[Vector, OptimizerState]:
    """Take one step of the config's optimiser, at the rate that its schedule gives.

    Where rounds alternate, only the part moves whose turn it is; what is remembered of the other waits for its turn.

    Args:
        spec: says which numbers of the vector are trained.
        vector: (P,) the adapter; not changed.
        state: of the optimiser; not changed.
        average: (numbers of the round's part,) the noised average delta of the round.
        config: optimiser, its momentum (beta1), learning rate and schedule.
        round_number: counted from 1, void rounds included.

    Returns:
        the next adapter (P,) and the next state.
    """
    factor = schedule_factor(config.schedule, round_number - 1, config.rounds, warmup=config.warmup_rounds)
    part = part_of_round(config.alternate, round_number)
    places, trained = places_of_part(spec, part), spec_of_part(spec, part).trainable
    direction, after = _direction(state.of(places), average, config.server_optimizer, config.server_momentum)
    moved = vector.copy()
    step = config.server_learning_rate * factor * direction
    moved[trained] = (vector[trained] + step).astype(np.float32)
    return moved, state.with_part(places, after)


def _direction(
    state: OptimizerState, average: NDArray[np.float64], optimizer: ServerOptimizer, beta1: float
) -> tuple[NDArray[np.float64], OptimizerState]:
    """Return what the rate is multiplied with, and the next state."""
    if optimizer.name == "fedavgm":
        momentum = beta1 * state.momentum + average
        return momentum, OptimizerState(momentum=momentum, squares=state.squares)
    momentum = beta1 * state.momentum + (1 - beta1) * average
    squares = _SQUARES[optimizer.name](state.squares, average**2, optimizer.beta2)
    after = OptimizerState(momentum=momentum, squares=squares)
    return momentum / (np.sqrt(squares) + optimizer.tau), after
