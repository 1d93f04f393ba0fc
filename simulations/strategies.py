"""What the server does with a round, compared: strategies x epsilons, over several seeds, on parts that can be resumed.

==========  =================  ================  ======================================================================
strategy    method             server optimiser  tuned on public users (``quality_tuning``)
==========  =================  ================  ======================================================================
fedavg      ``lora-frozen-a``  FedAvgM           local rate, clip per epsilon
fedsvd      ``fedsvd``         FedAvgM           the same
rolora      ``rolora``         FedAvgM           the same
naive       ``lora``           FedAvgM           the same
fedadam     ``lora-frozen-a``  FedAdam           server rate at fedavg's local rate, clip per epsilon
fedyogi     ``lora-frozen-a``  FedYogi           the same
==========  =================  ================  ======================================================================

The first four are parts of the quality benchmark as they are, under the same names of files, so that what it measured
serves here and the other way round. Grids are of equal size and grow in the same way. For ``naive``, the same rounds
are run once more with the devices watched: how wrong is the average of A and B (``simulations/cross_covariance.py``)?
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import MethodName
from ownlet.shared.server_config import OptimizerName, ServerOptimizer
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.cross_covariance import CrossCovarianceEngine
from ownlet.simulations.evaluate import model_ranks
from ownlet.simulations.progress import Progress
from ownlet.simulations.quality import InThisProcess, run_parts
from ownlet.simulations.quality_config import Choice, QualityConfig, QualityData, check_settings, setting_of
from ownlet.simulations.quality_parts import (
    base_path,
    base_ranks,
    load_arrays,
    make_base,
    run_federated_part,
    save_arrays,
    test_cases,
)
from ownlet.simulations.quality_tuning import (
    KeptScores,
    Rehearsal,
    best_on_grid,
    make_rehearsal_base,
    run_rounds,
    started,
    tune,
)
from ownlet.simulations.workers import worker_pool

__all__ = ["SERVER_RATES", "STRATEGIES", "Strategy", "StrategyResult", "run_strategies"]

SERVER_RATES = (0.003, 0.01, 0.03, 0.1)
"""Learning rates of FedAdam and FedYogi that are tried."""

_DELTAS_OF_BOTH: MethodName = "lora"


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What devices train, and what the server makes of their average."""

    method: MethodName
    optimizer: OptimizerName = "fedavgm"

    @property
    def file_name(self) -> str:
        """How its parts' files begin."""
        return self.method if self.optimizer == "fedavgm" else f"{self.method}-{self.optimizer}"


