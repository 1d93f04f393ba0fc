"""The context of a data set's events: which fields a base is to read, and their rows for every event.

The vocabulary of a column and the calendar's periods are taken from public users alone, because they travel in the base
and in every bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.context import ContextField, column_codes, context_rows
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.interactions import Interactions

__all__ = ["ContextRequest", "event_context", "fields_of"]

Ints = NDArray[np.int64]

_DAY_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class ContextRequest:
    """What a base is to read of the moment of each question.

    Args:
        fields: ``gap``, ``hour``, ``weekday``, ``period``, or ``name=column`` for a column of the data.
        utc_offset_hours: of hour and weekday.
        period_days: length of a period.
        max_values: of a column: the most frequent ones are its vocabulary, all others are unknown.
    """

    fields: tuple[str, ...] = ()
    utc_offset_hours: float = 0.0
    period_days: float = 30.0
    max_values: int = 256

    def __post_init__(self) -> None:
        for field in self.fields:
            known = field in ("gap", "hour", "weekday", "period") or all(field.partition("="))
            require(known, "context must be of gap, hour, weekday, period and name=column", context=field)
        require(-24 < self.utc_offset_hours < 24, "utc_offset_hours must be below 24", hours=self.utc_offset_hours)
        require(self.period_days > 0, "period_days must be positive", period_days=self.period_days)
        require(self.max_values >= 1, "max_values must be at least 1", max_values=self.max_values)

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """The fields that are columns, as pairs of name and column."""
        pairs = [field.partition("=") for field in self.fields if "=" in field]
        return tuple((name, column) for name, _, column in pairs)


def fields_of(request: ContextRequest, data: Interactions, public: NDArray[np.bool_]) -> tuple[ContextField, ...]:
    """Return the fields that a base of this data reads.

    Args:
        request: which ones.
        data: all interactions.
        public: (num_events,) marks the events that vocabularies and periods may be taken from.

    Raises:
        ConfigError: the data lacks a column or times, or no public event has a value of the column.
    """
    return tuple(_field(name, request, data, public) for name in request.fields)


def _field(named: str, request: ContextRequest, data: Interactions, public: NDArray[np.bool_]) -> ContextField:
    name, _, column = named.partition("=")
    if column:
        if column not in data.context:
            raise ConfigError(f"context must be a column of the data, got {column!r} of {sorted(data.context)}")
        values = _vocabulary(data.context[column][public], request.max_values)
        return ContextField(name=name, kind="column", values=values)
    if not data.has_times:
        raise ConfigError(f"context must be of columns where the data has no times, got {name!r}")
    if name == "gap":
        return ContextField(name=name, kind="gap")
    if name == "period":
        times, length = data.times[public], round(request.period_days * _DAY_SECONDS)
        origin = int(times.min()) if len(times) else 0
        count = 1 + (int(times.max()) - origin) // length if len(times) else 1
        return ContextField(name=name, kind="period", origin_seconds=origin, period_seconds=length, num_periods=count)
    offset = round(request.utc_offset_hours * 3600)
    return ContextField(name=name, kind="hour" if name == "hour" else "weekday", utc_offset_seconds=offset)


def _vocabulary(values: NDArray[Any], most: int) -> tuple[str, ...]:
    """Return the most frequent texts, those of equal frequency in order; missing values are none of them."""
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    texts = [str(found[at]) for at in order.tolist()]
    return tuple(text for text in texts if text not in ("", "nan", "None"))[:most]


def event_context(
    data: Interactions, fields: Sequence[ContextField], columns: Mapping[str, str] | None = None
) -> tuple[Ints, ...] | None:
    """Return the rows of each event's moment, per user (events, fields); None where there are no fields.

    Args:
        data: all interactions.
        fields: what the base reads.
        columns: field name -> column of the data, where they differ.

    Raises:
        ConfigError: the data lacks a field's column.
    """
    if not fields:
        return None
    previous = np.full(len(data), np.nan)
    previous[1:] = data.times[:-1]
    previous[data.offsets[:-1][np.diff(data.offsets) > 0]] = np.nan  # a user's first event
    codes = {}
    for field in fields:
        if field.kind == "column":
            column = (columns or {}).get(field.name, field.name)
            if column not in data.context:
                raise ConfigError(
                    f"data must have a column for context {field.name!r}, got {column!r} of {sorted(data.context)}"
                )
            codes[field.name] = column_codes(field, data.context[column])
    return data.per_user(context_rows(fields, data.times, previous, codes))
