"""Who is who in an experiment: public users, held-out public users, devices, and what each is used for.

* public users train the base;
* held-out public users choose: early stopping, hyperparameters, whether an adapter may be published. Nothing is trained
  on them, so a number measured on them is honest, and because they are public it costs no privacy. Where a date divides
  public users from devices, a base is judged by what they did before it and an adapter by what they did from it on: an
  adapter is for the present, which a base of the past does not know;
* devices are the federated population. Their last event is the test (leave-one-out), everything before it may be
  trained on locally. The base never sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.context import ContextField
from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History, Interactions, k_core
from ownlet.shared.splits import public_device_split
from ownlet.simulations.evaluate import Cases, cases_at, positions
from ownlet.simulations.moments import ContextRequest, event_context, fields_of
from ownlet.simulations.population import make_population
from ownlet.simulations.readers import read

__all__ = [
    "PUBLIC_POSITIONS",
    "DataConfig",
    "Setting",
    "data_facts",
    "divide",
    "keep_columns",
    "last_event_cases",
    "load_interactions",
    "prepare",
    "prepare_requested",
    "public_events",
    "public_parts",
]

Moments = tuple[NDArray[np.int64], ...] | None


PUBLIC_POSITIONS = 12_000
"""The most questions that held-out public users judge by: on long histories, more cost most of a training's time."""


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
            and users who come later are devices. Later events of held-out public users judge adapters.
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

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> DataConfig:
        """Read what JSON holds of the settings: the path as text, or None, and columns as lists.

        Raises:
            KeyError, TypeError: they are not those of data.
        """
        path = None if values["path"] is None else Path(values["path"])
        columns = tuple((role, name) for role, name in values["columns"])
        return cls(**{**values, "path": path, "columns": columns})


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """An experiment's data.

    Args:
        data: all interactions.
        public: histories that train the base.
        held_out: histories of held-out public users.
        devices: what each device may train on: all its events but the last.
        test: one case per device, its last event.
        validation: every position of every held-out user, or ``PUBLIC_POSITIONS`` of them; for a base.
        judging: the same for adapters: with a date only positions from it on, if there are any.
        judging_events: (judging,) the numbers of the data's events that are asked for, to look further columns up.
        fields: what is known of each moment; the cases have it, too.
        public_context: per public user (events, fields), the moment of each event; None without fields.
        held_out_context: the same of held-out public users.
        device_context: the same of devices.
        device_users: (devices,) their numbers in the data, to look further columns up.
        held_out_users: (held-out public users,) the same of them.
    """

    data: Interactions
    public: tuple[History, ...]
    held_out: tuple[History, ...]
    devices: tuple[History, ...]
    test: Cases
    validation: Cases
    judging: Cases
    judging_events: NDArray[np.int64]
    fields: tuple[ContextField, ...] = ()
    public_context: Moments = None
    held_out_context: Moments = None
    device_context: Moments = None
    device_users: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    held_out_users: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

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


def public_events(data: Interactions, config: DataConfig) -> NDArray[np.bool_]:
    """Mark the events (num_events,) that are public: those that vocabularies may be taken from."""
    split = public_device_split(data, fraction=config.public_fraction, seed=config.seed, date=config.public_before)
    public = np.isin(data.users, split.public)
    return public if split.until_seconds is None else public & (data.times < split.until_seconds)


def keep_columns(config: DataConfig, pairs: Sequence[tuple[str, str]]) -> DataConfig:
    """Return the settings with further columns of the data kept, pairs of role and name; a role that is there stays."""
    columns = config.columns
    if pairs and not columns and config.path is not None:
        columns = (("user", "user"), ("item", "item"), ("timestamp", "timestamp"))
    return replace(config, columns=(*columns, *(pair for pair in pairs if pair[0] not in dict(columns))))


def prepare(config: DataConfig, fields: Sequence[ContextField] = ()) -> Setting:
    """Load the data and divide its users; see ``divide``. A field's column has its name, unless ``config`` says."""
    config = keep_columns(config, [(field.name, field.name) for field in fields if field.kind == "column"])
    return divide(load_interactions(config), config, fields)


