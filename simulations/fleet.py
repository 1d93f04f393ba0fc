"""The devices of a federated run, and the questions that its adapters are judged by.

Either the device users of a data set in memory, or a store of any size, of which only samples are ever evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import History, Item
from ownlet.shared.model import SASRec
from ownlet.simulations.evaluate import Cases, all_positions
from ownlet.simulations.provenance import check_catalogue, check_unseen
from ownlet.simulations.setting import DataConfig, last_event_cases, prepare
from ownlet.simulations.store import EventStore

__all__ = ["Fleet", "fleet_of_data", "fleet_of_store", "window_advice", "windows_fall_short"]

_PUBLIC_POSITIONS = 5  # of each public user of a store, its last ones


@dataclass(frozen=True, kw_only=True, eq=False)
class Fleet:
    """Who is trained on, and who is asked.

    Args:
        store: histories; devices are its users 0..num_users-1.
        num_users: how many devices.
        held_out: last events of every user of the store that no device trains on.
        num_items: of the catalogue.
        test: the last event of devices, of all or of a sample.
        validation: of held-out public users, who are not devices.
        public: histories of public users, which the server may learn from.
        facts: name and size, as run summaries hold them.
    """

    store: EventStore
    num_users: int
    held_out: int
    num_items: int
    test: Cases
    validation: Cases
    public: Sequence[History]
    facts: dict[str, object]


def fleet_of_data(config: DataConfig, base: Path, model: SASRec) -> Fleet:
    """Return the device users of a data set, with the context that the base reads; every one is tested.

    Args:
        config: which data.
        base: file of the base.
        model: that base.

    Raises:
        DataError: the data cannot be read.
        ConfigError: the base has another catalogue, or has learned from devices or held-out public users.
    """
    setting = prepare(config, model.config.context)
    check_catalogue(base, model.num_items, setting.data.items)
    check_unseen(base, setting, config)
    return Fleet(
        store=EventStore.of(setting.devices, setting.device_context),
        num_users=len(setting.devices),
        held_out=0,  # the setting has taken the last events away
        num_items=setting.data.num_items,
        test=setting.test,
        validation=setting.judging,
        public=setting.public,
        facts=setting.facts,
    )


def fleet_of_store(path: Path, catalogue: Sequence[Item], *, public_users: int, sampled_users: int, seed: int) -> Fleet:
    """Return the users of a store, all but the last of them devices.

    Args:
        path: folder that ``ownlet store`` wrote.
        catalogue: of the base; the store must have been written for it.
        public_users: this many users at the end of the store are public and held out: they decide about publication.
        sampled_users: how many devices are tested.
        seed: of that sample.

    Raises:
        DataError: not a store, or fewer users than are to be public.
        ConfigError: the store was written for another catalogue.
    """
    store = EventStore.open(path)
    if tuple(item.id for item in store.items) != tuple(item.id for item in catalogue):
        raise ConfigError(f"store must be written for the catalogue of the base, got another in {path}")
    num_users = store.num_users - public_users
    if num_users < 1:
        raise DataError(f"store must have more users than the {public_users} public ones, got {store.num_users}")
    public = _histories(store, np.arange(num_users, store.num_users))
    sample = np.random.default_rng(seed).choice(num_users, min(sampled_users, num_users), replace=False)
    return Fleet(
        store=store,
        num_users=num_users,
        held_out=1,
        num_items=len(store.items),
        test=last_event_cases(_histories(store, np.sort(sample))),
        validation=all_positions(public, last=_PUBLIC_POSITIONS),
        public=public,
        facts={
            "name": store.name,
            "users": store.num_users,
            "items": len(store.items),
            "interactions": len(store.events),
        },
    )


def _histories(store: EventStore, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the histories that have an event to ask for and one before it."""
    histories = [store.history(int(user)) for user in users]
    return [history for history in histories if len(history) >= 2]


def windows_fall_short(lengths: Sequence[int] | NDArray[np.int64], windows: WindowConfig, max_length: int) -> bool:
    """Say whether windows are shorter than what the base reads, though most histories are longer than both.

    What stands first in a window is asked without the history before it, so short windows teach an adapter to do
    without (docs/quality.md, MovieLens 1M).

    Args:
        lengths: of the devices' histories, in events.
        windows: how histories are cut.
        max_length: events that the base reads.
    """
    return windows.row_length < max_length < float(np.median(lengths))


def window_advice(store: EventStore, windows: WindowConfig, max_length: int) -> str | None:
    """Return what to do where ``windows_fall_short``, else None."""
    lengths = np.diff(store.offsets)
    if not windows_fall_short(lengths, windows, max_length):
        return None
    return (
        f"windows hold {windows.row_length} events, the base reads {max_length}, and half of the histories have more "
        f"than {np.median(lengths):g}: --window-length {max_length} may do better"
    )
