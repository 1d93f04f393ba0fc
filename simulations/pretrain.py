"""Trains the base once, on public users; ``simulations.base_loss`` says what it minimises.

A run leaves a checkpoint after every epoch and continues from it to the same result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.config import ModelConfig
from ownlet.shared.errors import ConfigError, DataError, require
from ownlet.shared.interactions import History
from ownlet.shared.model import SASRec
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.recommender import Recommender, module_of
from ownlet.shared.schedule import SCHEDULES, schedule_factor
from ownlet.simulations.base_file import load_base, load_catalogue, read_saved, save_base, write_saved
from ownlet.simulations.base_loss import BaseLoss, item_frequencies
from ownlet.simulations.evaluate import Cases, mean_ndcg
from ownlet.simulations.genres import GenreHead

__all__ = ["Epoch", "PretrainConfig", "load_base", "load_catalogue", "pretrain", "save_base", "train_base"]


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(ObjectiveConfig):
    """How the base is trained; the fields of its objective are ``ObjectiveConfig``'s.

    Args:
        max_epochs: the most passes over the users.
        patience: stop after this many epochs without a better validation NDCG@10.
        batch_size: users in a step.
        learning_rate: peak of the schedule (AdamW).
        schedule: ``cosine`` or ``linear`` to a tenth, or ``constant``.
        warmup_steps: linear warm-up before it.
        weight_decay: of matrices and embeddings, not of norms and biases.
        gradient_clip: largest L2 norm of a step's gradient; infinity means no bound.
        genre_weight: what the loss of the next item's genres is multiplied by; 0 trains no head for it.
        seed: of initialisation, order, dropout and negatives.
    """

    max_epochs: int = 60
    patience: int = 6
    batch_size: int = 64
    learning_rate: float = 1e-3
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    genre_weight: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_epochs", "patience", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        for name in ("learning_rate", "gradient_clip"):
            require(getattr(self, name) > 0, f"{name} must be positive", **{name: getattr(self, name)})
        for name in ("warmup_steps", "weight_decay", "genre_weight"):
            require(getattr(self, name) >= 0, f"{name} must not be negative", **{name: getattr(self, name)})
        require(self.schedule in SCHEDULES, f"schedule must be one of {SCHEDULES}", schedule=self.schedule)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave: the mean training loss and the validation NDCG@10."""

    number: int
    loss: float
    ndcg: float
    best: bool

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}, NDCG@10 {self.ndcg:.4f}{' (best)' if self.best else ''}"


class _Example(NamedTuple):
    """One user: events (n,), and the context of the moment of each (n, fields), or None."""

    events: History
    context: NDArray[np.int64] | None


