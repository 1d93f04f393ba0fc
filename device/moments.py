"""The moments of a user's events, as the rows that a base with context reads (``shared/context.py``).

What the app says is turned into codes once, when an event is read; what depends on the event before, the gap, is
computed when it is asked for, because an event can still come in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.context import ContextField, column_codes, context_rows

__all__ = ["Moments", "said_codes"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Moments:
    """When some events of one history happened, in order of time, and what the app said of it.

    Args:
        fields: what the base reads.
        timestamps: (n,) unix seconds.
        said: (n, columns) from ``said_codes``.
    """

    fields: tuple[ContextField, ...]
    timestamps: NDArray[np.float64]
    said: Ints

    def rows(self) -> Ints:
        """Return (n, fields), the moment of each event."""
        return self._rows(self.timestamps, self.said)

    def asked(self, timestamp: float, context: Mapping[str, str]) -> Ints:
        """Return (max(1, n), fields), the moment after each event; after the last it is that of a request.

        Args:
            timestamp: of the request, unix seconds.
            context: what the app says of it.
        """
        times = np.append(self.timestamps, timestamp)
        rows = self._rows(times, np.concatenate([self.said, said_codes(self.fields, [context])]))
        return rows[1:] if len(rows) > 1 else rows

    def __getitem__(self, chosen: NDArray[np.bool_] | slice) -> Moments:
        """Return some of them."""
        return Moments(fields=self.fields, timestamps=self.timestamps[chosen], said=self.said[chosen])

    def _rows(self, times: NDArray[np.float64], said: Ints) -> Ints:
        names = [field.name for field in self.fields if field.kind == "column"]
        columns = {name: said[:, place] for place, name in enumerate(names)}
        return context_rows(self.fields, times, np.concatenate([[np.nan], times])[: len(times)], columns)


def said_codes(fields: Sequence[ContextField], contexts: Sequence[Mapping[str, str]]) -> Ints:
    """Return (n, columns): for each field that is a column, the code of what the app said, 0 for nothing known."""
    columns = [field for field in fields if field.kind == "column"]
    codes = [column_codes(field, [context.get(field.name, "") for context in contexts]) for field in columns]
    return np.stack(codes, axis=1) if codes else np.zeros((len(contexts), 0), np.int64)
