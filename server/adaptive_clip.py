"""A clip norm that follows a quantile of the users' deltas (Andrew et al. 2021, https://arxiv.org/abs/1905.03871).

Every user tells, beside the clipped delta, whether it was within C: one half or minus one half. The server adds noise
of standard deviation sigma_b to the sum of those, divides by the expected size of the cohort m, a public number, and
moves C geometrically (algorithm 1):

    share = 1/2 + (sum + N(0, sigma_b²)) / m,    C = C exp(-rate (share - quantile))

Delta and count together are one Gaussian mechanism: after scaling by their noise, one user moves them by at most
``sqrt(1 / z_delta² + 1 / (2 sigma_b)²)``. So with (theorem 1)

    z_delta = (1 / z² - 1 / (2 sigma_b)²) ** -1/2

the round costs exactly what one with noise multiplier z and a fixed clip costs, and that is what is charged. C depends
on earlier releases; the noise is always a multiple of C, so what a round costs does not.
"""

from __future__ import annotations

import math

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource

__all__ = ["check_split", "count_std", "delta_multiplier", "next_clip_norm"]


def count_std(config: FederationConfig, num_users: int) -> float:
    """Return sigma_b: the standard deviation of the noise on the count."""
    return config.adaptive_clip.count_noise * config.expected_share * num_users


def delta_multiplier(config: FederationConfig, num_users: int) -> float:
    """Return the noise multiplier of the deltas: sigma, or z_delta where the count must be paid for.

    Raises:
        ConfigError: the noise on the count alone would cost more than the round may.
    """
    z = config.noise_multiplier
    if not config.counts or z == 0:
        return z
    most = 2 * count_std(config, num_users)
    require(
        most > z,
        "twice count_noise times the expected cohort must be above noise_multiplier",
        twice=round(most, 3),
        noise_multiplier=z,
    )
    return 1 / math.sqrt(1 / z**2 - 1 / most**2)


def check_split(config: FederationConfig, num_users: int) -> None:
    """Raise ConfigError where ``delta_multiplier`` would, before anything is asked."""
    delta_multiplier(config, num_users)


def next_clip_norm(
    config: FederationConfig, clip_norm: float, count: float, num_users: int, noise: NoiseSource
) -> float:
    """Return C of the next round.

    Args:
        config: quantile, rate and noise.
        clip_norm: C of this round.
        count: the sum of the users' halves.
        num_users: N, the public size of the population.
        noise: the server's secret source; another stream than that of the deltas.
    """
    std = count_std(config, num_users) if config.noise_multiplier > 0 else 0.0
    share = 0.5 + (count + float(noise.gaussian(1, std)[0])) / (config.expected_share * num_users)
    return clip_norm * math.exp(-config.adaptive_clip.learning_rate * (share - config.adaptive_clip.quantile))
