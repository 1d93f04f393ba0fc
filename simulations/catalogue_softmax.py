"""The gradient of losses over a catalogue with respect to hidden states, in closed form.

For scores ``h Eᵀ`` the gradient of the full softmax is ``(softmax(h Eᵀ) - onehot) E``, weighted by 1 / (valid positions
of the window). Written out, no score of padding is computed and no table of all scores is kept. With candidates, a few
items that all positions of a window share, it is ``objectives.candidate_gradients`` that is taken back to the states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ownlet.shared.candidates import Candidates
from ownlet.shared.objectives import candidate_gradients

__all__ = ["CatalogueSoftmax"]

_SAFE_SCORE = 60.0  # exp of it, summed over any catalogue, is far from float32's end
_TABLE_NUMBERS = 2**18  # scores held at a time: 1 MiB, so that they stay in a core's cache


class CatalogueSoftmax:
    """Computes gradients; one object per thread, because it keeps a buffer."""

    def __init__(self, items: Tensor, dtype: torch.dtype = torch.float32) -> None:
        """Take the catalogue.

        Args:
            items: (num_items + 1, d); row 0 is padding and takes no part.
            dtype: of the arithmetic.
        """
        self._items = items[1:].to(dtype).contiguous()
        self._largest = float(self._items.norm(dim=1).max())
        rows = min(512, max(32, _TABLE_NUMBERS // len(self._items)))
        self._table = torch.empty(rows, len(self._items), dtype=dtype, device=items.device)

    def __call__(self, hidden: Tensor, target: Tensor, valid: Tensor, candidates: Candidates | None = None) -> Tensor:
        """Return the gradient, (windows, length, d), 0 where not valid.

        Args:
            hidden: (windows, length, d).
            target: (windows, length) item numbers.
            valid: (windows, length) float, 1 where the target counts.
            candidates: None is the full softmax of ``objectives.softmax_loss``, else ``objectives.sampled_loss``.
        """
        weight = (valid / valid.sum(-1, keepdim=True).clamp(min=1.0)).to(hidden.dtype)
        if candidates is not None:
            return self._sampled(hidden, target, candidates).mul_(weight.unsqueeze(-1))
        flat, answers, weights = hidden.flatten(0, 1), target.flatten() - 1, weight.flatten()
        rows = torch.nonzero(weights).squeeze(1)
        if len(rows) == len(flat):
            return self._full(flat, answers).mul_(weights.unsqueeze(1)).view_as(hidden)
        gradient = self._full(flat[rows], answers[rows]).mul_(weights[rows].unsqueeze(1))
        return torch.zeros_like(flat).index_copy_(0, rows, gradient).view_as(hidden)

    def _full(self, states: Tensor, answers: Tensor) -> Tensor:
        """Return the gradient for states (positions, d) and answers (positions,), numbered from 0."""
        expected = torch.empty_like(states)
        if len(states) == 0:
            return expected
        # Where no score can be large, exp needs no maximum taken off first; one pass over the table less.
        bounded = float(states.norm(dim=1).max()) * self._largest < _SAFE_SCORE
        for start in range(0, len(states), len(self._table)):
            part = slice(start, min(start + len(self._table), len(states)))
            table = torch.mm(states[part], self._items.T, out=self._table[: part.stop - start])
            if bounded:
                torch.mm(table.exp_(), self._items, out=expected[part])
                expected[part] /= table.sum(1, keepdim=True)
            else:
                torch.mm(torch.softmax(table, -1), self._items, out=expected[part])
        return expected.sub_(self._items[answers])

    def _sampled(self, hidden: Tensor, target: Tensor, candidates: Candidates) -> Tensor:
        others = self._items[candidates.items - 1]  # (windows, n, d)
        answers = self._items[target.clamp(min=1) - 1]  # (windows, length, d)
        negative = torch.bmm(hidden, others.mT)  # (windows, length, n)
        positive = (hidden * answers).sum(-1, keepdim=True)  # (windows, length, 1)
        kept = candidates.kept(target, negative)
        to_positive, to_negative = candidate_gradients(candidates, positive, negative, kept)
        return torch.bmm(to_negative, others).add_(answers * to_positive)
