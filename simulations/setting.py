"""Who is who in an experiment: public users, held-out public users, devices, and what each is used for.

* public users train the base;
* held-out public users choose: early stopping, hyperparameters, whether an adapter may be published. Nothing is trained
  on them, so a number measured on them is honest, and because they are public it costs no privacy;
* devices are the federated population. Their last event is the test (leave-one-out), everything before it may be
  trained on locally. The base never sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History, Interactions, k_core
from ownlet.shared.splits import public_device_split
from ownlet.simulations.evaluate import Cases, all_positions
from ownlet.simulations.population import make_population
from ownlet.simulations.readers import read

__all__ = ["DataConfig", "Setting", "data_facts", "last_event_cases", "load_interactions", "prepare"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the interactions come from and how users are divided.

    Args:
        path: file or folder to read; None is the built-in population.
        columns: for CSV or Parquet with other names, pairs such as ``("user", "customer_id")``: ``user``, ``item`` and
            ``timestamp``, optionally ``rating``; any other name keeps that column as context.
        core: keep only users and items with this many interactions, iteratively; 0 keeps all.
        num_users: of the built-in population.
        num_items: of the built-in population.
        public_fraction: share of users that is public; unused with a date.
        public_before: an ISO date; where given, users with an event before it are public, with their events before it,
            and users who come later are devices.
        held_out_fraction: share of the public users that is held out.
        seed: of the built-in population and of the division.
    """

    path: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    core: int = 5
    num_users: int = 2000
    num_items: int = 1000
    public_fraction: float = 0.3
    public_before: str | None = None
    held_out_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("public_fraction", "held_out_fraction"):
            require(0 < getattr(self, name) < 1, f"{name} must be in (0, 1)", **{name: getattr(self, name)})
        require(self.core >= 0, "core must not be negative", core=self.core)


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """An experiment's data.

    Args:
        data: all interactions.
        public: histories that train the base.
        held_out: histories of held-out public users.
        devices: what each device may train on: all its events but the last.
        test: one case per device, its last event.
        validation: every position of every held-out user.
    """

    data: Interactions
    public: tuple[History, ...]
    held_out: tuple[History, ...]
    devices: tuple[History, ...]
    test: Cases
    validation: Cases

    @property
    def facts(self) -> dict[str, object]:
        """Return the data's name and size, as run summaries hold them."""
        return data_facts(self.data)


def load_interactions(config: DataConfig) -> Interactions:
    """Read or make the interactions and reduce them to their core.

    Raises:
        DataError: unreadable, or nothing is left in the core.
    """
    if config.path is None:
        data = make_population(config.num_users, config.num_items, config.seed).interactions
    else:
        data = read(config.path, config.columns)
    if config.core:
        data = k_core(data, config.core)
    if data.num_users == 0:
        raise DataError(f"data must keep users in its {config.core}-core, got none in {data.name}")
    return data


def data_facts(data: Interactions) -> dict[str, object]:
    """Return the name and size of a data set, as run summaries hold them."""
    return {"name": data.name, "users": data.num_users, "items": data.num_items, "interactions": len(data)}


def prepare(config: DataConfig) -> Setting:
    """Load the data and divide its users.

    Raises:
        DataError: a group would be empty.
    """
    data = load_interactions(config)
    split = public_device_split(data, fraction=config.public_fraction, seed=config.seed, date=config.public_before)
    everything = split.public_histories(data)
    shuffled = np.random.default_rng([config.seed, 1]).permutation(len(everything))
    num_held_out = round(config.held_out_fraction * len(shuffled))
    held_out = tuple(everything[at] for at in np.sort(shuffled[:num_held_out]))
    public = tuple(everything[at] for at in np.sort(shuffled[num_held_out:]))
    histories = [data.histories[u] for u in split.devices if len(data.histories[u]) >= 2]
    for name, group in (("public", public), ("held-out public", held_out), ("device", histories)):
        if not group:
            raise DataError(f"{name} users must be at least one, got none of {data.num_users} users in {data.name}")
    return Setting(
        data=data,
        public=public,
        held_out=held_out,
        devices=tuple(h[:-1] for h in histories),
        test=last_event_cases(histories),
        validation=all_positions(held_out),
    )


def last_event_cases(histories: Sequence[History]) -> Cases:
    """Make one case per history: everything before its last event, and that event."""
    return Cases(histories=tuple(h[:-1] for h in histories), targets=np.array([h[-1] for h in histories], np.int64))
