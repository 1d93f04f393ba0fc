"""LoRA on a text encoder's own layers, trained on public users: items that follow each other come closer.

The configuration is the usual one of a small encoder (r = 8, lora_alpha = 16, lora_dropout = 0.1), on the query and
value projections (Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.2), under the names that the architecture
gives them. The loss is contrastive: the text of the next item against those of the other pairs of the batch (InfoNCE,
https://arxiv.org/abs/1807.03748, equation 4), less the logarithm of how often an item occurs, so that popular items are
not pushed away for standing in many batches (Yi et al. 2019, https://doi.org/10.1145/3298689.3346996, section 4).

Only public users teach it, and only at pretraining. The vectors that result are what is shipped: no device reads texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, initial_adapter
from ownlet.shared.errors import ConfigError, DataError, require
from ownlet.shared.interactions import History
from ownlet.shared.lora import applied, attach
from ownlet.simulations.text_encoder import TextEncoder, pool, tokenize

__all__ = ["TextTuning", "TuningEpoch", "TunedText", "target_modules_of", "tune_encoder"]

Ints = NDArray[np.int64]

_TARGETS = (("q_lin", "v_lin"), ("query", "value"), ("q_proj", "v_proj"), ("Wqkv",))


@dataclass(frozen=True, kw_only=True)
class TextTuning:
    """How an encoder's LoRA weights are trained.

    Args:
        rank: r.
        alpha: lora_alpha.
        dropout: of the inputs of the low-rank terms, one mask for all words of a text.
        target_modules: last parts of layer names; empty: the architecture's query and value projections.
        epochs: the most passes over the pairs; the one with the lowest validation loss is kept.
        pairs_per_epoch: random pairs of consecutive items in a pass.
        batch_size: pairs in a step.
        learning_rate: of AdamW, constant.
        temperature: cosines are divided by it.
        seed: of A, order and dropout.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.1
    target_modules: tuple[str, ...] = ()
    epochs: int = 5
    pairs_per_epoch: int = 10_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    temperature: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "pairs_per_epoch"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(self.batch_size >= 2, "batch_size must be at least 2", batch_size=self.batch_size)
        require(0 <= self.dropout < 1, "dropout must be in [0, 1)", dropout=self.dropout)
        for name in ("alpha", "learning_rate", "temperature"):
            require(getattr(self, name) > 0, f"{name} must be positive", **{name: getattr(self, name)})


@dataclass(frozen=True, kw_only=True)
class TuningEpoch:
    """What a pass gave: mean training loss, validation loss, and whether it is the best so far."""

    number: int
    loss: float
    validation_loss: float
    best: bool

    def __str__(self) -> str:
        return f"loss {self.loss:.3f}, validation {self.validation_loss:.3f}{' (best)' if self.best else ''}"


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedText:
    """LoRA weights of an encoder.

    Args:
        spec: of the adapter; its base hash is that of the encoder's weights.
        vector: (P,) the adapter.
    """

    spec: AdapterSpec
    vector: Vector


