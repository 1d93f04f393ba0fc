"""Settings of a federated run as flat text keys, the form in which ``flwr run --run-config`` gives them.

``cohort-rate = 0.1`` sets ``FederationConfig.cohort_rate``, ``plan.learning-rate`` sets ``Plan.learning_rate``,
``windows.window-length`` sets ``WindowConfig.window_length``. What is not named keeps its default. Flower has no empty
value, so a ``seed`` below 0 stands for none: cohorts and noise then come from the operating system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError

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
        del named["seed"]
    plan, windows = _part(Plan, "plan.", named), _part(WindowConfig, "windows.", named)
    return FederationConfig(
        plan=Plan(**plan),
        windows=WindowConfig(**windows),
        **_part(FederationConfig, "", named, leave=("plan.", "windows.")),
    )


def _part(kind: type, prefix: str, named: Mapping[str, Any], leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the arguments of one dataclass, with the types that its annotations name."""
    types = {field.name: str(field.type) for field in fields(kind) if field.name not in ("plan", "windows")}
    found: dict[str, Any] = {}
    for key, value in named.items():
        if not key.startswith(prefix) or (leave and key.startswith(leave)):
            continue
        name = key.removeprefix(prefix)
        if name not in types:
            raise ConfigError(f"run config must have known keys, got {key!r}; known are {sorted(types)}")
        found[name] = _typed(key, value, types[name])
    return found


def _typed(key: str, value: Any, wanted: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted == "float" and is_number:
        return float(value)
    if wanted.startswith("int") and type(value) is int:
        return value
    if wanted.startswith("Literal") and isinstance(value, str):
        return value
    raise ConfigError(f"{key} must be of type {wanted}, got {value!r}")
