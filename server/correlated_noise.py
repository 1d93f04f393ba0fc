"""The server's noise, round by round: independent, or streamed through the buffers of a factor.

``w = C⁻¹ z`` needs no matrix: with S the buffers, ``w = z - sum of scale S`` and then ``S = decay S + w`` for each
(Dvijotham et al. 2024, https://arxiv.org/abs/2404.16706).

A void round changes nothing, but its noise has been drawn and later noise takes part of it back. So it is owed, and
added to the next round that is not void: the release is then the sum of two outputs of the same mechanism, and prefix
sums carry exactly the noise that they were planned with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ownlet.server.noise_factor import INDEPENDENT, Factor, best_factor, sensitivity
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource

__all__ = ["NoiseState", "draw_noise", "factor_of", "realised_multiplier", "run_sensitivity"]


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseState:
    """What the noise remembers between rounds.

    Args:
        factor: C.
        buffers: (buffers, num_trainable).
        owed: (num_trainable,) noise of void rounds since the last that was not.
    """

    factor: Factor
    buffers: NDArray[np.float64]
    owed: NDArray[np.float64]

    @classmethod
    def start(cls, config: FederationConfig, num_trainable: int) -> NoiseState:
        """Return the state before the first round."""
        factor = factor_of(config)
        buffers = np.zeros((len(factor.scales), num_trainable))
        return cls(factor=factor, buffers=buffers, owed=np.zeros(num_trainable))

    def after_void(self, noise: NDArray[np.float64]) -> NoiseState:
        """Return the state in which noise that was drawn for a void round is owed."""
        return replace(self, owed=noise) if self.factor.scales else self


def factor_of(config: FederationConfig) -> Factor:
    """Return the factor that the config's rounds and participation ask for."""
    plan = config.noise_plan
    if not config.correlated:
        return INDEPENDENT
    return best_factor(config.rounds, plan.min_separation, config.max_participations, plan.buffers)


def run_sensitivity(config: FederationConfig, factor: Factor) -> float:
    """Return the most that one user moves C x over a whole run, in units of the clip norm."""
    if not config.correlated:
        return 1.0
    return sensitivity(factor, config.rounds, config.noise_plan.min_separation, config.max_participations)


def realised_multiplier(config: FederationConfig, factor: Factor, rounds: int) -> float:
    """Return the noise multiplier of the first ``rounds`` rounds of a run with correlated noise, as one Gaussian.

    C is lower triangular, so these rounds are a mechanism of their own over the upper left part of C, with the noise
    that the whole run has.
    """
    require(rounds <= config.rounds, f"rounds must be at most those of the run, {config.rounds}", rounds=rounds)
    separation = config.noise_plan.min_separation
    so_far = sensitivity(factor, rounds, separation, -(-rounds // separation))
    return config.noise_multiplier * run_sensitivity(config, factor) / so_far


def draw_noise(
    config: FederationConfig, state: NoiseState, std: float, source: NoiseSource
) -> tuple[NDArray[np.float64], NoiseState]:
    """Draw the noise of the next round.

    Args:
        config: which noise plan.
        state: after the round before, void or not.
        std: of the noise on one user's contribution of norm at most C: noise multiplier times C.
        source: the server's secret source for this round.

    Returns:
        (num_trainable,) what is added to the sum, owed noise included, and the state after it.
    """
    size = len(state.owed)
    z = source.gaussian(size, std * run_sensitivity(config, state.factor)).astype(np.float64)
    if not state.factor.scales:
        return z, state
    scales, decays = np.array(state.factor.scales), np.array(state.factor.decays)
    w = z - scales @ state.buffers
    buffers = decays[:, None] * state.buffers + w
    return state.owed + w, replace(state, buffers=buffers, owed=np.zeros(size))
