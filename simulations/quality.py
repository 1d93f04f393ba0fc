"""The quality benchmark: data sets x methods x epsilons x stages, over several seeds.

Every number that is chosen is chosen on public users: the base's early stopping, the oracle's epoch, and what
``quality_tuning`` rehearses per method. That is the whole tuning, and it costs no privacy, because public users are not
devices.

* ``base``: the frozen base; ``federated``: with the adapter that the rounds ended with;
* ``personal``: each device trains a personal adapter on the base alone, gently, and keeps it;
  ``federated+personal``: the same on top of the federated adapter;
* ``local-only``: each device does all the local steps that it would do in the rounds, and nobody averages;
* ``centralised``: the same adapter trained on everybody's pooled events, without privacy: the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import MethodName
from ownlet.shared.metrics import Metric, paired_difference, summarise
from ownlet.simulations.progress import Progress
from ownlet.simulations.quality_config import QualityConfig, QualityData, check_settings
from ownlet.simulations.quality_parts import (
    Federated,
    Unfederated,
    base_ranks,
    make_base,
    run_federated_part,
    run_unfederated_part,
    test_cases,
)
from ownlet.simulations.quality_tuning import Tuned, make_rehearsal_base, tune
from ownlet.simulations.segments import FloorRow, activity_segments, check_floor
from ownlet.simulations.workers import Pool, worker_pool

__all__ = [
    "STAGES",
    "DataResult",
    "InThisProcess",
    "QualityTable",
    "activity_floor",
    "base_metrics",
    "epsilon_label",
    "federated_gain",
    "kept_share",
    "method_differences",
    "quality_table",
    "run_parts",
    "run_quality",
    "stage_metrics",
]

STAGES = ("base", "federated", "personal", "federated+personal", "local-only", "centralised")

QualityTable = dict[str, dict[str, dict[str, dict[str, dict[str, dict[str, float]]]]]]
"""data set -> method -> epsilon -> stage -> metric -> value, low, high."""

Ranks = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataResult:
    """Everything that was measured on one data set.

    Args:
        data: the data set.
        base: (seeds, tested) ranks of the bases.
        unfederated: method -> one result per seed.
        federated: (method, epsilon) -> one result per seed.
        tuned: method -> what the rehearsal chose.
    """

    data: QualityData
    base: Ranks
    unfederated: Mapping[MethodName, tuple[Unfederated, ...]]
    federated: Mapping[tuple[MethodName, float], tuple[Federated, ...]]
    tuned: Mapping[MethodName, Tuned]

    def ranks(self, method: MethodName, epsilon: float) -> dict[str, Ranks]:
        """Return stage -> (seeds, tested) ranks; what no rounds are needed for stands with infinite epsilon only."""
        runs = self.federated[method, epsilon]
        found = {
            "base": self.base,
            "federated": np.stack([run.federated for run in runs]),
            "federated+personal": np.stack([run.personal for run in runs]),
        }
        if math.isinf(epsilon):
            alone = self.unfederated[method]
            found["personal"] = np.stack([one.personal for one in alone])
            found["local-only"] = np.stack([one.local_only for one in alone])
            found["centralised"] = np.stack([one.centralised for one in alone])
        return {stage: found[stage] for stage in STAGES if stage in found}


def run_quality(config: QualityConfig, folder: Path, progress: Progress, *, workers: int = 1) -> tuple[DataResult, ...]:
    """Train and measure everything that the folder does not hold yet.

    Args:
        config: what.
        folder: for the parts' files; those of an interrupted benchmark are used.
        progress: shows parts and what each is doing.
        workers: processes that parts run in; 1 is this one.
    """
    for data in config.data:
        check_settings(config, data, folder)
    with worker_pool(workers, progress) if workers > 1 else nullcontext(InThisProcess(progress)) as pool:
        every = [(data, seed) for data in config.data for seed in config.seeds]
        run_parts(pool, progress, "bases", make_base, [(config, data, seed, folder) for data, seed in every])
        run_parts(pool, progress, "rehearsal", make_rehearsal_base, [(config, data, folder) for data in config.data])
        tuned = [(config, data, method, folder) for data in config.data for method in config.methods]
        run_parts(pool, progress, "tuning", tune, tuned)
        rounds = [
            (config, data, method, epsilon, seed, folder)
            for data in config.data
            for epsilon in config.epsilons
            for method in config.methods
            for seed in config.seeds
        ]
        run_parts(pool, progress, "federated runs", run_federated_part, rounds)
        alone = [(config, data, method, seed, folder) for data, seed in every for method in config.methods]
        run_parts(pool, progress, "without rounds", run_unfederated_part, alone)
        return tuple(_collect(config, data, folder, progress) for data in config.data)


class InThisProcess:
    """Runs parts in this process, one after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def submit(self, part: Callable[..., object], *arguments: object) -> Future[object]:
        """Run a part."""
        done: Future[object] = Future()
        done.set_result(part(*arguments, self._progress))
        return done