STRATEGIES: Mapping[str, Strategy] = {
    "fedavg": Strategy(method="lora-frozen-a"),
    "fedsvd": Strategy(method="fedsvd"),
    "rolora": Strategy(method="rolora"),
    "naive": Strategy(method=_DELTAS_OF_BOTH),
    "fedadam": Strategy(method="lora-frozen-a", optimizer="fedadam"),
    "fedyogi": Strategy(method="lora-frozen-a", optimizer="fedyogi"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class StrategyResult:
    """What one strategy gave at one epsilon.

    Args:
        name: of the strategy.
        epsilon: of user-level privacy; infinity is none.
        ranks: (seeds, tested).
        choice: what it was tuned to.
        errors: (seeds, rounds) of ``naive``: the relative error of the average of A and B; else None.
    """

    name: str
    epsilon: float
    ranks: NDArray[np.int64]
    choice: Choice
    errors: NDArray[np.float64] | None


def run_strategies(
    config: QualityConfig, names: tuple[str, ...], folder: Path, progress: Progress, *, workers: int = 1
) -> tuple[NDArray[np.int64], tuple[StrategyResult, ...]]:
    """Tune and run everything that the folder does not hold yet.

    Args:
        config: one data set, epsilons, seeds, grids and rounds; its methods are not read.
        names: keys of ``STRATEGIES``.
        folder: for the parts' files, which may be that of a quality benchmark with equal settings.
        progress: shows parts and what each is doing.
        workers: processes that parts run in; 1 is this one.

    Returns:
        (seeds, tested) ranks of the bases, and the results, strategy by strategy.

    Raises:
        ConfigError: the folder holds parts that were made with other settings.
    """
    (data,) = config.data
    check_settings(config, data, folder)
    cells = [(STRATEGIES[name], epsilon) for name in names for epsilon in config.epsilons]
    methods = dict.fromkeys(STRATEGIES[name].method for name in names)
    with worker_pool(workers, progress) if workers > 1 else nullcontext(InThisProcess(progress)) as pool:
        run_parts(pool, progress, "bases", make_base, [(config, data, seed, folder) for seed in config.seeds])
        run_parts(pool, progress, "rehearsal", make_rehearsal_base, [(config, data, folder)])
        run_parts(pool, progress, "tuning", tune, [(config, data, method, folder) for method in methods])
        adaptive = [STRATEGIES[name] for name in names if STRATEGIES[name].optimizer != "fedavgm"]
        others = [(config, data, strategy, folder) for strategy in adaptive]
        run_parts(pool, progress, "tuning of server optimisers", tune_strategy, others)
        runs = [(config, data, *cell, seed, folder) for cell in cells for seed in config.seeds]
        run_parts(pool, progress, "federated runs", strategy_ranks, runs)
        watched = [
            (config, data, epsilon, seed, folder)
            for strategy, epsilon in cells
            for seed in config.seeds
            if strategy.method == _DELTAS_OF_BOTH
        ]
        run_parts(pool, progress, "cross-covariance", naive_errors, watched)
    base = np.stack([base_ranks(data, seed, folder) for seed in config.seeds])
    results = (_collect(config, data, name, epsilon, folder, progress) for name in names for epsilon in config.epsilons)
    return base, tuple(results)


def tune_strategy(
    config: QualityConfig, data: QualityData, strategy: Strategy, folder: Path, progress: Progress
) -> dict[float, Choice]:
    """Return what is best in the rehearsal, by epsilon; runs that are on file are not run again."""
    plain = tune(config, data, strategy.method, folder, progress)
    if strategy.optimizer == "fedavgm":
        return {epsilon: plain.choice(epsilon) for epsilon in config.epsilons}
    found = KeptScores(folder / data.name / f"{strategy.file_name}-tuning.json")
    rehearse = Rehearsal(_with_optimizer(config, strategy), data, strategy.method, folder, progress)

    def quality(clip_norm: float, rate: float, epsilon: float) -> float:
        key = f"local rate {plain.learning_rate:g}, server rate {rate:g}"
        key += "" if math.isinf(epsilon) else f", clip {clip_norm:g} at epsilon {epsilon:g}"
        choice = Choice(learning_rate=plain.learning_rate, clip_norm=clip_norm, server_learning_rate=rate)
        return found.score(key, partial(rehearse.rounds, epsilon, choice))

    best = best_on_grid(SERVER_RATES, lambda rate: quality(1.0, rate, math.inf))
    clips = {
        epsilon: best_on_grid(config.clips, partial(quality, rate=best, epsilon=epsilon))
        for epsilon in config.epsilons
        if math.isfinite(epsilon)
    }
    return {
        epsilon: Choice(
            learning_rate=plain.learning_rate, clip_norm=clips.get(epsilon, math.inf), server_learning_rate=best
        )
        for epsilon in config.epsilons
    }


def strategy_ranks(
    config: QualityConfig,
    data: QualityData,
    strategy: Strategy,
    epsilon: float,
    seed: int,
    folder: Path,
    progress: Progress,
) -> NDArray[np.int64]:
    """Return the ranks of the devices' last events by the adapter that the rounds end with, (tested,)."""
    if strategy.optimizer == "fedavgm":
        return run_federated_part(config, data, strategy.method, epsilon, seed, folder, progress).federated
    path = folder / data.name / f"{strategy.file_name}-eps{epsilon:g}-{seed}.npz"
    if not path.exists():
        choice = tune_strategy(config, data, strategy, folder, progress)[epsilon]
        setting = setting_of(data)
        ready = started(config, data, base_path(folder, data, seed), setting, strategy.method, seed, progress)
        federation = _with_optimizer(config, strategy).rounds(data, strategy.method, epsilon, choice, seed)
        name = f"{data.name}, seed {seed}, {strategy.file_name}, ε {epsilon:g}"
        result = run_rounds(name, ready, setting, federation, progress)
        ranks = model_ranks(ready.model, test_cases(data), spec=ready.spec, vectors=result.vector)
        save_arrays(path, federated=ranks, epsilon=np.array([result.epsilon]))
    return load_arrays(path)["federated"]


def naive_errors(
    config: QualityConfig, data: QualityData, epsilon: float, seed: int, folder: Path, progress: Progress
) -> NDArray[np.float64]:
    """Return the relative error of averaging A and B in each round of the part ``lora``, (rounds,)."""
    path = folder / data.name / f"{_DELTAS_OF_BOTH}-eps{epsilon:g}-{seed}-cross-covariance.npz"
    if not path.exists():
        choice = tune(config, data, _DELTAS_OF_BOTH, folder, progress).choice(epsilon)
        setting = setting_of(data)
        ready = started(config, data, base_path(folder, data, seed), setting, _DELTAS_OF_BOTH, seed, progress)
        federation = config.rounds(data, _DELTAS_OF_BOTH, epsilon, choice, seed)
        engine, errors = CrossCovarianceEngine(CohortEngine(ready.model, ready.spec), federation), list[float]()
        name = f"{data.name}, seed {seed}, naive, watched, ε {epsilon:g}"
        run_rounds(
            name, ready, setting, federation, progress, engine=engine, on_round=lambda: errors.append(engine.take())
        )
        save_arrays(path, errors=np.array(errors))
    return load_arrays(path)["errors"]


def _collect(
    config: QualityConfig, data: QualityData, name: str, epsilon: float, folder: Path, progress: Progress
) -> StrategyResult:
    strategy, errors = STRATEGIES[name], None
    if strategy.method == _DELTAS_OF_BOTH:
        errors = np.stack([naive_errors(config, data, epsilon, seed, folder, progress) for seed in config.seeds])
    ranks = [strategy_ranks(config, data, strategy, epsilon, seed, folder, progress) for seed in config.seeds]
    choice = tune_strategy(config, data, strategy, folder, progress)[epsilon]
    return StrategyResult(name=name, epsilon=epsilon, ranks=np.stack(ranks), choice=choice, errors=errors)


def _with_optimizer(config: QualityConfig, strategy: Strategy) -> QualityConfig:
    optimizer = ServerOptimizer(name=strategy.optimizer)
    return replace(config, federation=replace(config.federation, server_optimizer=optimizer))
