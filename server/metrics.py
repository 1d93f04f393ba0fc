"""A run in numbers while it lasts, and the same in Prometheus' text format.

``RunStatus`` listens to rounds (it is an ``OnRound``) and may be read from other threads. The text is that of
https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4): few lines, so no client library. Counters
count from the start of this process, as Prometheus expects; epsilon and round are those of the whole run.

Everything shown is public or noised already (``RoundResult``); reasons of refusals are shown without their numbers, so
that nothing of a node becomes a label and their number stays small.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import psutil

from ownlet.server.checkpoint import RoundResult
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig

__all__ = ["RunStatus", "Snapshot", "exposition", "kind_of_refusal"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MOST_REASONS = 30
_PREFIX = re.compile(r"^round \d+, (\w+), (?:node|partition) -?\d+: ")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What is known at one moment.

    Args:
        title: of the run.
        unit: the privacy unit; ``none`` where nothing is promised.
        dp_delta: at which epsilon is stated.
        target_epsilon: the run stops before a round that would exceed it.
        num_rounds: planned.
        rounds: of this process, in order.
        refused: kind of refusal -> replies.
        finished: the run has ended.
        stopped: why before its last round, if so.
        num_connected: nodes at the latest look, before a round; None where nobody counts them.
    """

    title: str
    unit: str
    dp_delta: float
    target_epsilon: float
    num_rounds: int
    rounds: tuple[RoundResult, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)
    finished: bool = False
    stopped: str | None = None
    num_connected: int | None = None

    @property
    def last(self) -> RoundResult | None:
        """The latest round."""
        return self.rounds[-1] if self.rounds else None

    @property
    def quality(self) -> float | None:
        """The latest that was measured on held-out public users."""
        return next((one.quality for one in reversed(self.rounds) if one.quality is not None), None)


class RunStatus:
    """What a run tells of itself; ``on_round`` is an ``OnRound`` of ``server.rounds``."""

    def __init__(self, config: FederationConfig, title: str) -> None:
        """Begin with nothing.

        Args:
            config: of the run.
            title: shown above everything.
        """
        self._lock = threading.Lock()
        self._now = Snapshot(
            title=title,
            unit=config.unit,
            dp_delta=config.dp_delta,
            target_epsilon=config.target_epsilon,
            num_rounds=config.rounds,
        )

    def on_round(self, result: RoundResult, _: Vector) -> None:
        """Take in a finished round."""
        with self._lock:
            refused = Counter(self._now.refused)
            for reason in result.rejected:
                kind = kind_of_refusal(reason)
                refused[kind if kind in refused or len(refused) < _MOST_REASONS else "other"] += 1
            self._now = replace(self._now, rounds=(*self._now.rounds, result), refused=dict(refused))

    def connected(self, num_nodes: int) -> None:
        """Note how many nodes are connected."""
        with self._lock:
            self._now = replace(self._now, num_connected=num_nodes)

    def finish(self, stopped: str | None) -> None:
        """Note that the run has ended, and why if before its last round."""
        with self._lock:
            self._now = replace(self._now, finished=True, stopped=stopped)

    def now(self) -> Snapshot:
        """Return what is known now."""
        with self._lock:
            return self._now


def kind_of_refusal(reason: str) -> str:
    """Return why a reply was refused, without round, node and values: ``admit: the sum must be finite``."""
    match = _PREFIX.match(reason)
    stage, text = (match[1], reason[match.end() :]) if match else ("reply", reason)
    return re.sub(r"-?\d[\d.e+-]*", "N", f"{stage}: {text.partition(', got')[0]}")[:120]


def exposition(now: Snapshot) -> str:
    """Return everything as Prometheus reads it."""
    return "".join(_lines(now))


def _lines(now: Snapshot) -> Iterator[str]:
    rounds, last = now.rounds, now.last
    void = sum(one.void for one in rounds)
    yield from _metric("rounds_total", "counter", "Rounds that ended.", {'{outcome="void"}': void})
    yield f'ownlet_rounds_total{{outcome="changed"}} {len(rounds) - void}\n'
    yield from _metric("replies_admitted_total", "counter", "Replies in sums.", sum(one.num_admitted for one in rounds))
    yield from _metric(
        "replies_missing_total", "counter", "Replies that did not come.", sum(one.num_missing for one in rounds)
    )
    refused = {f'{{reason="{_label(kind)}"}}': count for kind, count in sorted(now.refused.items())}
    yield from _metric("replies_refused_total", "counter", "Replies that were not admitted.", refused)
    yield from _metric("users_asked_total", "counter", "Users in cohorts.", sum(one.num_asked for one in rounds))
    told = [("up", sum(one.bytes_up or 0 for one in rounds)), ("down", sum(one.bytes_down or 0 for one in rounds))]
    yield from _metric("bytes_total", "counter", "Bytes of arrays.", {f'{{direction="{way}"}}': n for way, n in told})
    yield "# HELP ownlet_round_seconds How long rounds took.\n# TYPE ownlet_round_seconds summary\n"
    yield f"ownlet_round_seconds_sum {sum(one.seconds for one in rounds)}\nownlet_round_seconds_count {len(rounds)}\n"
    yield from _metric("rounds_planned", "gauge", "Rounds of the whole run.", now.num_rounds)
    yield from _metric("finished", "gauge", "1 once the run has ended.", int(now.finished))
    if now.num_connected is not None:
        yield from _metric("nodes_connected", "gauge", "Nodes connected before the latest round.", now.num_connected)
    if last is not None:
        yield from _metric("round", "gauge", "Number of the latest round.", last.round)
        yield from _metric("cohort_users", "gauge", "Users in the latest cohort.", last.num_asked)
        if now.unit != "none":
            label = f'{{unit="{_label(now.unit)}",delta="{now.dp_delta:g}"}}'
            yield from _metric("epsilon", "gauge", "Privacy spent by the run.", {label: last.epsilon})
            yield from _metric("epsilon_target", "gauge", "What the run may spend.", now.target_epsilon)
    if now.quality is not None:
        yield from _metric("public_ndcg10", "gauge", "Quality on held-out public users.", now.quality)
    resident = psutil.Process().memory_info().rss
    yield from _metric("process_resident_bytes", "gauge", "Resident memory of this process.", resident)


def _metric(name: str, kind: str, what: str, values: Mapping[str, float] | float) -> Iterator[str]:
    yield f"# HELP ownlet_{name} {what}\n# TYPE ownlet_{name} {kind}\n"
    for label, value in values.items() if isinstance(values, Mapping) else {"": values}.items():
        yield f"ownlet_{name}{label} {_number(value)}\n"


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(value)


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
