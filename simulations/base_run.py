"""The job behind ``ownlet pretrain``: train a base, and say what it is worth beside two baselines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import require
from ownlet.shared.interactions import History, Item
from ownlet.shared.metrics import Metric, summarise
from ownlet.shared.splits import leave_one_out
from ownlet.simulations.baselines import item_knn, most_popular
from ownlet.simulations.evaluate import Cases, model_ranks, scorer_ranks
from ownlet.simulations.pretrain import Epoch, PretrainConfig, pretrain, save_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.results import RunFolder, plain_metrics
from ownlet.simulations.setting import DataConfig, data_facts, load_interactions, prepare

__all__ = ["BaseRunConfig", "run_pretrain"]


@dataclass(frozen=True, kw_only=True)
class BaseRunConfig:
    """Settings of a base.

    Args:
        data: which interactions.
        users: ``public`` trains on public users and tests on devices, as a deployment would; ``all`` trains on
            everybody's events but the last two, validates on the second-to-last and tests on the last (leave-one-out,
            for comparison with published figures).
        model: shape of the base.
        recipe: training.
    """

    data: DataConfig = field(default_factory=DataConfig)
    users: Literal["public", "all"] = "public"
    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        require(self.users in ("public", "all"), "users must be public or all", users=self.users)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """What the base is trained, validated and tested on."""

    items: Sequence[Item]
    histories: Sequence[History]
    validation: Cases
    test: Cases
    facts: dict[str, object]


def run_pretrain(config: BaseRunConfig, folder: RunFolder, progress: Progress) -> dict[str, dict[str, Metric]]:
    """Train the base; leave ``base.pt``, metrics and summary in the run folder.

    Args:
        config: the settings.
        folder: of this run; an interrupted run is continued from its last epoch.
        progress: told of epochs.

    Returns:
        ``popular``, ``item_knn`` and ``base`` -> HR, NDCG and MRR@10.
    """
    started = time.monotonic()
    task = _public_task(config.data) if config.users == "public" else _leave_one_out_task(config.data)
    rows: list[dict[str, object]] = []
    with progress.stage(f"base on {len(task.histories)} users", config.recipe.max_epochs) as step:

        def on_epoch(epoch: Epoch) -> None:
            rows.append({"epoch": epoch.number, "loss": epoch.loss, "validation_ndcg@10": epoch.ndcg})
            step(str(epoch))

        model = pretrain(
            task.histories,
            task.validation,
            content_vectors(task.items),
            config.model,
            config.recipe,
            checkpoint=folder.path / "pretrain.ckpt",
            on_epoch=on_epoch,
        )
    save_base(folder.path / "base.pt", model, task.items)
    folder.write_metrics(rows)
    ranks = {
        "popular": scorer_ranks(most_popular(task.histories, len(task.items)), task.test),
        "item_knn": scorer_ranks(item_knn(task.histories, len(task.items)), task.test),
        "base": model_ranks(model, task.test),
    }
    quality = {label: summarise(found) for label, found in ranks.items()}
    summary = {
        "command": "pretrain",
        "seconds": time.monotonic() - started,
        "data": task.facts,
        "quality": {label: plain_metrics(metrics) for label, metrics in quality.items()},
    }
    folder.write_summary(summary)
    return quality


def _public_task(config: DataConfig) -> _Task:
    setting = prepare(config)
    return _Task(
        items=setting.data.items,
        histories=setting.public,
        validation=setting.validation,
        test=setting.test,
        facts=setting.facts,
    )


def _leave_one_out_task(config: DataConfig) -> _Task:
    data = load_interactions(config)
    split = leave_one_out(data)
    users = split.evaluated
    return _Task(
        items=data.items,
        histories=split.train,
        validation=Cases(histories=tuple(split.train[u] for u in users), targets=split.validation[users]),
        test=Cases(histories=tuple(split.test_history(u) for u in users), targets=split.test[users]),
        facts=data_facts(data),
    )
