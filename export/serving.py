"""Scores for one history, as the device program computes them.

Only the last position's hidden state is scored, so the last block computes nothing else: it takes keys and values of
all positions, and query, output and feed-forward network of one. The numbers are those of ``SASRec.score_last``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ownlet.export.frozen import FrozenBase
from ownlet.export.parts import Tape, block, layer_norm, linear, prefix
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.model import Block

__all__ = ["score_columns"]


def score_columns(
    base: FrozenBase,
    spec: AdapterSpec,
    vector: Tensor,
    columns: Tensor,
    history: Tensor,
    length: Tensor,
    context: Tensor | None = None,
) -> Tensor:
    """Score every item as the next one.

    Args:
        base: the frozen base.
        spec: the adapter's spec.
        vector: (P,) the adapter.
        columns: (d, num_items) the item table.
        history: (1, max_length) item numbers, padded on the right.
        length: (1,) events in it, at least 1.
        context: (1, max_length, fields) rows of the context of each position, where the base reads any.

    Returns:
        (1, num_items) scores; place i - 1 belongs to item i.
    """
    longest = history.shape[1]
    position = torch.arange(longest)
    is_last = (position == length - 1).float().view(1, 1, -1)  # (1, 1, max_length), a one where the last event is
    unread = ((position >= length).float() * -1e9).view(1, 1, -1)  # (1, 1, max_length)
    tape = Tape.of(spec, vector)
    causal = torch.full((1, longest, longest), -1e9).triu(1)
    is_event = (history > 0).float().view(1, -1, 1)  # an empty history is one position of padding, which is zero
    x = base.embed_columns(columns, history, is_event, context)  # (1, max_length, d)
    *before, last = enumerate(base.blocks)
    for number, part in before:
        x, _ = block(x, part, f"blocks.{number}", tape, causal)  # type: ignore[arg-type]
    row = _last_of_block(x, last[1], f"blocks.{last[0]}", tape, is_last, unread)  # type: ignore[arg-type]
    hidden, _ = layer_norm(row, base.final_norm)
    return torch.mm(hidden.view(1, -1), columns)


def _last_of_block(x: Tensor, part: Block, name: str, tape: Tape, is_last: Tensor, unread: Tensor) -> Tensor:
    """Return the last event's row (1, 1, d) of what ``parts.block`` makes of x (1, max_length, d)."""
    heads, d = part.num_heads, x.shape[2]
    head_dim = d // heads

    def split(rows: Tensor) -> Tensor:
        return torch.permute_copy(rows.view(-1, heads, head_dim), (1, 0, 2))  # (heads, rows, d / heads)

    normal, _ = layer_norm(x, part.attention_norm)
    last_normal = torch.bmm(is_last, normal)  # (1, 1, d): a product with ones and zeros picks exactly
    query, _ = linear(last_normal, part.query, f"{name}.query", tape)
    key, _ = linear(normal, part.key, f"{name}.key", tape)
    value, _ = linear(normal, part.value, f"{name}.value", tape)
    weights = torch.softmax(
        torch.bmm(split(query) / math.sqrt(head_dim), torch.permute_copy(split(key), (0, 2, 1))) + unread, dim=-1
    )
    mixed = torch.bmm(weights, split(value)).view(1, 1, d)
    if f"{name}.prefix" in tape.b:
        added, _ = prefix(query, heads, f"{name}.prefix", tape)
        mixed = mixed + added
    attended, _ = linear(mixed, part.output, f"{name}.output", tape)
    row = torch.bmm(is_last, x) + attended
    normal, _ = layer_norm(row, part.feedforward_norm)
    up, _ = linear(normal, part.up, f"{name}.up", tape)
    down, _ = linear(torch.relu(up), part.down, f"{name}.down", tape)
    return row + down
