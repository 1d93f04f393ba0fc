"""The training step as the device program computes it: ``shared.step.dp_sgd_step`` written out.

The gradient of the full softmax with respect to a hidden state is known, ``softmax(h E) Eᵀ - e_target``, and the way
back from there is that of ``parts``. The item table, an input whose width only the device knows, meets two products and
nothing else. Other objectives, and softmax with sampled negatives, have their gradient in ``objectives``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as product

from ownlet.export.frozen import FrozenBase, look_up
from ownlet.export.objectives import candidate_gradient
from ownlet.export.parts import Back, Tape, block, layer_norm, sum_of_last
from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.step import factors_of

__all__ = ["loss_columns", "step_columns"]


def step_columns(
    base: FrozenBase,
    spec: AdapterSpec,
    vector: Tensor,
    columns: Tensor,
    history: Tensor,
    target: Tensor,
    valid: Tensor,
    noise: Tensor,
    clip: Tensor,
    rate: Tensor,
    context: Tensor | None = None,
    *,
    extra: tuple[Tensor, ...] = (),
    objective: str = "softmax",
) -> tuple[Tensor, Tensor]:
    """Take one step of DP-SGD; see ``shared.step.dp_sgd_step`` for the arguments.

    Args:
        base: the frozen base.
        spec: the adapter's spec.
        vector: (P,) the adapter.
        columns: (d, num_items) the item table.
        history: (batch, length) item numbers.
        target: (batch, length) item numbers.
        valid: (batch, length) float, 1 where the target counts.
        noise: (num_trainable,) noise for the gradient sum.
        clip: () C.
        rate: () learning rate divided by the expected batch.
        context: (batch, length, fields) rows of the context of each position, where the base reads any.
        extra: candidates, as ``objectives.EXTRA_ARGUMENTS`` names them; none is the full softmax.
        objective: what is minimised over the candidates.

    Returns:
        the new vector (P,) and gradient norms (batch,).
    """
    tape = Tape.of(spec, vector)
    hidden, back = _encode(base, tape, columns, history, context)  # (batch, length, d)
    share = valid / sum_of_last(valid).clamp(min=1.0)  # (batch, length): each position's part of its window's mean
    if extra:
        gradient = candidate_gradient(objective, hidden, columns, target, *extra)
    else:
        gradient = _softmax_gradient(hidden, columns, target)
    back(gradient * share.view(*share.shape, 1))
    gradients = _gradients(spec, tape)  # (batch, num_trainable)
    norms = torch.sqrt(sum_of_last(gradients * gradients)).view(-1)
    weighted = torch.bmm(factors_of(norms, clip).view(1, 1, -1), gradients.view(1, *gradients.shape))
    total = weighted.view(-1) + noise
    frozen, trainable = vector[: spec.trainable.start], vector[spec.trainable]
    stepped = trainable - rate * total
    return (stepped if spec.train_a else torch.cat([frozen, stepped])), norms


def loss_columns(
    base: FrozenBase,
    spec: AdapterSpec,
    vector: Tensor,
    columns: Tensor,
    history: Tensor,
    target: Tensor,
    valid: Tensor,
    context: Tensor | None = None,
) -> Tensor:
    """Return the softmax loss of every window, (batch,); arguments as in ``step_columns``."""
    hidden, _ = _encode(base, Tape.of(spec, vector), columns, history, context)
    scores = torch.mm(hidden.view(-1, base.config.dim), columns)  # (rows, num_items)
    largest = scores.amax(dim=-1)  # log(sum(exp(s))) = largest - log(largest of softmax(s)), which never overflows
    log_normaliser = largest - torch.log(torch.softmax(scores, dim=-1).amax(dim=-1))
    picked = sum_of_last(hidden * look_up(columns, target).view(hidden.shape)).view(-1)
    losses = (log_normaliser - picked).view(valid.shape) * valid  # (batch, length)
    return (sum_of_last(losses) / sum_of_last(valid).clamp(min=1.0)).view(-1)


def _encode(
    base: FrozenBase, tape: Tape, columns: Tensor, history: Tensor, context: Tensor | None
) -> tuple[Tensor, Back]:
    """Return hidden states (batch, length, d) and the way back from them, which fills the tape."""
    length = history.shape[1]
    causal = torch.full((1, length, length), -1e9).triu(1)
    x = base.embed_columns(columns, history, context=context)
    ways: list[Back] = []
    for number, part in enumerate(base.blocks):
        x, back = block(x, part, f"blocks.{number}", tape, causal)  # type: ignore[arg-type]
        ways.append(back)
    hidden, back = layer_norm(x, base.final_norm)
    ways.append(back)

    def back_through_all(gradient: Tensor) -> Tensor:
        for back in reversed(ways):
            gradient = back(gradient)
        return gradient

    return hidden, back_through_all


def _softmax_gradient(hidden: Tensor, columns: Tensor, target: Tensor) -> Tensor:
    """Return d loss / d hidden of the softmax over all items, for hidden (batch, length, d)."""
    probabilities = torch.softmax(torch.mm(hidden.view(-1, hidden.shape[-1]), columns), dim=-1)  # (rows, num_items)
    expected = product(probabilities, columns)  # (rows, d): the table is read as it lies, never transposed
    return (expected - look_up(columns, target)).view(hidden.shape)


def _gradients(spec: AdapterSpec, tape: Tape) -> Tensor:
    """Return every window's gradient in the order of the vector, (batch, num_trainable)."""
    of_b = _concatenated([tape.gradients_b[layer.name] for layer in spec.layers])  # (batch, all outs, r)
    flat = [of_b.view(len(of_b), -1)]
    if spec.train_a:
        flat = [*(tape.gradients_a[layer.name].view(len(of_b), -1) for layer in spec.layers), *flat]
    return _concatenated(flat)


def _concatenated(parts: list[Tensor]) -> Tensor:
    """Concatenate along axis 1, four at a time: XNNPACK takes at most five."""
    while len(parts) > 1:
        groups = [parts[at : at + 4] for at in range(0, len(parts), 4)]
        parts = [torch.cat(group, dim=1) if len(group) > 1 else group[0] for group in groups]
    return parts[0]
