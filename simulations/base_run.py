"""The job behind ``ownlet pretrain``: train a base, and say what it is worth beside two baselines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.context import ContextField
from ownlet.shared.errors import require
from ownlet.shared.interactions import History, Item
from ownlet.shared.metrics import Metric, summarise
from ownlet.shared.splits import leave_one_out
from ownlet.simulations.baselines import item_knn, most_popular
from ownlet.simulations.board import Board
from ownlet.simulations.curves import CURVES_FILE, draw_panels, panels_of_rows
from ownlet.simulations.evaluate import Cases, model_ranks, scorer_ranks
from ownlet.simulations.genres import GenreHead, genre_hit_rate, usual_genre_hit_rate
from ownlet.simulations.item_text import described, read_descriptions
from ownlet.simulations.moments import ContextRequest, event_context, fields_of
from ownlet.simulations.pretrain import Epoch, PretrainConfig, pretrain, save_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.results import RunFolder, plain_metrics
from ownlet.simulations.setting import DataConfig, data_facts, keep_columns, load_interactions, prepare_requested
from ownlet.simulations.text_content import TextConfig, TextSource, text_content

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
        context: what it reads beside the history; its vocabularies are taken from public users.
        text: the encoder that reads the items; without one their words are hashed.
        recipe: training.
    """

    data: DataConfig = field(default_factory=DataConfig)
    users: Literal["public", "all"] = "public"
    model: ModelConfig = field(default_factory=ModelConfig)
    context: ContextRequest = field(default_factory=ContextRequest)
    text: TextConfig = field(default_factory=TextConfig)
    recipe: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        require(self.users in ("public", "all"), "users must be public or all", users=self.users)
        require(not self.model.context, "context of the model must be left to the run", context=self.model.context)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """What the base is trained, validated and tested on."""

    items: Sequence[Item]
    histories: Sequence[History]
    held_out: Sequence[History]
    validation: Cases
    test: Cases
    fields: tuple[ContextField, ...]
    context: tuple[NDArray[np.int64], ...] | None
    facts: dict[str, object]


def run_pretrain(
    config: BaseRunConfig, folder: RunFolder, progress: Progress, board: Board | None = None
) -> dict[str, dict[str, Metric]]:
    """Train the base; leave ``base.pt``, metrics, their curves and summary in the run folder.

    Args:
        config: the settings.
        folder: of this run; an interrupted run is continued from its last epoch.
        progress: told of epochs.
        board: told of every epoch's row.

    Returns:
        ``popular``, ``item_knn`` and ``base`` -> HR, NDCG and MRR@10.
    """
    started = time.monotonic()
    task = _public_task(config) if config.users == "public" else _leave_one_out_task(config)
    items, content, source = _content(config.text, task, folder, progress)
    head = GenreHead(task.items, config.model.dim) if config.recipe.genre_weight else None
    rows: list[dict[str, object]] = []
    with progress.stage(f"base on {len(task.histories)} users", config.recipe.max_epochs) as step:

        def on_epoch(epoch: Epoch) -> None:
            rows.append({"epoch": epoch.number, "loss": epoch.loss, "validation_ndcg@10": epoch.ndcg})
            if board is not None:
                board.row(epoch.number, rows[-1])
            step(str(epoch))

        model = pretrain(
            task.histories,
            task.validation,
            content,
            replace(config.model, context=task.fields),
            config.recipe,
            context=task.context,
            head=head,
            checkpoint=folder.path / "pretrain.ckpt",
            on_epoch=on_epoch,
        )
    save_base(folder.path / "base.pt", model, items, head, text=source)
    folder.write_metrics(rows)
    draw_panels(folder.path / CURVES_FILE, panels_of_rows({"base": rows}))
    ranks = {
        "popular": scorer_ranks(most_popular(task.histories, len(task.items)), task.test),
        "item_knn": scorer_ranks(item_knn(task.histories, len(task.items)), task.test),
        "base": model_ranks(model, task.test),
    }
    quality = {label: summarise(found) for label, found in ranks.items()}
    summary: dict[str, object] = {
        "command": "pretrain",
        "seconds": time.monotonic() - started,
        "data": task.facts,
        "quality": {label: plain_metrics(metrics) for label, metrics in quality.items()},
    }
    if head is not None:
        usual = usual_genre_hit_rate(head, task.histories, task.test)
        summary["genre_hit_rate"] = {"head": genre_hit_rate(model, head, task.test), "most_frequent": usual}
    folder.write_summary(summary)
    return quality


def _content(
    config: TextConfig, task: _Task, folder: RunFolder, progress: Progress
) -> tuple[Sequence[Item], NDArray[np.float32], TextSource | None]:
    """Return the catalogue with descriptions, its content vectors, and the encoder that made them, if any."""
    items = task.items
    if config.descriptions is not None:
        require(bool(config.encoder), "descriptions must have a text encoder that reads them", encoder=config.encoder)
        items = described(items, read_descriptions(config.descriptions))
    if not config.encoder:
        return items, content_vectors(items), None
    made = text_content(
        items,
        config,
        histories=task.histories,
        validation=task.held_out,
        adapter_file=folder.path / "text_adapter.safetensors",
        progress=progress,
    )
    return items, made.vectors, made.source


def _public_task(config: BaseRunConfig) -> _Task:
    setting = prepare_requested(config.data, config.context)
    return _Task(
        items=setting.data.items,
        histories=setting.public,
        held_out=setting.held_out,
        validation=setting.validation,
        test=setting.test,
        fields=setting.fields,
        context=setting.public_context,
        facts=setting.facts,
    )


def _leave_one_out_task(config: BaseRunConfig) -> _Task:
    source = keep_columns(config.data, config.context.columns)
    data = load_interactions(source)
    split = leave_one_out(data)
    users = split.evaluated
    trained = np.concatenate([np.arange(n) < len(h) for n, h in zip(np.diff(data.offsets), split.train, strict=True)])
    fields = fields_of(config.context, data, trained)
    moments = event_context(data, fields, dict(source.columns))

    def cases(histories: tuple[History, ...], targets: NDArray[np.int64]) -> Cases:
        asked = None
        if moments is not None:
            asked = tuple(moments[u][1 : len(h) + 1] for u, h in zip(users, histories, strict=True))
        return Cases(histories=histories, targets=targets, context=asked)

    return _Task(
        items=data.items,
        histories=split.train,
        held_out=tuple(np.append(split.train[u][-1:], split.validation[u]) for u in users),
        validation=cases(tuple(split.train[u] for u in users), split.validation[users]),
        test=cases(tuple(split.test_history(u) for u in users), split.test[users]),
        fields=fields,
        context=None if moments is None else tuple(m[: len(h)] for m, h in zip(moments, split.train, strict=True)),
        facts=data_facts(data),
    )
