"""Scores for one history, as the device program computes them: of every item, and of a ranking head's candidates.

Only the last position's hidden state is scored, so the last block computes nothing else: it takes keys and values of
all positions, and query, output and feed-forward network of one. The numbers are those of ``SASRec.score_last``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import linear as product

from ownlet.export.frozen import FrozenBase, look_up
from ownlet.export.parts import Tape, block, layer_norm, linear, prefix, sum_of_last
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.model import Block
from ownlet.shared.ranking import RankingHead

__all__ = ["rank_columns", "score_columns"]


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
    return torch.mm(_last_hidden(base, spec, vector, columns, history, length, context), columns)


def rank_columns(
    base: FrozenBase,
    spec: AdapterSpec,
    head: RankingHead,
    vector: Tensor,
    columns: Tensor,
    history: Tensor,
    length: Tensor,
    candidates: Tensor,
    context: Tensor | None = None,
) -> Tensor:
    """Score candidates as the next item by a ranking head, as ``RankingHead.rank`` does.

    Args:
        base: the frozen base.
        spec: the adapter's spec.
        head: the base's ranking head.
        vector: (P,) the adapter.
        columns: (d, num_items) the item table.
        history: (1, max_length) item numbers, padded on the right.
        length: (1,) events in it, at least 1.
        candidates: (1, C) item numbers; padding behind them reads the first item, and its scores mean nothing.
        context: as in ``score_columns``.

    Returns:
        (1, C) scores.
    """
    hidden = _last_hidden(base, spec, vector, columns, history, length, context)  # (1, d)
    vectors = look_up(columns, candidates)  # (C, d)
    first = product(vectors, hidden)  # (C, 1): the first stage's score
    known = candidates.clamp(max=len(head.popularity) - 1).flatten()
    popularity = head.popularity.detach().view(-1, 1).index_select(0, known)  # (C, 1)
    unit, is_event = _unit(vectors), (history > 0).float()  # (C, d), (1, max_length)
    alike = product(unit, _unit(look_up(columns, history)))  # (C, max_length)
    age = (length - 1).float() - torch.arange(history.shape[1]).float().view(1, -1)  # 0 at the last event
    weights = torch.exp(age * math.log(head.config.decay)) * is_event
    weights = weights / sum_of_last(weights).clamp(min=1e-6)
    is_last = (age == 0).float() * is_event
    parts = (
        first,
        popularity,
        product(unit, _unit(hidden)),
        product(alike, is_last),
        (alike * is_event + (is_event - 1.0)).amax(dim=1, keepdim=True),  # -1, the least cosine, where no event is
        product(alike, weights),
    )
    weight = head.within.weight.detach() / head.std.detach()  # (width, NUM_FEATURES), for features as they are
    mixed = head.within.bias.detach() - weight @ head.mean.detach()
    for number, part in enumerate(parts):  # XNNPACK concatenates five tensors at most
        mixed = mixed + product(part, weight[:, number : number + 1])  # (C, width)
    return (first + product(torch.relu(mixed), head.out.weight.detach())).view(1, -1)


def _unit(rows: Tensor) -> Tensor:
    """Scale rows (n, d) to length 1; a row of zeros stays."""
    return rows * torch.rsqrt(sum_of_last(rows * rows).clamp(min=1e-24))


def _last_hidden(
    base: FrozenBase,
    spec: AdapterSpec,
    vector: Tensor,
    columns: Tensor,
    history: Tensor,
    length: Tensor,
    context: Tensor | None,
) -> Tensor:
    """Return the hidden state (1, d) after the last event; the arguments are those of ``score_columns``."""
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
    return hidden.view(1, -1)


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