def run_parts(
    pool: Pool | InThisProcess,
    progress: Progress,
    name: str,
    part: Callable[..., object],
    calls: Sequence[tuple[object, ...]],
) -> None:
    """Run a part with every set of arguments, in worker processes."""
    with progress.stage(name, len(calls)) as step:
        futures: list[Future[object]] = [pool.submit(part, *arguments) for arguments in calls]
        for future in futures:
            future.result()
            step("")


def _collect(config: QualityConfig, data: QualityData, folder: Path, progress: Progress) -> DataResult:
    return DataResult(
        data=data,
        base=np.stack([base_ranks(data, seed, folder) for seed in config.seeds]),
        unfederated={
            method: tuple(run_unfederated_part(config, data, method, seed, folder, progress) for seed in config.seeds)
            for method in config.methods
        },
        federated={
            (method, epsilon): tuple(
                run_federated_part(config, data, method, epsilon, seed, folder, progress) for seed in config.seeds
            )
            for method in config.methods
            for epsilon in config.epsilons
        },
        tuned={method: tune(config, data, method, folder, progress) for method in config.methods},
    )


def epsilon_label(epsilon: float) -> str:
    """Return ``none`` for a run without privacy, else the number."""
    return "none" if math.isinf(epsilon) else f"{epsilon:g}"


@cache
def stage_metrics(result: DataResult, method: MethodName, epsilon: float) -> dict[str, dict[str, Metric]]:
    """Return stage -> metric, over users, mean over seeds."""
    found = result.ranks(method, epsilon).items()
    return {stage: base_metrics(result) if stage == "base" else summarise(ranks) for stage, ranks in found}


@cache
def base_metrics(result: DataResult) -> dict[str, Metric]:
    """Return the metrics of the bases, the same for every method and epsilon."""
    return summarise(result.base)


@cache
def federated_gain(result: DataResult, method: MethodName, epsilon: float) -> Metric:
    """Return NDCG@10 of the federated adapter minus that of the base, paired by user."""
    return paired_difference(result.ranks(method, epsilon)["federated"], result.base)["ndcg@10"]


def quality_table(results: tuple[DataResult, ...], on_cell: Callable[[], None] = lambda: None) -> QualityTable:
    """Return data set -> method -> epsilon -> stage -> metric -> value, low, high over users, mean over seeds.

    Args:
        results: of every data set.
        on_cell: called after every method and epsilon, since intervals take a second.
    """
    table: QualityTable = {}
    for result in results:
        for method, epsilon in result.federated:
            stages = {
                stage: {name: asdict(metric) for name, metric in metrics.items()}
                for stage, metrics in stage_metrics(result, method, epsilon).items()
            }
            table.setdefault(result.data.name, {}).setdefault(method, {})[epsilon_label(epsilon)] = stages
            on_cell()
    return table


def method_differences(result: DataResult, method: MethodName, other: MethodName) -> dict[str, Metric]:
    """Return, per epsilon, NDCG@10 of one method's federated adapter minus another's, paired by user."""
    epsilons = [
        epsilon for name, epsilon in result.federated if name == method and (other, epsilon) in result.federated
    ]
    return {
        epsilon_label(epsilon): paired_difference(
            result.ranks(method, epsilon)["federated"], result.ranks(other, epsilon)["federated"]
        )["ndcg@10"]
        for epsilon in epsilons
    }


def kept_share(result: DataResult, method: MethodName, epsilon: float) -> float:
    """Return the share of the gain in NDCG@10 over the base without privacy that is left at an epsilon; NaN if none."""
    gain, without = (federated_gain(result, method, one).value for one in (epsilon, math.inf))
    return gain / without if without > 0 else math.nan


def activity_floor(result: DataResult, method: MethodName, epsilon: float) -> tuple[FloorRow, ...]:
    """Compare ``federated+personal`` with ``federated`` by thirds of activity: personal must not harm any."""
    ranks = result.ranks(method, epsilon)
    name = f"{method}, ε {epsilon_label(epsilon)}: personal on federated"
    return check_floor(
        ranks["federated"], {name: ranks["federated+personal"]}, activity_segments(test_cases(result.data))
    )
