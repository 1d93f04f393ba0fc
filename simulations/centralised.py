"""The centralised oracle: the same adapter, trained on the pooled events of all devices, without privacy.

No federation can be held to more than what somebody who holds all the data gets out of the same numbers. AdamW on
minibatches of windows; held-out public users choose the epoch, as they choose everything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import require
from ownlet.shared.lora import applied
from ownlet.shared.model import SASRec
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.windows import Windows
from ownlet.simulations.evaluate import Cases, mean_ndcg

__all__ = ["CentralisedConfig", "train_centralised"]


@dataclass(frozen=True, kw_only=True)
class CentralisedConfig:
    """How the oracle is trained.

    Args:
        max_epochs: passes over all windows.
        patience: stop after this many epochs without a better NDCG@10 on public users.
        batch_size: windows in a step.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
    """

    max_epochs: int = 12
    patience: int = 3
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("max_epochs", "patience", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(self.learning_rate > 0, "learning_rate must be positive", learning_rate=self.learning_rate)


def train_centralised(
    model: SASRec,
    spec: AdapterSpec,
    start: Vector,
    windows: Windows,
    validation: Cases,
    config: CentralisedConfig,
    seed: int,
    *,
    on_epoch: Callable[[int, float], None] = lambda epoch, quality: None,
) -> Vector:
    """Train an adapter on everybody's windows; return it as it was at its best epoch, or the start, (P,).

    Args:
        model: the frozen base, prepared with ``attach``.
        spec: the adapter's spec; what it freezes stays.
        start: (P,) the adapter to start from.
        windows: of all devices.
        validation: held-out public cases.
        config: the recipe.
        seed: of the order.
        on_epoch: called with the number of an epoch and its NDCG@10 on public users.
    """
    rng = np.random.default_rng(seed)
    own = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})  # threads apply adapters
    frozen = torch.from_numpy(start[: spec.trainable.start].copy())
    trained = torch.nn.Parameter(torch.from_numpy(start[spec.trainable].copy()))
    optimizer = torch.optim.AdamW([trained], lr=config.learning_rate, weight_decay=config.weight_decay)
    best, best_vector, since = mean_ndcg(model, validation, spec=spec, vector=start), start, 0
    for epoch in range(1, config.max_epochs + 1):
        order = rng.permutation(len(windows))
        for at in range(0, len(order), config.batch_size):
            batch = windows[order[at : at + config.batch_size]]
            used = int((batch.history > 0).sum(axis=1).max())  # no work on padding that all windows have
            history, target, valid = (
                torch.from_numpy(np.ascontiguousarray(part[:, :used]))
                for part in (batch.history, batch.target, batch.valid)
            )
            with applied(own, spec.split(torch.cat([frozen, trained]))):
                loss = softmax_loss(own(history), target, valid).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        vector = torch.cat([frozen, trained.detach()]).numpy().copy()
        quality, since = mean_ndcg(model, validation, spec=spec, vector=vector), since + 1
        on_epoch(epoch, quality)
        if quality > best:
            best, best_vector, since = quality, vector, 0
        if since >= config.patience:
            break
    return best_vector
