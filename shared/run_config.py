"""Settings of a federated run as flat text keys, the form in which ``flwr run --run-config`` gives them.

``cohort-rate = 0.1`` sets ``FederationConfig.cohort_rate``, ``plan.learning-rate`` sets ``Plan.learning_rate``,
``windows.window-length`` sets ``WindowConfig.window_length``. What is not named keeps its default. Flower has no empty
value, so a ``seed`` below 0 stands for none: cohorts and noise then come from the operating system. Nor has it lists:
``ranks`` are numbers with commas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.settings import Given, build

__all__ = ["federation_config"]


def federation_config(values: Mapping[str, Any], *, other_keys: frozenset[str] = frozenset()) -> FederationConfig:
    """Build the config of a run.

    Args:
        values: flat keys and their values.
        other_keys: keys that are someone else's and are passed over.

    Raises:
        ConfigError: an unknown key, a value of another type, or one that breaks its rule.
    """
    named = {key.replace("-", "_"): value for key, value in values.items() if key not in other_keys}
    if type(named.get("seed")) is int and named["seed"] < 0:
        named["seed"] = None
    if isinstance(ranks := named.get("ranks"), str):
        named["ranks"] = [_rank(part) for part in ranks.split(",") if part.strip()]
    return build(FederationConfig, {key: Given(value=value, source="the run config") for key, value in named.items()})


def _rank(text: str) -> int:
    require(text.strip().isdecimal(), "ranks must be whole numbers with commas", ranks=text)
    return int(text)