def tune_encoder(
    encoder: TextEncoder,
    texts: Sequence[str],
    histories: Sequence[History],
    validation: Sequence[History],
    config: TextTuning,
    *,
    on_epoch: Callable[[TuningEpoch], None] = lambda epoch: None,
) -> TunedText:
    """Train LoRA weights on pairs of consecutive items.

    Args:
        encoder: its model gets LoRA layers, which change nothing until an adapter is applied.
        texts: (num_items,) the text of item number i at i - 1; items without one are in no pair.
        histories: of public users.
        validation: of held-out public users, who choose the epoch.
        config: the recipe.
        on_epoch: told of every pass.

    Returns:
        The adapter of the best epoch; the one that changes nothing where none was better than that.

    Raises:
        DataError: too few pairs for one batch.
        ConfigError: no layer of the encoder has one of the target names.
    """
    has_text = np.array([False, *map(bool, texts)])
    pairs, held_out = _pairs(histories, has_text), _pairs(validation, has_text)
    if len(pairs) < 2 or len(held_out) < 2:
        raise DataError(f"tuning must have two pairs of consecutive items, got {len(pairs)} and {len(held_out)}")
    spec = _attach(encoder.model, config)
    counts = np.bincount(pairs[:, 1], minlength=len(has_text)) + 1.0
    popularity = torch.from_numpy(np.log(counts / counts.sum())).float()  # (num_items + 1,)
    vector = torch.from_numpy(initial_adapter(spec, config.seed)).requires_grad_()
    optimizer = torch.optim.AdamW([vector], lr=config.learning_rate, weight_decay=0.0)
    rng = np.random.default_rng([config.seed, 3])
    held_out = rng.permutation(held_out)[: 16 * config.batch_size]

    def loss_of(rows: Ints, dropout: float) -> Tensor:
        weights = _dropped(spec.split(vector), 2 * len(rows), dropout, rng)
        tokens = tokenize(
            encoder, [texts[item - 1] for item in rows.T.ravel().tolist()]
        )  # all first items, then all second
        with applied(encoder.model, weights):
            first, second = pool(encoder.model, tokens).chunk(2)  # (pairs, width) each
        return _contrast(first, second, torch.from_numpy(rows), popularity, config.temperature)

    def validate() -> float:
        with torch.no_grad():
            return float(np.mean([float(loss_of(rows, 0.0)) for rows in _cut(held_out, config.batch_size)]))

    lowest, best = validate(), vector.detach().clone()
    for number in range(1, config.epochs + 1):
        losses = []
        for rows in _cut(rng.permutation(pairs)[: config.pairs_per_epoch], config.batch_size):
            loss = loss_of(rows, config.dropout)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found = validate()
        on_epoch(TuningEpoch(number=number, loss=float(np.mean(losses)), validation_loss=found, best=found < lowest))
        if found < lowest:
            lowest, best = found, vector.detach().clone()
    return TunedText(spec=spec, vector=best.numpy())


def target_modules_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of an encoder's query and value projections.

    Raises:
        ConfigError: it has none under a known name.
    """
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for targets in _TARGETS:
        if names.issuperset(targets):
            return targets
    raise ConfigError(f"target_modules must be named for this encoder, got none; its linear layers are {sorted(names)}")


def _attach(model: nn.Module, config: TextTuning) -> AdapterSpec:
    return attach(
        model,
        target_modules=config.target_modules or target_modules_of(model),
        rank=config.rank,
        alpha=config.alpha,
        base_hash=hash_state(model.state_dict()),
        train_a=True,
    )


def _pairs(histories: Sequence[History], has_text: NDArray[np.bool_]) -> Ints:
    """Return consecutive items that both have a text, (pairs, 2)."""
    found = [np.stack([history[:-1], history[1:]], axis=1) for history in histories if len(history) > 1]
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])
    kept: Ints = pairs[has_text[pairs].all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
    return kept


def _cut(pairs: Ints, size: int) -> Iterator[Ints]:
    """Yield batches; a last pair alone has nothing to be told from and is left out."""
    for start in range(0, len(pairs), size):
        if len(pairs) - start > 1:
            yield pairs[start : start + size]


def _dropped(
    weights: Mapping[str, tuple[Tensor, Tensor]], texts: int, dropout: float, rng: np.random.Generator
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Drop inputs of the low-rank terms, one mask per text: dropping a column of A drops that input for its words."""
    if dropout == 0:
        return weights
    masked = {}
    for name, (a, b) in weights.items():
        kept = torch.from_numpy(rng.random((texts, 1, a.shape[-1])) >= dropout).to(a.dtype)
        masked[name] = (a * kept / (1 - dropout), b)  # A (texts, r, in)
    return masked


def _contrast(first: Tensor, second: Tensor, items: Tensor, popularity: Tensor, temperature: float) -> Tensor:
    """Return the loss of finding each pair's second item among those of all pairs; all vectors of length 1.

    Args:
        first: (pairs, width).
        second: (pairs, width).
        items: (pairs, 2) item numbers; what equals a pair's own first or second item is no negative of it.
        popularity: (num_items + 1,) logarithm of each item's share of second places.
        temperature: cosines are divided by it.
    """
    scores = first @ second.T / temperature - popularity[items[:, 1]]  # (pairs, pairs)
    others = items[None, :, 1]
    own = (others == items[:, :1]) | (others == items[:, 1:])
    own.fill_diagonal_(False)
    labels = torch.arange(len(items))
    return nn.functional.cross_entropy(scores.masked_fill(own, float("-inf")), labels)
