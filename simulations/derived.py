"""Settings of ``ownlet simulate`` that follow from others, unless somebody gave them.

* alpha is twice the rank;
* under the unit ``window`` the plan has a clip and a rate of its own, and the noise belongs to the plan;
* under the unit ``user`` the noise follows from the target epsilon;
* without a unit there is neither noise nor a target.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.shared.settings import DEFAULTS, Given
from ownlet.simulations.federated_run import FederatedRunConfig

__all__ = ["DERIVED", "derived_settings", "noise_for_target"]

DERIVED = {
    "adapter.alpha": "by default 2 * rank",
    "federation.noise_multiplier": "by default what target_epsilon takes; of the unit window it is 0, see plan",
    "federation.plan.clip_norm": "of the unit window by default 0.3",
    "federation.plan.sample_rate": "of the unit window by default 0.5",
}
"""Name of a setting -> what it is where nobody gives it."""

_TARGET = "federation.target_epsilon"
_OF_WINDOWS = {"federation.plan.sample_rate": 0.5, "federation.plan.clip_norm": 0.3}


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
        if "federation.plan.noise_multiplier" not in found:
            raise ConfigError("unit window must have --noise-multiplier, got none")
    elif unit == "user" and "federation.noise_multiplier" not in found and not _is_finite(found.get(_TARGET)):
        raise ConfigError("unit user must have --target-epsilon or --noise-multiplier, got neither")
    elif unit == "none":
        found["federation.noise_multiplier"] = Given(value=0.0, source=DEFAULTS)
        found[_TARGET] = Given(value=math.inf, source=DEFAULTS)
    follows: dict[str, float] = {}
    if unit == "window":
        follows |= {**_OF_WINDOWS, "federation.noise_multiplier": 0.0}
    if "adapter.rank" in found and isinstance(found["adapter.rank"].value, int):
        follows["adapter.alpha"] = 2.0 * found["adapter.rank"].value
    return {name: Given(value=value, source=DEFAULTS) for name, value in follows.items()} | found


def _is_finite(target: Given | None) -> bool:
    return target is not None and target.value != math.inf


def noise_for_target(config: FederatedRunConfig, given: Collection[str]) -> FederatedRunConfig:
    """Return the settings with the noise that the target takes, where it is the target that was given."""
    federation = config.federation
    if federation.unit != "user" or "federation.noise_multiplier" in given:
        return config
    sigma = noise_multiplier_for(
        target_epsilon=federation.target_epsilon,
        dp_delta=federation.dp_delta,
        cohort_rate=federation.cohort_rate,
        rounds=federation.rounds,
    )
    return replace(config, federation=replace(federation, noise_multiplier=sigma))
