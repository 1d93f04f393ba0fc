"""What a base or an adapter was trained on, user by user, as the run folder that it lies in says.

An evaluation needs it twice: to ask only users who were not trained on, and to prove that no answer was trained on. A
federated run needs it to be sure that its devices, and the public users who judge it, are new to the base.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import History, Interactions, Item
from ownlet.shared.splits import leave_one_out, public_device_split
from ownlet.simulations.base_file import load_catalogue
from ownlet.simulations.setting import DataConfig, Setting, load_interactions, public_parts

__all__ = [
    "Training",
    "adapter_training",
    "base_training",
    "check_catalogue",
    "check_unseen",
    "known_users",
    "recorded_data",
]

_log = logging.getLogger(__name__)
_DIVISION = ("seed", "public_fraction", "public_before", "held_out_fraction")


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
    try:
        return DataConfig.from_plain(settings["data"])
    except (KeyError, TypeError, ValueError) as error:
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


def check_catalogue(base: Path, num_items: int, items: Sequence[Item]) -> None:
    """Raise where a base's item numbers mean other items than the data's.

    Args:
        base: its file.
        num_items: of the base.
        items: of the data.

    Raises:
        ConfigError: another number of items, or another item under a number.
    """
    if num_items != len(items):
        raise ConfigError(f"data must have the catalogue of the base, {num_items} items, got {len(items)} items")
    for known, item in zip(load_catalogue(base), items, strict=False):  # a base may have been saved without one
        if known.id != item.id:
            raise ConfigError(
                f"data must have the catalogue of the base, whose item {known.number} is {known.id}, got {item.id}"
            )


def check_unseen(base: Path, setting: Setting, config: DataConfig) -> None:
    """Raise where a base has learned from devices, or from held-out public users; log where that is unknown.

    Args:
        base: file that ``ownlet pretrain`` left.
        setting: of the run that is to use it.
        config: where that setting comes from.

    Raises:
        ConfigError: how many it has learned from, and how the base's users were divided.
    """
    trained, recorded = base_training(base, setting.data, config), recorded_data(base)
    if trained is None or recorded is None:
        _log.warning("what %s was trained on is unknown here, so whether devices are new to it was not checked", base)
        return
    learned = np.array([len(history) > 0 for history in trained.histories])
    for who, users in (("devices", setting.device_users), ("held-out public users", setting.held_out_users)):
        known = int(learned[users].sum())
        if known:
            theirs, ours = ({name: getattr(one, name) for name in _DIVISION} for one in (recorded, config))
            other = ", ".join(
                f"{name} {theirs[name]} and not {ours[name]}" for name in _DIVISION if theirs[name] != ours[name]
            )
            raise ConfigError(
                f"{who} must be new to the base, got {known:,} of {len(users):,} that it has learned from: it was "
                f"trained with {other or 'all users'}"
            )


def known_users(base: Path, path: Path) -> frozenset[str]:
    """Return the ids of the users of a file whom a base has learned from, or who chose when to stop its training.

    Where its run folder does not tell, or tells of another file, nobody, and that is logged.

    Args:
        base: file that ``ownlet pretrain`` left.
        path: file or folder of interactions.
    """
    recorded = recorded_data(base)
    if recorded is None or recorded.path is None or recorded.path.resolve() != path.resolve():
        _log.warning("what %s was trained on is unknown here, so users of %s may be known to it", base, path)
        return frozenset()
    data = load_interactions(recorded)
    trained = base_training(base, data, recorded)
    assert trained is not None  # it is the same data
    fresh = np.isin(np.arange(data.num_users), trained.askable)
    fresh &= np.array([len(history) == 0 for history in trained.histories])
    return frozenset(np.array(data.user_ids)[~fresh].tolist())


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
