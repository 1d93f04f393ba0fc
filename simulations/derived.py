"""Settings of ``ownlet simulate`` that follow from others, unless somebody gave them.

* alpha is twice the rank;
* under the unit ``window`` rounds and plan are those of ``shared/window_mode.py``; the noise belongs to the plan;
* the noise follows from the target epsilon;
* without a unit there is neither noise nor a target.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.settings import DEFAULTS, Given
from ownlet.shared.window_mode import window_federation, window_step
from ownlet.simulations.federated_run import FederatedRunConfig

__all__ = ["DERIVED", "derived_settings", "noise_for_target"]

_WINDOW_RUN, _WINDOW_PLAN = window_federation(1.0), window_federation(1.0).plan
_OF_WINDOWS: dict[str, Any] = {
    "federation.rounds": _WINDOW_RUN.rounds,
    "federation.turns": _WINDOW_RUN.turns,
    "federation.clip_norm": _WINDOW_RUN.clip_norm,
    "federation.plan.steps": _WINDOW_PLAN.steps,
    "federation.plan.clip_norm": _WINDOW_PLAN.clip_norm,
    "federation.plan.sample_rate": _WINDOW_PLAN.sample_rate,
}

DERIVED = {
    "adapter.alpha": "by default 2 * rank",
    "federation.noise_multiplier": "by default what target_epsilon takes; of the unit window it is 0, see plan",
    "federation.plan.noise_multiplier": "of the unit window by default what target_epsilon takes",
    "federation.plan.learning_rate": "of the unit window by default what suits the noise, over the clip",
    **{name: f"of the unit window by default {value}" for name, value in _OF_WINDOWS.items()},
}
"""Name of a setting -> what it is where nobody gives it."""

_TARGET = "federation.target_epsilon"


def derived_settings(given: Mapping[str, Given]) -> dict[str, Given]:
    """Return what somebody gave, and what follows from it before the settings can be built.

    Raises:
        ConfigError: a unit without what decides its noise.
    """
    found = dict(given)
    unit = found["federation.unit"].value if "federation.unit" in found else "user"
    if unit == "window":
        noise = found.get("federation.noise_multiplier")
        if noise is not None and noise.source == "--noise-multiplier":  # the option means the noise of the unit
            found["federation.plan.noise_multiplier"] = found.pop("federation.noise_multiplier")
        if "federation.cohort_rate" in found and "federation.turns" not in found:
            found["federation.turns"] = Given(value=0, source=DEFAULTS)  # somebody wants Poisson sampling
        if "federation.plan.noise_multiplier" not in found:
            found["federation.plan.noise_multiplier"] = Given(value=_window_noise(found), source=DEFAULTS)
    elif unit == "user" and "federation.noise_multiplier" not in found and not _is_finite(found.get(_TARGET)):
        raise ConfigError(
            "unit user must have --target-epsilon or --noise-multiplier (such as --target-epsilon 2), "
            "or be --unit none, got neither"
        )
    elif unit == "none":
        found["federation.noise_multiplier"] = Given(value=0.0, source=DEFAULTS)
        found[_TARGET] = Given(value=math.inf, source=DEFAULTS)
    follows: dict[str, Any] = {}
    if unit == "window":
        follows |= {**_OF_WINDOWS, "federation.noise_multiplier": 0.0}
        follows["federation.plan.learning_rate"] = _window_rate(found)
    rank = found["adapter.rank"].value if "adapter.rank" in found else None
    if isinstance(rank, int):
        follows["adapter.alpha"] = 2.0 * rank
    return {name: Given(value=value, source=DEFAULTS) for name, value in follows.items()} | found


def _window_noise(found: Mapping[str, Given]) -> float:
    """Return the noise of the plan with which a device's turns stay within the target.

    Raises:
        ConfigError: no target, or users are sampled, so that nobody knows how often one is asked.
    """

    def value(name: str, default: float) -> Any:
        return found[name].value if name in found else _OF_WINDOWS.get(name, default)

    turns = value("federation.turns", 0)
    if not _is_finite(found.get(_TARGET)) or not turns:
        raise ConfigError("unit window must have --noise-multiplier, or --target-epsilon with turns, got neither")
    return noise_multiplier_for(
        target_epsilon=value(_TARGET, math.inf),
        dp_delta=value("federation.dp_delta", _WINDOW_RUN.dp_delta),
        cohort_rate=value("federation.plan.sample_rate", 1.0),
        rounds=turns * value("federation.plan.steps", 1),
    )


def _window_rate(found: Mapping[str, Given]) -> float:
    """Return the learning rate that suits the noise and the clip; values of wrong kinds are refused later."""
    noise = found["federation.plan.noise_multiplier"].value
    clip = found["federation.plan.clip_norm"].value if "federation.plan.clip_norm" in found else _WINDOW_PLAN.clip_norm
    if not isinstance(noise, int | float) or not isinstance(clip, int | float) or clip <= 0:
        return _WINDOW_PLAN.learning_rate
    return window_step(noise) / clip


def _is_finite(target: Given | None) -> bool:
    return target is not None and target.value != math.inf


def noise_for_target(config: FederatedRunConfig, given: Collection[str]) -> FederatedRunConfig:
    """Return the settings with the noise that the target takes, where it is the target that was given."""
    federation = config.federation
    if federation.unit != "user" or "federation.noise_multiplier" in given:
        return config
    rate, sums = federation.asked_rate, federation.rounds
    if federation.turns:
        rate, sums = 1.0, federation.turns
    if federation.correlated:  # all rounds together are one Gaussian mechanism
        rate, sums = 1.0, 1
    sigma = noise_multiplier_for(
        target_epsilon=federation.target_epsilon, dp_delta=federation.dp_delta, cohort_rate=rate, rounds=sums
    )
    return replace(config, federation=replace(federation, noise_multiplier=sigma))
