"""Context: what is known of the moment at which the next item is asked for, as rows of one embedding table.

The context of position t describes the question that position t answers, "what comes next, now?": the hour, weekday and
period of that moment, the seconds since event t, and what the app says of it (device, region, scene). In training that
moment is the time of event t + 1, whose item is the target; at serving it is the request. Both are known before the
item is. A column belongs here only if that is true of it too: the price that was paid in the end would be a leak.

A row depends on event t and event t + 1 alone, which lie in the same window. So a window's context says nothing of
another window's events, and windows stay units of privacy.

Rows are numbered through over all fields, and 0 is unknown in every one of them: its vector is zero, so a base that is
told nothing reads what a base without context reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ownlet.shared.errors import DataError, require

__all__ = [
    "ContextField",
    "ContextKind",
    "column_codes",
    "context_rows",
    "num_context_rows",
    "pad_context",
]

ContextKind = Literal["gap", "hour", "weekday", "period", "column"]

Rows = NDArray[np.int64]

_HOUR_SECONDS, _DAY_SECONDS = 3600, 86_400
_FIRST_WEEKDAY = 3  # 1 January 1970 was a Thursday; Monday is 0
_SIZES = {"gap": 32, "hour": 24, "weekday": 7}


@dataclass(frozen=True, kw_only=True)
class ContextField:
    """One piece of context. All of it is public: it travels in the base and in the bundle.

    Args:
        name: what the app calls it; for the kinds of time by default the kind.
        kind: ``gap``, seconds since the event before on a logarithmic scale: bucket b, from 1 to 32, holds gaps of
            2^(b-1) - 1 up to 2^b - 2 seconds. ``hour`` and ``weekday`` (from Monday). ``period``: stretches of the
            calendar from an origin on; before the first is the first, behind the last is the last. ``column``: text
            from a vocabulary.
        values: the vocabulary of a column; any other text is unknown.
        utc_offset_seconds: of hour and weekday.
        origin_seconds: where the first period begins, unix seconds.
        period_seconds: length of a period.
        num_periods: how many there are.
    """

    name: str
    kind: ContextKind
    values: tuple[str, ...] = ()
    utc_offset_seconds: int = 0
    origin_seconds: int = 0
    period_seconds: int = 0
    num_periods: int = 0

    def __post_init__(self) -> None:
        require(self.kind in get_args(ContextKind), f"kind must be one of {get_args(ContextKind)}", kind=self.kind)
        require(bool(self.name), "a context field must have a name", kind=self.kind)
        if self.kind == "period":
            require(self.period_seconds >= 1, "period_seconds must be at least 1", period_seconds=self.period_seconds)
            require(self.num_periods >= 1, "num_periods must be at least 1", num_periods=self.num_periods)
        if self.kind == "column":
            distinct = len(self.values) > 0 and len(set(self.values)) == len(self.values) and "" not in self.values
            require(distinct, f"values of context {self.name} must be different texts", values=self.values[:5])

    @property
    def size(self) -> int:
        """How many known values there are."""
        return {**_SIZES, "period": self.num_periods, "column": len(self.values)}[self.kind]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> ContextField:
        """Return the field that ``to_plain`` wrote down, also where that went through JSON."""
        return cls(**{**raw, "values": tuple(raw.get("values", ()))})

    def to_plain(self) -> dict[str, Any]:
        """Return the name, the kind, and what else is not as by default."""
        plain = asdict(self)
        return {key: value for key, value in plain.items() if key in ("name", "kind") or value not in ((), 0)}

    def codes_at(self, times: NDArray[np.float64], previous: NDArray[np.float64]) -> Rows:
        """Return (n,) codes from 1 to ``size``, 0 for unknown, of a kind of time; see ``context_rows``."""
        if self.kind == "gap":
            return _gap_codes(times - previous)
        if self.kind == "period":
            code = 1 + np.floor((times - self.origin_seconds) / self.period_seconds)
            return _known(np.clip(code, 1, self.num_periods))
        local = times + self.utc_offset_seconds
        if self.kind == "hour":
            return _known(1 + np.floor(local / _HOUR_SECONDS) % 24)
        return _known(1 + (np.floor(local / _DAY_SECONDS) + _FIRST_WEEKDAY) % 7)


def context_rows(
    fields: Sequence[ContextField],
    times: ArrayLike,
    previous: ArrayLike,
    columns: Mapping[str, Rows] | None = None,
) -> Rows:
    """Return the rows of the context table for some moments.

    Args:
        fields: the base's fields.
        times: (n,) the moments, unix seconds; NaN for unknown.
        previous: (n,) the time of the event before each, NaN where there is none.
        columns: field name -> (n,) from ``column_codes``; a missing one is unknown.

    Returns:
        (n, fields), 0 for unknown.
    """
    at, before = np.asarray(times, np.float64), np.asarray(previous, np.float64)
    rows, first = np.zeros((len(at), len(fields)), np.int64), 1
    for place, field in enumerate(fields):
        if field.kind == "column":
            codes = (columns or {}).get(field.name, np.zeros(len(at), np.int64))
        else:
            codes = field.codes_at(at, before)
        rows[:, place] = np.where(codes > 0, codes - 1 + first, 0)
        first += field.size
    return rows


def num_context_rows(fields: Iterable[ContextField]) -> int:
    """Return how many rows the context table has, row 0 included."""
    return 1 + sum(field.size for field in fields)


def column_codes(field: ContextField, values: Sequence[Any] | NDArray[Any]) -> Rows:
    """Return (n,) codes of a column's values: the place in the vocabulary from 1 on, 0 for anything else.

    Args:
        field: of kind ``column``.
        values: (n,) text, or numbers whose text is in the vocabulary.
    """
    code_of = {value: code for code, value in enumerate(field.values, start=1)}
    if not isinstance(values, np.ndarray):
        return np.array([code_of.get(str(value), 0) for value in values], np.int64)
    found, inverse = np.unique(values, return_inverse=True)
    codes = np.array([code_of.get(str(value), 0) for value in found], np.int64)
    return codes[inverse] if len(found) else np.zeros(0, np.int64)


def pad_context(rows: Sequence[Rows], max_length: int, num_fields: int) -> Rows:
    """Keep the last ``max_length`` rows of each and pad behind with 0, as ``pad_histories`` does with events.

    Args:
        rows: per history (its events, fields): what is known of the moment after each event.
        max_length: rows of the result.
        num_fields: F.

    Returns:
        (n, max_length, F).

    Raises:
        DataError: rows of other fields.
    """
    padded = np.zeros((len(rows), max_length, num_fields), np.int64)
    for number, found in enumerate(rows):
        if found.ndim != 2 or found.shape[1] != num_fields:
            raise DataError(f"context must have {num_fields} fields, got shape {found.shape}")
        kept = found[-max_length:]
        padded[number, : len(kept)] = kept
    return padded


def _gap_codes(gaps: NDArray[np.float64]) -> Rows:
    """Return the number of binary digits of 1 + whole seconds, at most 32; a clock that went back counts as no gap."""
    seconds = np.floor(np.maximum(gaps, 0.0))
    _, digits = np.frexp(np.where(np.isnan(seconds), 0.0, 1.0 + seconds))  # exact; 0 has no digit
    return np.minimum(digits, _SIZES["gap"]).astype(np.int64)


def _known(codes: NDArray[np.float64]) -> Rows:
    return np.where(np.isnan(codes), 0.0, codes).astype(np.int64)
