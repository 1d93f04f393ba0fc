"""From how often an attack was right to a lower bound on epsilon, with a confidence.

For every event that an (epsilon, delta) private mechanism can produce, ``P(in) <= e^epsilon P(out) + delta``, and the
same with in and out exchanged and for the event's complement (Kairouz et al. 2015, https://arxiv.org/abs/1311.0776,
theorem 2.1). So bounds on an attack's true and false positive rates bound epsilon from below (Jagielski et al. 2020,
https://arxiv.org/abs/2006.07709, section 4). The rates are bounded by Clopper and Pearson 1934, exactly and not
asymptotically. All this holds for a threshold that was fixed before looking at the scores, and for scores that are
independent of each other.
"""

from __future__ import annotations

import math

from ownlet.shared.errors import require
from ownlet.simulations.audit.bounds import proportion_lower

__all__ = ["epsilon_of_counts", "epsilon_of_rates", "rate_above", "rate_below", "rate_interval"]


def rate_above(successes: int, trials: int, confidence: float) -> float:
    """Return what the rate behind ``successes`` of ``trials`` exceeds with this confidence; 0 where none succeeded."""
    _check(successes, trials, confidence)
    return proportion_lower(successes, trials, 1 - confidence)


def rate_below(successes: int, trials: int, confidence: float) -> float:
    """Return what the rate behind ``successes`` of ``trials`` stays below with this confidence; 1 where all did."""
    return 1.0 - rate_above(trials - successes, trials, confidence)


def rate_interval(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Return the two-sided interval of a rate."""
    one_sided = (1 + confidence) / 2
    return rate_above(successes, trials, one_sided), rate_below(successes, trials, one_sided)


def epsilon_of_rates(true_rate: float, false_rate: float, dp_delta: float) -> float:
    """Return the least epsilon with which an attack can have these rates; 0 where any has, infinity where none has.

    Args:
        true_rate: the share of members, or a lower bound on it, that the attack takes for members.
        false_rate: the share of the others, or an upper bound on it, that it takes for members.
        dp_delta: the privacy parameter delta.
    """
    found = 0.0
    for likely, unlikely in ((true_rate, false_rate), (1 - false_rate, 1 - true_rate)):
        if likely > dp_delta:
            found = max(found, math.log((likely - dp_delta) / unlikely) if unlikely > 0 else math.inf)
    return found


def epsilon_of_counts(
    true_positives: int, members: int, false_positives: int, others: int, dp_delta: float, confidence: float = 0.95
) -> float:
    """Return the lower bound on epsilon that an attack's successes give.

    Args:
        true_positives: members that it took for members, at a threshold fixed before looking.
        members: how many there were.
        false_positives: others that it took for members.
        others: how many there were.
        dp_delta: the privacy parameter delta.
        confidence: of the bound; each of the two rates gets half of what is missing to 1.
    """
    each = (1 + confidence) / 2
    return epsilon_of_rates(
        rate_above(true_positives, members, each), rate_below(false_positives, others, each), dp_delta
    )


def _check(successes: int, trials: int, confidence: float) -> None:
    require(0 <= successes <= trials, f"successes must be in 0..{trials}", successes=successes)
    require(trials >= 1, "trials must be at least 1", trials=trials)
    require(0 < confidence < 1, "confidence must be in (0, 1)", confidence=confidence)
