"""The auxiliary task of the base: the genres of the next item.

A linear head on the hidden states, trained beside the next item (multi-task learning: Caruana 1997,
https://doi.org/10.1023/A:1007379606734), so that the states carry taste as well. One binary cross-entropy per genre,
since an item has several. Targets without a genre take no part.

The head belongs to the training of the base alone. It is kept beside the base for whoever wants to know a user's next
genre, and it is in no bundle: adapters are trained on the next item only, on devices and in simulation, because the
head's weights would be one more thing that a device has to hold for a task that nothing on it reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ownlet.shared.context import pad_context
from ownlet.shared.errors import DataError
from ownlet.shared.interactions import History, Item, pad_histories
from ownlet.shared.model import SASRec
from ownlet.simulations.evaluate import Cases

__all__ = ["GenreHead", "genre_hit_rate", "usual_genre_hit_rate"]


class GenreHead(nn.Module):
    """Scores every genre as one of the next item's.

    Args:
        items: the catalogue, in order of item number.
        dim: width of the hidden states.
    """

    table: Tensor

    def __init__(self, items: Sequence[Item], dim: int) -> None:
        super().__init__()
        self.names = tuple(sorted({genre for item in items for genre in item.genres}))
        if not self.names:
            raise DataError("items must have genres where the next genre is to be learned, got none")
        place = {name: at for at, name in enumerate(self.names)}
        table = torch.zeros(len(items) + 1, len(self.names))
        for item in items:
            table[item.number, [place[genre] for genre in item.genres]] = 1.0
        self.register_buffer("table", table, persistent=False)  # (num_items + 1, genres)
        self.linear = nn.Linear(dim, len(self.names))
        nn.init.zeros_(self.linear.weight)  # no chance in it: the base starts as it would without a head
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states (..., d) to one score per genre, (..., genres)."""
        scores: Tensor = self.linear(hidden)
        return scores

    def loss(self, hidden: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of hidden (positions, d) for target items (positions,), a scalar."""
        truth = self.table[target]  # (positions, genres)
        known = truth.any(-1)
        if not bool(known.any()):
            return hidden.sum() * 0.0
        return nn.functional.binary_cross_entropy_with_logits(self(hidden[known]), truth[known])


@torch.no_grad()
def genre_hit_rate(model: SASRec, head: GenreHead, cases: Cases, *, batch_size: int = 256) -> float:
    """Return how often the genre with the highest score is one of the next item's, where that has any."""
    hits, count = 0, 0
    for start in range(0, len(cases), batch_size):
        histories = cases.histories[start : start + batch_size]
        rows, lengths = pad_histories(histories, model.config.max_length)
        context = None
        if cases.context is not None:
            known = cases.context[start : start + batch_size]
            context = torch.from_numpy(pad_context(known, rows.shape[1], len(model.config.context)))
        hidden = model.encode(torch.from_numpy(rows), model.item_vectors(), context)  # (batch, length, d)
        best = head(hidden[torch.arange(len(rows)), torch.from_numpy(lengths) - 1]).argmax(-1)  # (batch,)
        truth = head.table[torch.from_numpy(cases.targets[start : start + batch_size])]  # (batch, genres)
        hits += int(truth.gather(1, best.unsqueeze(1)).sum())
        count += int(truth.any(-1).sum())
    return hits / max(1, count)


def usual_genre_hit_rate(head: GenreHead, histories: Sequence[History], cases: Cases) -> float:
    """Return how often the most frequent genre of the training events is one of the next item's: what to beat."""
    table: NDArray[np.float32] = head.table.numpy()
    counts: Counter[int] = Counter()
    for history in histories:
        counts.update(dict(enumerate(table[history].sum(0).tolist())))
    truth = table[cases.targets]
    usual = max(counts, key=lambda genre: counts[genre])
    return float(truth[:, usual].sum() / max(1, int(truth.any(-1).sum())))
