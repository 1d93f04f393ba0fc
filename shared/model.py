"""The base recommender: SASRec, pre-norm (Kang and McAuley 2018, https://arxiv.org/abs/1808.09781, section III).

Causal self-attention over a history of items. An item's vector is its id embedding plus a projection of its content
vector, so an item that was never trained on still has one. Attention is written out, without the fused kernel, because
the exported training step differentiates through it.

Histories are padded on the right with item 0; causal attention then keeps padding out of every real position.

What is known of the moment of each question (``shared/context.py``) is added to the position that answers it, as one
vector per field.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ownlet.shared.config import ModelConfig
from ownlet.shared.context import num_context_rows
from ownlet.shared.errors import require
from ownlet.shared.sites import PrefixSite

__all__ = ["SASRec"]


class Block(nn.Module):
    """One pre-norm transformer block: attention, then a feed-forward network of width 4 d."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.dim
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(d)
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))
        self.prefix = PrefixSite(d, config.num_heads)
        self.feedforward_norm = nn.LayerNorm(d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, causal: Tensor) -> Tensor:
        """Map x (batch, length, d) to the same shape; ``causal`` (length, length) holds 0 or -inf."""
        x = x + self.dropout(self._attend(self.attention_norm(x), causal))
        hidden = torch.relu(self.up(self.feedforward_norm(x)))  # (batch, length, 4 d)
        moved: Tensor = self.dropout(self.down(self.dropout(hidden)))
        return x + moved

    def _attend(self, x: Tensor, causal: Tensor) -> Tensor:
        batch, length, d = x.shape
        per_head = (batch, length, self.num_heads, d // self.num_heads)
        # (batch, length, d) -> (batch, heads, length, d / heads)
        query, key, value = (layer(x).reshape(per_head).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.mT / math.sqrt(d // self.num_heads) + causal, dim=-1)
        mixed = self.prefix(self.dropout(weights) @ value, query).transpose(1, 2).reshape(batch, length, d)
        output: Tensor = self.output(mixed)
        return output


class SASRec(nn.Module):
    """Scores every item of the catalogue as the next one.

    Args:
        config: the shape.
        content: (num_items + 1, content_dim) content vectors; row 0 is padding and must be zero.

    ``frequencies`` says how often public users chose each item, (num_items + 1,), where that is known. Samplers of
    negatives read it; it takes no part in any score and is not in the state dict, so not in the base's hash either.
    """

    content: Tensor
    frequencies: Tensor | None

    def __init__(self, config: ModelConfig, content: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("content", content)
        self.register_buffer("frequencies", None, persistent=False)
        num_rows, content_dim = content.shape
        self.item_embedding = nn.Embedding(num_rows, config.dim, padding_idx=0)
        self.content_projection = nn.Linear(content_dim, config.dim, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(config.max_length, config.dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        if config.context:
            self.context_embedding = nn.Parameter(torch.empty(num_context_rows(config.context), config.dim))
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.item_embedding.weight, std=0.02)
        nn.init.normal_(self.content_projection.weight, std=0.02)
        nn.init.normal_(self.position_embedding, std=0.02)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
            if self.config.context:  # a value that is never trained on stays what unknown is
                self.context_embedding.zero_()

    @property
    def num_items(self) -> int:
        """Items in the catalogue, numbered from 1; 0 is padding."""
        return self.item_embedding.num_embeddings - 1

    @property
    def max_length(self) -> int:
        """The longest history that is read."""
        return self.config.max_length

    def item_vectors(self) -> Tensor:
        """Return (num_items + 1, d): id embedding plus projected content."""
        projected: Tensor = self.content_projection(self.content)
        return self.item_embedding.weight + projected

    def encode(self, history: Tensor, items: Tensor, context: Tensor | None = None) -> Tensor:
        """Return hidden states.

        Args:
            history: (batch, length) item numbers, 0 behind the last event; length at most ``max_length``.
            items: (num_items + 1, d) from ``item_vectors``, passed in so that it is computed once.
            context: (batch, length, fields) rows from ``shared.context`` of the moment after each event; None where
                nothing is known.

        Returns:
            (batch, length, d); position t has read the events up to and including t.
        """
        return self.final_norm(self.transform(self.embed(history, items, context)))  # type: ignore[no-any-return]

    def embed(self, history: Tensor, items: Tensor, context: Tensor | None = None) -> Tensor:
        """Return what the first block reads, (batch, length, d): scaled item vectors, positions and context."""
        x = items[history] * math.sqrt(self.config.dim) + self.position_embedding[: history.shape[1]]
        if context is not None:
            x = x + self.context_vectors(context)
        embedded: Tensor = self.dropout(x)
        return embedded

    def context_vectors(self, context: Tensor) -> Tensor:
        """Return (batch, length, d), the sum of the fields' vectors, of rows (batch, length, fields).

        Raises:
            ConfigError: other fields than the base's.
        """
        given, fields = context.shape[-1], len(self.config.context)
        require(given == fields, f"context must have the base's {fields} fields", fields=given)
        if fields == 0:
            return self.position_embedding.new_zeros(())
        # row 0 is unknown: zero, and never trained
        return nn.functional.embedding(context, self.context_embedding, padding_idx=0).sum(dim=-2)

    def transform(self, x: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
        """Send x (batch, length, d) through the blocks ``first`` to ``stop - 1``, by default through all."""
        length = x.shape[1]
        causal = torch.full((length, length), -1e9, dtype=x.dtype, device=x.device).triu(1)
        for block in self.blocks[first:stop]:
            x = block(x, causal)
        return x

    def forward(self, history: Tensor, context: Tensor | None = None) -> Tensor:
        """Score the next item after every position: history (batch, length) -> (batch, length, num_items + 1)."""
        items = self.item_vectors()
        return self.encode(history, items, context) @ items.T

    def score_last(self, history: Tensor, lengths: Tensor, context: Tensor | None = None) -> Tensor:
        """Score the next item after the last event.

        Args:
            history: (batch, length), padded on the right.
            lengths: (batch,) events in each row, at least 1.
            context: (batch, length, fields); that of the last event's position is the request's own.

        Returns:
            (batch, num_items + 1); column 0 is padding and means nothing.
        """
        items = self.item_vectors()
        return self.encode_last(history, lengths, items, context) @ items.T

    def encode_last(self, history: Tensor, lengths: Tensor, items: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the hidden state after the last event, (batch, d); see ``score_last`` and ``encode``."""
        hidden = self.encode(history, items, context)  # (batch, length, d)
        return hidden[torch.arange(len(history), device=history.device), lengths - 1]
