"""What a run found, as plain frozen values: the input of the report page, its figures and the terminal table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ownlet.shared.errors import require
from ownlet.shared.metrics import Metric
from ownlet.simulations.results import QUALITY_LABELS

__all__ = [
    "ROW_NAMES",
    "DataFacts",
    "Latency",
    "PrivacyRow",
    "QualityRow",
    "ReportData",
    "RoundRecord",
    "RunRecord",
    "quality_row",
]

ROW_NAMES = {
    "popular": "most popular",
    "item_knn": "item-kNN",
    "base": "base",
    "federated": "federated, no privacy",
    "federated_eps8": "federated, ε = 8",
    "federated_eps2": "federated, ε = 2",
    "personal": "personal, on ε = 2",
    "ranked": "two-stage",
}


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The data set: its name and how many users, items and interactions it holds."""

    name: str
    users: int
    items: int
    interactions: int


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """The quality of one recommender.

    Args:
        label: one of ``results.QUALITY_LABELS``.
        hr: HR@10.
        ndcg: NDCG@10.
        mrr: MRR@10.
        gain: NDCG@10 minus the base's on the same users (paired), where there is one.
    """

    label: str
    hr: Metric
    ndcg: Metric
    mrr: Metric
    gain: Metric | None = None

    def __post_init__(self) -> None:
        require(self.label in QUALITY_LABELS, f"label must be one of {QUALITY_LABELS}", label=self.label)


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One federated round.

    Args:
        round: its number; 0 is the adapter that changes nothing.
        ndcg: NDCG@10 on public users, where it was measured in this round.
        epsilon: spent so far; None where nothing is claimed.
        update_norm: typical L2 norm of a user's delta before clipping, where known.
        clip_norm: C, the bound on a user's delta, where there is one.
    """

    round: int
    ndcg: Metric | None = None
    epsilon: float | None = None
    update_norm: float | None = None
    clip_norm: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """All rounds of one federated run: a quality label, its seed, and the rounds in order."""

    label: str
    seed: int
    rounds: tuple[RoundRecord, ...]

    def __post_init__(self) -> None:
        require(self.label in QUALITY_LABELS, f"label must be one of {QUALITY_LABELS}", label=self.label)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Median time of one thing that a device does, in milliseconds, beside the same in eager PyTorch."""

    method: str
    pte_ms: float
    eager_ms: float


@dataclass(frozen=True, kw_only=True)
class PrivacyRow:
    """What one run promises.

    Args:
        label: one of ``results.QUALITY_LABELS``.
        epsilon: total spent.
        dp_delta: the delta at which epsilon holds.
        unit: what is protected, ``user`` or ``window``.
        rounds: rounds charged.
        sampling: how cohorts were drawn, as accounted.
        noise_multiplier: standard deviation of the noise divided by the clip.
        clip_norm: C.
        accountant: how epsilon was computed.
        trust_model: who must be trusted for it to hold.
    """

    label: str
    epsilon: float
    dp_delta: float
    unit: str
    rounds: int
    sampling: str
    noise_multiplier: float
    clip_norm: float
    accountant: str
    trust_model: str

    def __post_init__(self) -> None:
        require(self.label in QUALITY_LABELS, f"label must be one of {QUALITY_LABELS}", label=self.label)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the report page shows.

    Args:
        title: the page's title.
        data: the data set.
        config: settings to show, name -> value as text, in order.
        quality: rows in the order of ``results.QUALITY_LABELS``, each at most once.
        bytes_up_per_user_round: bytes that leave a device in a round.
        bytes_down_per_user_round: bytes that reach a device in a round.
        program_bytes: size of the ``.pte`` program.
        latencies: one per measured method.
        runs: federated runs; several seeds of one label are drawn together.
        base_by_round: the base's NDCG@10 on the users on whom ``RoundRecord.ndcg`` was measured.
        privacy: one row per run that makes a promise.
        not_protected: plain sentences, each a thing that the promise does not cover.
        interval: what low and high of every estimate are.
    """

    title: str
    data: DataFacts
    config: Mapping[str, str]
    quality: tuple[QualityRow, ...]
    bytes_up_per_user_round: int
    bytes_down_per_user_round: int
    program_bytes: int
    latencies: tuple[Latency, ...]
    runs: tuple[RunRecord, ...] = ()
    base_by_round: Metric | None = None
    privacy: tuple[PrivacyRow, ...] = ()
    not_protected: tuple[str, ...] = field(default=())
    interval: str = "95 % bootstrap intervals over users"

    def __post_init__(self) -> None:
        positions = [QUALITY_LABELS.index(row.label) for row in self.quality]
        require(
            len(positions) > 0 and positions == sorted(set(positions)),
            f"quality must have rows in the order {QUALITY_LABELS}, each at most once",
            labels=[row.label for row in self.quality],
        )


def quality_row(label: str, metrics: Mapping[str, Metric], gain: Metric | None = None) -> QualityRow:
    """Build a row from summarised metrics.

    Args:
        label: one of ``results.QUALITY_LABELS``.
        metrics: ``hr@10``, ``ndcg@10`` and ``mrr@10``.
        gain: the paired difference in NDCG@10 from the base, where there is one.

    Returns:
        the row.
    """
    return QualityRow(
        label=label,
        hr=metrics["hr@10"],
        ndcg=metrics["ndcg@10"],
        mrr=metrics["mrr@10"],
        gain=gain,
    )
