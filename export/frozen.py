"""The base as the device program sees it: frozen, and without its item table, which is handed in.

What the base adds up from id embeddings and content at every call is computed once, when the base is frozen. The table
is stored one item per column, (d, num_items), without a column for padding: a row of hidden states times this matrix
is what scoring reads it for, and in this layout that product streams it at the speed of memory.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ownlet.shared.model import SASRec

__all__ = ["FrozenBase"]


class FrozenBase(SASRec):
    """A copy of a base whose item table is a constant; its numbers are the base's own, bit for bit."""

    items: Tensor

    @classmethod
    def of(cls, model: SASRec) -> FrozenBase:
        """Return a frozen copy, in evaluation mode, of a base that was prepared with ``attach``."""
        frozen = copy.deepcopy(model)
        frozen.__class__ = cls
        assert isinstance(frozen, FrozenBase)  # for the type checker; the line above made it one
        with torch.no_grad():
            frozen.register_buffer("items", model.item_vectors().detach().clone())
        return frozen.requires_grad_(False).eval()

    def item_vectors(self) -> Tensor:
        """Return the table (num_items + 1, d) that was computed when the base was frozen."""
        return self.items

    def item_columns(self) -> Tensor:
        """Return the table as a device program reads it: (d, num_items), column i - 1 belongs to item i."""
        return self.items[1:].T.contiguous()

    def use_columns(self, columns: Tensor) -> None:
        """Take another item table (d, num_items), such as one that was rounded to be stored."""
        self.items = torch.cat([self.items[:1], columns.T])

    def embed_columns(
        self, columns: Tensor, history: Tensor, is_event: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Do what ``embed`` does with a table of columns.

        Args:
            columns: (d, num_items) item vectors.
            history: (batch, length) item numbers; padding behind the last event reads the first item, which changes
                no real position.
            is_event: (batch, length, 1) float, 0 where padding is read for itself and has to be zero.
            context: (batch, length, fields) rows of the context of each position, where the base reads any.

        Returns:
            (batch, length, d).
        """
        batch, length = history.shape
        vectors = look_up(columns, history).view(batch, length, self.config.dim)
        vectors = vectors * math.sqrt(self.config.dim)
        if is_event is not None:
            vectors = vectors * is_event
        x = vectors + self.position_embedding.detach()[:length]
        if context is None:
            return x
        moments = self.context_embedding.detach().index_select(0, context.flatten())  # (batch * length * fields, d)
        return x + moments.view(batch, length, -1, self.config.dim).sum(dim=2)


def look_up(columns: Tensor, numbers: Tensor) -> Tensor:
    """Return the vectors (numbers, d) of item numbers of any shape, from columns (d, num_items)."""
    at = (numbers - 1).clamp(min=0).flatten()
    return torch.permute_copy(columns.index_select(1, at), (1, 0))  # (numbers, d)
