"""The event of a sum whose noise comes in shares from those who take part, by the shares that really arrived.

Under secure aggregation nobody is trusted to add the noise, so each participant adds a Gaussian of its own. Independent
Gaussians add up by variance: m shares of standard deviation s * C give one of sqrt(m) * s * C. Whoever drops out takes
its share along, and a participant that works with the adversary knows its share and subtracts it. So the noise
multiplier of a round is known only once the round is over, and what is charged is the one that was realised, never the
one that was planned (Kairouz et al. 2021, https://arxiv.org/abs/2102.06387, section 4, on dropouts and honest
participants).

A realised noise depends on who answered. Rounds whose parameters come about like that add up by
``shared/privacy_filter.py``; a round that does not fit must be void, that is, its sum must never be unmasked.

Neighbouring relation: add or remove one user's clipped delta; its noise share stays (an empty participant adds noise
too).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ownlet.shared.errors import require
from ownlet.shared.privacy import user_level_event

if TYPE_CHECKING:
    from dp_accounting import DpEvent

__all__ = ["distributed_event", "realised_noise_multiplier", "share_noise_multiplier"]


def share_noise_multiplier(noise_multiplier: float, least_shares: int, num_colluding: int = 0) -> float:
    """Return the noise that each participant must add so that the fewest shares that are accepted are enough.

    Args:
        noise_multiplier: sigma of the whole sum, standard deviation divided by C.
        least_shares: with fewer arrived shares the round is void.
        num_colluding: of these, how many may work with the adversary.

    Returns:
        the standard deviation of one share, divided by C.

    Raises:
        ConfigError: a number is out of its range, or no honest share would be left.
    """
    _require_noise("noise_multiplier", noise_multiplier)
    require(num_colluding >= 0, "num_colluding must not be negative", num_colluding=num_colluding)
    require(
        least_shares > num_colluding,
        "least_shares must be more than num_colluding",
        least_shares=least_shares,
        num_colluding=num_colluding,
    )
    return noise_multiplier / math.sqrt(least_shares - num_colluding)


def realised_noise_multiplier(share_noise: float, num_arrived: int, num_colluding: int = 0) -> float:
    """Return sigma of the noise that the adversary cannot subtract from a sum.

    Args:
        share_noise: standard deviation of each share, divided by C.
        num_arrived: shares that are in the sum.
        num_colluding: of these, how many may work with the adversary.

    Raises:
        ConfigError: a number is out of its range.
    """
    _require_noise("share_noise", share_noise)
    for name, number in (("num_arrived", num_arrived), ("num_colluding", num_colluding)):
        require(number >= 0, f"{name} must not be negative", **{name: number})
    return share_noise * math.sqrt(max(0, num_arrived - num_colluding))


def distributed_event(
    share_noise: float, num_arrived: int, *, num_colluding: int = 0, cohort_rate: float = 1.0
) -> DpEvent:
    """Return the event of one round whose sum was released with the noise of the shares that arrived.

    Args:
        share_noise: standard deviation of each share, divided by C.
        num_arrived: shares that are in the sum; 0 is not private, as the sum then has no noise.
        num_colluding: of these, how many may work with the adversary.
        cohort_rate: the chance of each user to be in the round, where the adversary cannot see who is; against a
            server that knows whom it asked it is 1, which is the default.

    Raises:
        ConfigError: a number is out of its range.
    """
    return user_level_event(cohort_rate, realised_noise_multiplier(share_noise, num_arrived, num_colluding), 1)


def _require_noise(name: str, value: float) -> None:
    require(0 <= value < math.inf, f"{name} must not be negative, and finite", **{name: value})
