"""What a base or an adapter was trained on, user by user, as the run folder that it lies in says.

An evaluation needs it twice: to ask only users who were not trained on, and to prove that no answer was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import DataError
from ownlet.shared.interactions import History, Interactions
from ownlet.shared.splits import leave_one_out, public_device_split
from ownlet.simulations.setting import DataConfig, public_parts

__all__ = ["Training", "adapter_training", "base_training", "recorded_data"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What was trained on.

    Args:
        histories: per user of the data, the events that were trained on; empty for a user of whom nothing was.
        askable: numbers of the users who may be asked: nothing was trained on or chosen by what came last of them.
        until_seconds: where not None, nothing from this moment on was used of anybody.
    """

    histories: tuple[History, ...]
    askable: NDArray[np.int64]
    until_seconds: int | None = None


def recorded_data(file: Path) -> DataConfig | None:
    """Return the data settings of the run whose folder a file lies in; None where it lies in no such folder.

    Raises:
        DataError: the folder's ``config.json`` is damaged.
    """
    settings = _settings(file)
    if "data" not in settings or settings.get("store") is not None:
        return None
    raw = dict(settings["data"])
    path, columns = raw.pop("path"), raw.pop("columns")
    try:
        return DataConfig(
            path=None if path is None else Path(path), columns=tuple((role, name) for role, name in columns), **raw
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"config.json must be that of a run, got {error} in {file.parent}") from error


def base_training(base: Path, data: Interactions, config: DataConfig) -> Training | None:
    """Say what a base was trained on; None where its folder does not tell, or tells of other data.

    Args:
        base: file that ``ownlet pretrain`` left.
        data: the interactions of ``config``.
        config: where they come from.
    """
    recorded = recorded_data(base)
    if recorded is None or not _same_data(recorded, config):
        return None
    if _settings(base).get("users") == "all":
        split = leave_one_out(data)
        return Training(histories=split.train, askable=split.evaluated)
    divided = public_device_split(
        data, fraction=recorded.public_fraction, seed=recorded.seed, date=recorded.public_before
    )
    public = divided.public_histories(data)
    histories = [history[:0] for history in data.histories]
    for at in public_parts(len(public), recorded)[0]:
        histories[divided.public[at]] = public[at]
    return Training(histories=tuple(histories), askable=divided.devices, until_seconds=divided.until_seconds)


def adapter_training(adapter: Path, data: Interactions, config: DataConfig) -> Training | None:
    """Say what a federated adapter was trained on: all but the last event of every device. See ``base_training``."""
    recorded = recorded_data(adapter)
    if recorded is None or not _same_data(recorded, config):
        return None
    divided = public_device_split(
        data, fraction=recorded.public_fraction, seed=recorded.seed, date=recorded.public_before
    )
    histories = [history[:0] for history in data.histories]
    for user in divided.devices:
        histories[user] = data.histories[user][:-1]
    return Training(histories=tuple(histories), askable=divided.devices)


def _settings(file: Path) -> Mapping[str, Any]:
    path = file.parent / "config.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_bytes())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"config.json must be that of a run, got {error} in {path}") from error


def _same_data(a: DataConfig, b: DataConfig) -> bool:
    """Whether two settings read the same interactions, however users are divided."""
    if (a.columns, a.core, a.path is None) != (b.columns, b.core, b.path is None):
        return False
    if a.path is None or b.path is None:
        return (a.num_users, a.num_items, a.seed) == (b.num_users, b.num_items, b.seed)
    return a.path.resolve() == b.path.resolve()
