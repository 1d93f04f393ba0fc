"""What a round releases: the sum with its noise, and the state that goes with it.

Everything after this module is post-processing; everything before it is private.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ownlet.server.adaptive_clip import delta_multiplier, next_clip_norm
from ownlet.server.aggregate import average_of
from ownlet.server.checkpoint import ServerState
from ownlet.server.correlated_noise import NoiseState, draw_noise
from ownlet.shared.coding import places_of_round
from ownlet.shared.config import FederationConfig
from ownlet.shared.noise import AesNoise

__all__ = ["release", "skip"]


def release(
    total: NDArray[np.float64],
    config: FederationConfig,
    state: ServerState,
    num_users: int,
    source: AesNoise,
    part: slice = slice(None),
) -> tuple[NDArray[np.float64], ServerState]:
    """Return the average delta that a round releases, and the state after it.

    Args:
        total: the sum of the admitted replies, one number for each that this round trains and, where they count, one
            more.
        config: unit, noise, clip and expected share of users.
        state: before the release; C of this round.
        num_users: N, the public size of the population.
        source: the server's secret source for this round.
        part: which of the trained numbers this round trains; the others are what they were, whoever takes part.

    Returns:
        one number for each of these: the noised sum over the expected number of users, and the state with C of the
        next round.
    """
    noise, after = _noise(config, state, num_users, source)
    noise, clip_norm = noise[part], state.clip_norm
    if config.wire.name == "sparse":  # what nobody sends is zero whoever takes part, and needs no noise
        places = places_of_round(config.wire, len(state.results) + 1, len(noise))
        drawn, noise = noise, np.zeros_like(noise)
        noise[places] = drawn[places]
    if config.counts:
        total, count = total[:-1], float(total[-1])
        clip_norm = next_clip_norm(config, clip_norm, count, num_users, source.child("count"))
    average = average_of(total + noise, config, num_users)
    return average, replace(state, noise=after, clip_norm=clip_norm)


def skip(config: FederationConfig, state: ServerState, num_users: int, source: AesNoise) -> ServerState:
    """Return the state after a void round, which released nothing."""
    noise, after = _noise(config, state, num_users, source)
    return replace(state, noise=after.after_void(noise))


def _noise(
    config: FederationConfig, state: ServerState, num_users: int, source: AesNoise
) -> tuple[NDArray[np.float64], NoiseState]:
    """Return the noise on the sum of a round, (num_trainable,), and the state of the noise after it."""
    if config.unit != "user" or config.noise_multiplier == 0 or config.secure.enabled:  # or the nodes have added it
        return np.zeros_like(state.noise.owed), state.noise
    std = delta_multiplier(config, num_users) * state.clip_norm
    return draw_noise(config, state.noise, std, source)
