import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.run_config import federation_config
from ownlet.shared.settings import leaf_types


def test_nothing_named_gives_the_defaults() -> None:
    assert federation_config({}) == FederationConfig()


def test_every_level_can_be_set_and_numbers_become_floats() -> None:
    config = federation_config(
        {
            "cohort-rate": 1,
            "unit": "window",
            "plan.noise-multiplier": 2.0,
            "plan.clip-norm": 1.0,
            "windows.window-length": 8,
            "folder": "x",
        },
        other_keys=frozenset({"folder"}),
    )
    plan = Plan(noise_multiplier=2.0, clip_norm=1.0)
    assert config == FederationConfig(cohort_rate=1.0, unit="window", plan=plan, windows=WindowConfig(window_length=8))
    assert type(config.cohort_rate) is float


def test_a_seed_below_zero_stands_for_none() -> None:
    assert federation_config({"seed": -1}).seed is None
    assert federation_config({"seed": 0}).seed == 0


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("cohort-rat", 0.1, "known keys"),
        ("plan.epochs", 1, "known keys"),
        ("plan", 1, "known keys"),
        ("rounds", 2.5, "rounds must be a whole number, got"),
        ("rounds", True, "rounds must be a whole number, got"),
        ("clip-norm", "1", "clip_norm must be a number, got '1' in the run config"),
        ("unit", 3, "unit must be user, window or none, got 3"),
        ("unit", "event", "unit must be user, window or none"),
        ("cohort-rate", 1.5, "cohort_rate must be in"),
    ],
)
def test_a_wrong_key_or_value_is_named(key: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        federation_config({key: value})


def test_ranks_are_numbers_with_commas() -> None:
    assert federation_config({"ranks": "4, 8"}).ranks == (4, 8)
    assert federation_config({"ranks": ""}).ranks == ()
    with pytest.raises(ConfigError, match="ranks must be whole numbers with commas, got"):
        federation_config({"ranks": "4,large"})


def test_the_settings_of_flwr_run_name_every_field() -> None:
    """Flower refuses to override a key that the project file does not hold."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    table = project["tool"]["flwr"]["app"]["config"]
    flat = {
        f"{key}.{name}" if isinstance(value, dict) else key: inner
        for key, value in table.items()
        for name, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }
    own = {"data", "num-users", "num-items", "data-seed", "dim", "base-epochs", "folder", "resume"}
    assert own <= set(flat)
    config = federation_config(flat, other_keys=frozenset(own))
    assert (config.seed, config.plan.clip_norm) == (None, math.inf)
    assert set(flat) == own | {name.replace("_", "-") for name in leaf_types(FederationConfig)}
