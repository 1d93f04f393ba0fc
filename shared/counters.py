"""What a device may say of its recommendations: one bit about a bounded number of impressions, under local privacy.

A device takes the first m impressions of a named count; h of them were hits. It sends one bit, which is 1 with
probability q + (h / m) (1 - 2 q), where q = 1 / (1 + e^epsilon): the 1BitMean of Ding, Kulkarni and Yekhanin 2017
(https://arxiv.org/abs/1712.01524, section 2). A bit is bounded, so no device moves a sum by more than one, and its
spread is known whatever the hit rates are: never above 1/2.

Privacy unit: everything that one device has in the count. Neighbours: any two contents of the device, no impression at
all included. There is no sampling, and nobody but the device is trusted: epsilon holds for each report by itself, with
delta 0. It holds only where it does not depend on the content whether and when a device reports, so it reports at the
end of a count in any case; impressions that did not come count as no hits.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from ownlet.shared.errors import DataError, require

__all__ = ["Arm", "CountReport", "CountTerms", "chance_of_one", "gain", "is_plain_name", "parse_report"]

Arm = Literal["a", "b"]

_FORMAT = "ownlet-count-1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class CountTerms:
    """The public numbers of a count.

    Args:
        count: its name; a device reports once under each.
        impressions: m, how many impressions of a device are looked at.
        epsilon: what one report costs the device.
    """

    count: str
    impressions: int = 20
    epsilon: float = 1.0

    def __post_init__(self) -> None:
        require(is_plain_name(self.count), "count must be a name of letters, digits, - and _", count=self.count)
        require(1 <= self.impressions <= 10_000, "impressions must be in 1..10000", impressions=self.impressions)
        require(0 < self.epsilon <= 20, "epsilon must be in (0, 20]", epsilon=self.epsilon)


@dataclass(frozen=True, kw_only=True)
class CountReport:
    """One device's report. Nothing in it names the device.

    Args:
        count: of the terms.
        arm: of the experiment that the device is in, by hash; None outside of one.
        version: of the adapter that the count is about.
        bit: 0 or 1.
        id: random, so that a report that arrives twice counts once.
    """

    count: str
    arm: Arm | None
    version: int
    bit: int
    id: str

    def to_json(self) -> str:
        """Return one line without its newline."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True, separators=(",", ":"))


def is_plain_name(name: Any) -> bool:
    """Tell whether a name may become part of a file name."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def chance_of_one(hits: int, terms: CountTerms) -> float:
    """Return the probability of the bit 1 after so many hits; hits beyond the impressions do not count."""
    require(hits >= 0, "hits must not be negative", hits=hits)
    share = min(hits, terms.impressions) / terms.impressions
    return (1 - gain(terms.epsilon)) / 2 + share * gain(terms.epsilon)


def gain(epsilon: float) -> float:
    """Return by how much the mean bit rises where the hit rate rises by one: (e^epsilon - 1) / (e^epsilon + 1)."""
    return math.tanh(epsilon / 2)


def parse_report(line: str) -> CountReport:
    """Read what ``CountReport.to_json`` wrote; it comes from anywhere, so everything is checked.

    Raises:
        DataError: not a report.
    """
    try:
        plain = json.loads(line)
        known = isinstance(plain, dict) and plain.pop("format", None) == _FORMAT
        report = CountReport(**plain) if known else None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"count report must be one that a device wrote, got {line[:80]!r}") from error
    if report is None or not _is_sound(report):
        raise DataError(f"count report must be one that a device wrote, got {line[:80]!r}")
    return report


def _is_sound(report: CountReport) -> bool:
    arm = report.arm is None or (isinstance(report.arm, str) and report.arm in get_args(Arm))
    version = type(report.version) is int and 0 <= report.version < 2**53
    bit = type(report.bit) is int and report.bit in (0, 1)
    named = isinstance(report.id, str) and _ID.fullmatch(report.id) is not None
    return is_plain_name(report.count) and arm and version and bit and named