def prepare_requested(config: DataConfig, request: ContextRequest) -> Setting:
    """Load the data and divide its users, with the fields that a base is to be trained on; see ``divide``.

    Their vocabularies and periods are taken from public events.
    """
    source = keep_columns(config, request.columns)
    data = load_interactions(source)
    return divide(data, source, fields_of(request, data, public_events(data, source)))


def divide(data: Interactions, config: DataConfig, fields: Sequence[ContextField] = ()) -> Setting:
    """Divide the users of a data set.

    Args:
        data: from ``load_interactions``.
        config: how.
        fields: the context that a base reads, by default none.

    Raises:
        DataError: a group would be empty.
        ConfigError: the data lacks a field's column.
    """
    moments = event_context(data, fields, dict(config.columns))
    split = public_device_split(data, fraction=config.public_fraction, seed=config.seed, date=config.public_before)
    everything = split.public_histories(data)
    trains, held = public_parts(len(everything), config)
    public, held_out = (tuple(everything[at] for at in part) for part in (trains, held))
    devices = [u for u in split.devices if len(data.histories[u]) >= 2]
    histories = [data.histories[u] for u in devices]
    for name, group in (("public", public), ("held-out public", held_out), ("device", histories)):
        if not group:
            raise DataError(f"{name} users must be at least one, got none of {data.num_users} users in {data.name}")
    public_moments = _cut(moments, split.public, everything)
    held_out_moments = _chosen(public_moments, held)
    device_moments = _chosen(moments, devices)
    held_out_users = np.array(split.public, np.int64)[held]
    whole = [data.histories[user] for user in held_out_users]
    known = [len(history) for history in held_out]
    asked = positions(known, most=PUBLIC_POSITIONS)
    later = positions([len(history) for history in whole], known=known, most=PUBLIC_POSITIONS)  # none without a date
    own = _chosen(moments, held_out_users)
    validation = cases_at(whole, asked, own)
    judging = cases_at(whole, later, own) if later else validation
    return Setting(
        data=data,
        public=public,
        held_out=held_out,
        devices=tuple(h[:-1] for h in histories),
        test=last_event_cases(histories, device_moments),
        validation=validation,
        judging=judging,
        judging_events=np.array([data.offsets[held_out_users[user]] + at for user, at in later or asked], np.int64),
        fields=tuple(fields),
        public_context=_chosen(public_moments, trains),
        held_out_context=held_out_moments,
        device_context=None if device_moments is None else tuple(rows[:-1] for rows in device_moments),
        device_users=np.array(devices, np.int64),
        held_out_users=held_out_users,
    )


def public_parts(num_public: int, config: DataConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the public users: places in their order of those who train the base, and of those who are held out."""
    shuffled = np.random.default_rng([config.seed, 1]).permutation(num_public)
    num_held_out = round(config.held_out_fraction * num_public)
    return np.sort(shuffled[num_held_out:]), np.sort(shuffled[:num_held_out])


def last_event_cases(histories: Sequence[History], context: Moments = None) -> Cases:
    """Make one case per history: everything before its last event, and that event.

    Args:
        histories: whole ones.
        context: per history (events, fields), the moment of each event, where anything is known.
    """
    return Cases(
        histories=tuple(h[:-1] for h in histories),
        targets=np.array([h[-1] for h in histories], np.int64),
        context=None if context is None else tuple(rows[1:] for rows in context),
    )


def _chosen(moments: Moments, users: Iterable[int]) -> Moments:
    return None if moments is None else tuple(moments[user] for user in users)


def _cut(moments: Moments, users: Iterable[int], histories: Sequence[History]) -> Moments:
    """Keep of each user's moments those of the events that are left of the history, its first ones."""
    if moments is None:
        return None
    return tuple(moments[user][: len(history)] for user, history in zip(users, histories, strict=True))
