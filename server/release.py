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
from ownlet.shared.config import FederationConfig
from ownlet.shared.noise import AesNoise

__all__ = ["release"]


def release(
    total: NDArray[np.float64], config: FederationConfig, state: ServerState, num_users: int, source: AesNoise
) -> tuple[NDArray[np.float64], ServerState]:
    """Return the average delta that a round releases, and the state after it.

    Args:
        total: the sum of the admitted replies, (num_trainable,) or, where they count, one number more.
        config: unit, noise, clip and expected share of users.
        state: before the release; C of this round.
        num_users: N, the public size of the population.
        source: the server's secret source for this round.

    Returns:
        (num_trainable,) the noised sum over the expected number of users, and the state with C of the next round.
    """
    count: float | None = None
    if config.counts:
        total, count = total[:-1], float(total[-1])
    if config.unit == "user" and config.noise_multiplier > 0:
        total = total + source.gaussian(len(total), delta_multiplier(config, num_users) * state.clip_norm)
    if count is not None:
        clip_norm = next_clip_norm(config, state.clip_norm, count, num_users, source.child("count"))
        state = replace(state, clip_norm=clip_norm)
    return average_of(total, config, num_users), state
