"""The job behind ``ownlet rank-head``: train a ranking head, and say what it is worth on devices.

The base was trained on the public users but the held-out ones, so these train the head: most of them, and the rest stop
it. Devices are tested as they are without a head, on their last event among the whole catalogue.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.metrics import Metric, paired_difference, summarise
from ownlet.shared.ranking import RankingConfig, save_ranking
from ownlet.simulations.evaluate import Cases, all_positions
from ownlet.simulations.pretrain import Epoch, load_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.provenance import check_catalogue, check_unseen
from ownlet.simulations.ranking import TrainRankingConfig, count_items, retrieve, train_ranking, two_stage_ranks
from ownlet.simulations.results import RunFolder, plain_metrics
from ownlet.simulations.setting import DataConfig, Setting, prepare

__all__ = ["HEAD_FILE", "RankingRunConfig", "RankingRunResult", "run_ranking"]

HEAD_FILE = "ranking.safetensors"


@dataclass(frozen=True, kw_only=True)
class RankingRunConfig:
    """Settings of a ranking head.

    Args:
        base: the ``base.pt`` that it belongs to.
        data: the interactions and the division of users that the base was trained with.
        shape: of the head.
        recipe: training.
        judging_fraction: share of the held-out public users that stop the training.
    """

    base: Path
    data: DataConfig = field(default_factory=DataConfig)
    shape: RankingConfig = field(default_factory=RankingConfig)
    recipe: TrainRankingConfig = field(default_factory=TrainRankingConfig)
    judging_fraction: float = 0.3

    def __post_init__(self) -> None:
        within = 0 < self.judging_fraction < 1
        require(within, "judging_fraction must be in (0, 1)", judging_fraction=self.judging_fraction)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankingRunResult:
    """What the run ends with.

    Args:
        quality: ``base`` and ``ranked`` -> HR, NDCG and MRR@10 on device users.
        gain: NDCG@10 of the second minus that of the first, paired by user.
        path: the head's file.
    """

    quality: dict[str, dict[str, Metric]]
    gain: Metric
    path: Path


def run_ranking(config: RankingRunConfig, folder: RunFolder, progress: Progress) -> RankingRunResult:
    """Train the head; leave ``ranking.safetensors``, metrics and summary in the run folder.

    Raises:
        DataError: base or data cannot be read, or too few users are held out.
        ConfigError: the base was trained on another catalogue, or on users of the test.
    """
    started = time.monotonic()
    model = load_base(config.base)
    setting = prepare(config.data, model.config.context)
    check_catalogue(config.base, model.num_items, setting.data.items)
    check_unseen(config.base, setting, config.data)
    training, judging = _divide(setting, config)
    rows: list[dict[str, object]] = []
    with progress.stage(f"ranking head on {len(training)} cases", config.recipe.max_epochs + 1) as step:

        def on_epoch(epoch: Epoch) -> None:
            loss = epoch.loss if epoch.number else None  # nothing was trained in epoch 0
            rows.append({"epoch": epoch.number, "loss": loss, "validation_ndcg@10": epoch.ndcg})
            step(str(epoch))

        head = train_ranking(
            model,
            training,
            judging,
            count_items(setting.public, model.num_items),
            config.shape,
            config.recipe,
            on_epoch=on_epoch,
        )
    save_ranking(folder.path / HEAD_FILE, head)
    folder.write_metrics(rows)
    found = retrieve(model, setting.test, config.shape.num_candidates)
    ranked = two_stage_ranks(model, head, found)
    quality = {"base": summarise(found.ranks), "ranked": summarise(ranked)}
    folder.write_summary(
        {
            "command": "rank-head",
            "seconds": time.monotonic() - started,
            "data": setting.facts,
            "quality": {label: plain_metrics(metrics) for label, metrics in quality.items()},
        }
    )
    gain = paired_difference(ranked, found.ranks)["ndcg@10"]
    return RankingRunResult(quality=quality, gain=gain, path=folder.path / HEAD_FILE)


def _divide(setting: Setting, config: RankingRunConfig) -> tuple[Cases, Cases]:
    """Return the cases of held-out users who train the head, and of those who stop it."""
    order = np.random.default_rng([config.recipe.seed, 2]).permutation(len(setting.held_out))
    num_judging = round(config.judging_fraction * len(order))
    training, judging = (_cases(setting, users) for users in (order[num_judging:], order[:num_judging]))
    return training, judging


def _cases(setting: Setting, users: NDArray[np.int64]) -> Cases:
    moments = setting.held_out_context
    return all_positions(
        [setting.held_out[user] for user in users],
        context=None if moments is None else [moments[user] for user in users],
    )