def pretrain(
    histories: Sequence[History],
    validation: Cases,
    content: NDArray[np.float32],
    model_config: ModelConfig,
    config: PretrainConfig,
    *,
    context: Sequence[NDArray[np.int64]] | None = None,
    head: GenreHead | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> SASRec:
    """Train a base and return it in eval mode, as it was at its best epoch.

    Args:
        histories: training events of the public users; only those with two events or more teach anything.
        validation: cases for early stopping; nothing of them is in ``histories``.
        content: (num_items + 1, content_dim).
        model_config: the shape.
        config: the recipe.
        context: per history (events, fields), rows from ``shared.context`` of the moment of each event, where the base
            reads any.
        head: of the next genre, trained in place; needed where ``genre_weight`` is positive, and nowhere else.
        checkpoint: file for resuming; removed by nobody, refused if it belongs to other settings.
        on_epoch: called after each epoch; when a training is continued, first for those that are done already.

    Raises:
        DataError: no history has two events.
        ConfigError: the checkpoint was written with other settings, a base that reads context got none, or a weight
            without a head.
    """
    require((context is not None) == bool(model_config.context), "context must be given where the base reads any")
    require((head is not None) == (config.genre_weight > 0), "head must be given with genre_weight", head=head)
    torch.manual_seed(config.seed)
    model = SASRec(model_config, torch.from_numpy(content))
    train_base(
        model,
        histories,
        validation,
        config,
        context=context,
        head=head,
        settings={"model": model_config.to_plain(), "content": hashlib.sha256(content.tobytes()).hexdigest()},
        checkpoint=checkpoint,
        on_epoch=on_epoch,
    )
    return model


def train_base(
    base: Recommender,
    histories: Sequence[History],
    validation: Cases,
    config: PretrainConfig,
    *,
    context: Sequence[NDArray[np.int64]] | None = None,
    head: GenreHead | None = None,
    settings: Mapping[str, object] | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> None:
    """Train any base in place; it ends in eval mode, as it was at its best epoch. See ``pretrain``.

    Args:
        base: an untrained base, whose initial weights are the caller's affair.
        histories: training events of the public users.
        validation: cases for early stopping.
        config: the recipe.
        context: per history (events, fields), for a SASRec that reads any.
        head: of the next genre, beside a SASRec.
        settings: what else a checkpoint must have been written with, as plain values.
        checkpoint: file for resuming.
        on_epoch: called after each epoch.
    """
    taught = [user for user, history in enumerate(histories) if len(history) >= 2]
    if not taught:
        raise DataError("training needs a history of at least two events, got none")
    examples = [_Example(histories[user], context[user] if context is not None else None) for user in taught]
    model = module_of(base)
    counted = torch.from_numpy(item_frequencies([example.events for example in examples], base.num_items))
    model.register_buffer("frequencies", counted, persistent=False)
    trained = nn.ModuleList([model] if head is None else [model, head])
    optimizer = _optimizer(trained, config)
    steps_per_epoch = math.ceil(len(examples) / config.batch_size)
    schedule = _schedule(optimizer, config, steps_per_epoch)
    settings = {**(settings or {}), "recipe": asdict(config), "users": len(examples)}
    best, best_state, since_best = -1.0, _copy(trained), 0
    epochs: list[Epoch] = []
    if checkpoint is not None and checkpoint.exists():
        saved = _load_checkpoint(checkpoint, settings)
        trained.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
        best, best_state, since_best = saved["best"], saved["best_state"], saved["since_best"]
        epochs = [Epoch(**epoch) for epoch in saved["epochs"]]
        for epoch in epochs:
            on_epoch(epoch)
    for number in range(len(epochs) + 1, config.max_epochs + 1):
        if since_best >= config.patience:
            break
        loss = _train_epoch(base, trained, examples, optimizer, schedule, config, number)
        model.eval()
        score = mean_ndcg(base, validation)
        since_best += 1
        if score > best:
            best, best_state, since_best = score, _copy(trained), 0
        epochs.append(Epoch(number=number, loss=loss, ndcg=score, best=since_best == 0))
        if checkpoint is not None:
            state = {
                "settings": settings,
                "model": trained.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "rng": torch.get_rng_state(),
                "best": best,
                "best_state": best_state,
                "since_best": since_best,
                "epochs": [asdict(epoch) for epoch in epochs],
            }
            write_saved(checkpoint, state)
        on_epoch(epochs[-1])
    trained.load_state_dict(best_state)
    trained.eval()


def _train_epoch(
    base: Recommender,
    trained: nn.ModuleList,
    examples: Sequence[_Example],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    config: PretrainConfig,
    number: int,
) -> float:
    trained.train()
    head = trained[1] if len(trained) > 1 else None
    assert head is None or isinstance(head, GenreHead)
    weight = config.genre_weight
    loss_of = BaseLoss(config, base, seed=config.seed, epoch=number, head=head, genre_weight=weight)
    total, count = 0.0, 0
    for rows, target, context in _batches(examples, config, base.max_length, number):
        loss, size = loss_of(rows, target, context), int((target > 0).sum())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), config.gradient_clip)
        optimizer.step()
        schedule.step()
        total, count = total + float(loss.detach()) * size, count + size
    return total / count


def _batches(
    examples: Sequence[_Example], config: PretrainConfig, max_length: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield rows and targets, both (batch, length), and context (batch, length, fields), of users of similar length.

    Long histories give a random span.
    """
    rng = np.random.default_rng([config.seed, epoch])
    lengths = np.array([min(len(example.events), max_length + 1) for example in examples])
    order = np.argsort(lengths + rng.random(len(lengths)) * 6, kind="stable")  # similar lengths, fresh company
    starts = rng.permutation(np.arange(0, len(order), config.batch_size))
    for start in starts:
        chosen = order[start : start + config.batch_size]
        longest = int(lengths[chosen].max())
        rows = np.zeros((len(chosen), longest), dtype=np.int64)
        fields = examples[0].context.shape[1] if examples[0].context is not None else 0
        moments = np.zeros((*rows.shape, fields), dtype=np.int64)
        for at, user in enumerate(chosen):
            events, context = examples[user]
            first = rng.integers(0, len(events) - lengths[user] + 1)
            rows[at, : lengths[user]] = events[first : first + lengths[user]]
            if context is not None:
                moments[at, : lengths[user]] = context[first : first + lengths[user]]
        table = torch.from_numpy(rows)
        yield table[:, :-1], table[:, 1:], torch.from_numpy(moments[:, 1:]) if fields else None  # each target's moment


def _optimizer(model: nn.Module, config: PretrainConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))


def _schedule(
    optimizer: torch.optim.Optimizer, config: PretrainConfig, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    total = config.max_epochs * steps_per_epoch

    def factor(step: int) -> float:
        return schedule_factor(config.schedule, step, total, warmup=config.warmup_steps, floor=0.1)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    saved = read_saved(path, "checkpoint")
    if saved.get("settings") != settings:
        raise ConfigError(f"checkpoint must have been written with the same settings, got others in {path}")
    return saved
