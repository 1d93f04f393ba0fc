"""What a round under secure aggregation costs, by the noise that was really in its sum.

There are two readers, and epsilon is stated for both:

* whoever sees published adapters, and cannot know who was in a round's cohort: ``RoundResult.epsilon``, with the gain
  of Poisson sampling, as where the server adds the noise;
* the server, which chose the cohort and sees each sum: ``RoundResult.server_epsilon``. Sampling gains nothing against
  it, so the most asked user pays for each of its rounds in full, at the least noise of any.

Neighbouring relation: a user's delta is zero or not; that the user takes part is known to the server, and its node adds
noise either way. Dropouts are taken to depend on devices and networks, not on what is in the sums. A void round is
charged as it was planned, although nothing was unmasked.

Noise is rounded down to 128ths of the planned one, so that rounds of nearly the same noise are one event.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ownlet.server.checkpoint import ServerState, spent_event
from ownlet.shared.config import FederationConfig
from ownlet.shared.privacy import epsilon, user_turns_event

__all__ = ["charge_realised"]

_STEPS = 128


def charge_realised(config: FederationConfig, state: ServerState, noise_multiplier: float | None) -> ServerState:
    """Return the state whose last round is charged with the noise that it had.

    Args:
        config: of the run; under the unit ``window`` nothing changes, since devices are charged for their own noise.
        state: with the round's record.
        noise_multiplier: of the sum that was released, or None where nobody was asked.
    """
    if config.unit != "user":
        return state
    planned = config.noise_multiplier
    charged = planned
    if noise_multiplier is not None and planned > 0:
        charged = planned * math.floor(_STEPS * noise_multiplier / planned) / _STEPS
    last = replace(state.results[-1], noise_multiplier=charged)
    state = replace(state, results=(*state.results[:-1], last))
    event = spent_event(config, len(state.results), state.participations, realised=state.realised)
    in_full = user_turns_event(min(state.realised), int(state.participations.max(initial=0)))
    last = replace(last, epsilon=epsilon(event, config.dp_delta), server_epsilon=epsilon(in_full, config.dp_delta))
    return replace(state, results=(*state.results[:-1], last))
