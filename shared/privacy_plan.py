"""What a run would cost before it is started: the noise that an epsilon takes, or the epsilon that a noise gives.

Beside the choice stand its neighbours (half and double of every number), because a plan is a trade: epsilon, how much
is released, and the noise that is left on an average. Epsilon is that of ``shared.privacy`` throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ownlet.shared.errors import require
from ownlet.shared.privacy import ACCOUNTANT, epsilon, epsilon_curve, event_to_json, noise_multiplier_for
from ownlet.shared.releases import Release

__all__ = ["PLAN_FORMAT", "PlanRow", "PrivacyPlan", "delta_warning", "plan_privacy"]

PLAN_FORMAT = "ownlet-plan-1"
_FAR_BELOW = 0.1  # delta times the number of users: the expected number of users for whom the promise may fail


@dataclass(frozen=True, kw_only=True)
class PlanRow:
    """What one choice costs.

    Args:
        label: what differs from the plan.
        epsilon: of the whole run.
        noise_multiplier: sigma, standard deviation of the noise on a sum divided by the clip norm.
        sample_rate: q that sampling amplifies by.
        sums: T, noised sums that one unit may be in.
        average_noise: standard deviation of the noise on the average, in units of the clip; None where the number of
            units in an average is not known.
    """

    label: str
    epsilon: float
    noise_multiplier: float
    sample_rate: float
    sums: int
    average_noise: float | None


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """A choice with its neighbours.

    Args:
        unit: whose privacy is spent.
        solved: which of the two was asked for: ``noise`` or ``epsilon``.
        dp_delta: the privacy parameter delta.
        chosen: the plan itself.
        alternatives: its neighbours; with the same epsilon where the noise was asked for, else with the same noise.
        curve: (delta, epsilon) of the chosen plan at several deltas.
        event: canonical JSON of what the chosen plan spends.
        warnings: what should be thought over.
    """

    unit: str
    solved: str
    dp_delta: float
    chosen: PlanRow
    alternatives: tuple[PlanRow, ...]
    curve: tuple[tuple[float, float], ...]
    event: str
    warnings: tuple[str, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it for JSON; an infinite epsilon is written as the text ``inf``."""
        return {
            "format": PLAN_FORMAT,
            "unit": self.unit,
            "solved": self.solved,
            "dp_delta": self.dp_delta,
            "chosen": _plain_row(self.chosen),
            "alternatives": [_plain_row(row) for row in self.alternatives],
            "epsilon_at": [{"dp_delta": delta, "epsilon": _plain(value)} for delta, value in self.curve],
            "event": self.event,
            "accountant": ACCOUNTANT,
            "warnings": list(self.warnings),
        }


def plan_privacy(
    release: Release,
    *,
    dp_delta: float,
    target_epsilon: float | None = None,
    noise_multiplier: float | None = None,
    num_users: int | None = None,
) -> PrivacyPlan:
    """Solve for the noise that an epsilon takes, or for the epsilon that a noise gives; some seconds.

    Args:
        release: how often one unit's data enters a noised sum.
        dp_delta: the privacy parameter delta.
        target_epsilon: the budget of the whole run; then the least noise is found.
        noise_multiplier: sigma; then its epsilon is found. Exactly one of the two must be given.
        num_users: of the fleet, to see whether delta is small enough.

    Raises:
        ConfigError: both or neither is given, or a number is out of its range.
        PrivacyError: no noise is enough.
    """
    require(
        (target_epsilon is None) != (noise_multiplier is None),
        "exactly one of epsilon and noise_multiplier must be given",
        epsilon=target_epsilon,
        noise_multiplier=noise_multiplier,
    )
    if target_epsilon is not None:
        chosen = _with_epsilon("this plan", release, target_epsilon, dp_delta)
        others = [_with_epsilon(label, other, target_epsilon, dp_delta) for label, other in release.variants().items()]
        for times in (0.5, 2.0):
            label = f"epsilon {times * target_epsilon:g}"
            others.append(_with_epsilon(label, release, times * target_epsilon, dp_delta))
    else:
        assert noise_multiplier is not None
        chosen = _with_noise("this plan", release, noise_multiplier, dp_delta)
        others = [_with_noise(label, other, noise_multiplier, dp_delta) for label, other in release.variants().items()]
        for times in (0.5, 2.0):
            label = f"noise multiplier {times * noise_multiplier:g}"
            others.append(_with_noise(label, release, times * noise_multiplier, dp_delta))
    event = release.event(chosen.noise_multiplier)
    deltas = tuple(sorted({dp_delta, *(10.0**-power for power in range(4, 11))}, reverse=True))
    warnings = [delta_warning(dp_delta, num_users)] if num_users is not None else []
    if not math.isfinite(chosen.epsilon):
        warnings.append("Without noise nothing is promised.")
    elif chosen.epsilon > 10:
        warnings.append(
            f"An epsilon of {chosen.epsilon:.1f} bounds next to nothing: odds may grow {_odds(chosen)}-fold."
        )
    return PrivacyPlan(
        unit=release.unit,
        solved="noise" if target_epsilon is not None else "epsilon",
        dp_delta=dp_delta,
        chosen=chosen,
        alternatives=tuple(others),
        curve=tuple(zip(deltas, epsilon_curve(event, deltas), strict=True)),
        event=event_to_json(event),
        warnings=tuple(warning for warning in warnings if warning),
    )


def delta_warning(dp_delta: float, num_users: int) -> str:
    """Say what is wrong with a delta for so many users; "" where it is far below 1/N.

    Delta bounds the chance that the promise fails for one user, so N * delta users may be exposed without any limit.
    """
    if dp_delta * num_users <= _FAR_BELOW:
        return ""
    return (
        f"delta {dp_delta:g} is not far below 1/users = {1 / num_users:.2g}: the promise may fail altogether for up to "
        f"{dp_delta * num_users:.2g} of {num_users:,} users; take {_FAR_BELOW / num_users:.1g} or less."
    )


def _with_epsilon(label: str, release: Release, target_epsilon: float, dp_delta: float) -> PlanRow:
    rate, sums = release.sampling
    sigma = noise_multiplier_for(target_epsilon, dp_delta, rate, sums)
    return _with_noise(label, release, sigma, dp_delta)


def _with_noise(label: str, release: Release, noise_multiplier: float, dp_delta: float) -> PlanRow:
    rate, sums = release.sampling
    over = release.averaged_over
    return PlanRow(
        label=label,
        epsilon=epsilon(release.event(noise_multiplier), dp_delta),
        noise_multiplier=noise_multiplier,
        sample_rate=rate,
        sums=sums,
        average_noise=None if over is None else noise_multiplier / over,
    )


def _odds(row: PlanRow) -> str:
    return f"{math.exp(min(row.epsilon, 700.0)):.0e}"


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _plain_row(row: PlanRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "epsilon": _plain(row.epsilon),
        "noise_multiplier": row.noise_multiplier,
        "sample_rate": row.sample_rate,
        "sums": row.sums,
        "average_noise": row.average_noise,
    }
