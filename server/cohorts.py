"""Who is in a round: sampled, by turns, or by groups that take part one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import FederationError
from ownlet.shared.noise import AesNoise

__all__ = ["check_separation", "draw_cohort", "draw_groups", "round_noise"]


def draw_cohort(
    config: FederationConfig,
    num_users: int,
    round_number: int,
    participations: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the users of a round, in order.

    Each of 0..N-1 with probability ``asked_rate``, independently; or, with ``turns``, each with the chance of turns
    left to rounds left, which gives everybody exactly ``turns`` rounds, any of them equally likely; or, with correlated
    noise, the group whose turn it is. The source is secret unless the config has a seed, which only a simulation may
    have.

    Args:
        config: of the run.
        num_users: N.
        round_number: from 1.
        participations: (N,) how often each user was asked before; needed with ``turns``.
        groups: (N,) from ``draw_groups``; needed with correlated noise.
    """
    if groups is not None and config.correlated:
        return np.flatnonzero(groups == (round_number - 1) % config.noise_plan.min_separation)
    source = round_noise(config, "cohort", round_number)
    if participations is None or not config.turns:
        return source.poisson_sample(num_users, config.asked_rate)
    left = config.rounds - round_number + 1
    chosen = []
    for done in range(config.turns):
        group = np.flatnonzero(participations == done)
        chosen.append(group[source.poisson_sample(len(group), min(1.0, (config.turns - done) / left))])
    return np.sort(np.concatenate(chosen))


def draw_groups(config: FederationConfig, num_users: int) -> NDArray[np.int64]:
    """Return the group, 0 to ``min_separation - 1``, of every user: as large as one another, at random, once per run.

    The order stays the same in every cycle: shuffled anew, a user's last round of one cycle and the first of the next
    could be next to each other.
    """
    order = round_noise(config, "groups", 0).permutation(num_users)
    groups = np.empty(num_users, dtype=np.int64)
    groups[order] = np.arange(num_users) % config.noise_plan.min_separation
    return groups


def check_separation(
    config: FederationConfig, cohort: NDArray[np.int64], round_number: int, last_asked: NDArray[np.int64]
) -> None:
    """Make sure that nobody is asked sooner, or more often, than the sensitivity of correlated noise allows.

    Args:
        config: of the run.
        cohort: who is to be asked.
        round_number: from 1.
        last_asked: (N,) the last round in which each user was asked, 0 for never.

    Raises:
        FederationError: a user would be asked too soon, or beyond the rounds that the noise was made for; nothing has
            been asked or charged.
    """
    if not config.correlated:
        return
    if round_number > config.rounds:
        raise FederationError(f"round must be within the {config.rounds} that noise was made for, got {round_number}")
    before = last_asked[cohort]
    apart = int((round_number - before[before > 0]).min(initial=config.rounds))
    if apart < config.noise_plan.min_separation:
        raise FederationError(f"rounds of one user must be {config.noise_plan.min_separation} apart, got {apart}")


def round_noise(config: FederationConfig, purpose: str, round_number: int) -> AesNoise:
    """Return the server's source for one purpose in one round: from the operating system unless the run has a seed."""
    return AesNoise() if config.seed is None else AesNoise.seeded(config.seed, purpose, round_number)
