"""The cohort engine: many users' adapters trained as one batched computation.

The base is frozen and shared, so users differ only in their adapters, which are inputs. All windows of a chunk of users
go through one forward pass and one ``autograd.grad``; with A frozen only B (users, out, r) is differentiated. Masks and
noise are drawn per user from that user's own source, so the result does not depend on who shares a chunk, and equals
what the engine of a single device computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.shared.interactions import Windows, stack_windows
from ownlet.shared.lora import applied
from ownlet.shared.model import SASRec
from ownlet.shared.noise import NoiseSource
from ownlet.shared.step import clip_factors, window_leaves

__all__ = ["CohortEngine"]


class CohortEngine:
    """Trains a cohort in chunks of bounded size."""

    def __init__(self, model: SASRec, spec: AdapterSpec, *, max_windows: int = 256) -> None:
        """Take a base prepared with ``attach``.

        Args:
            model: the frozen base, in eval mode.
            spec: the adapter's spec.
            max_windows: windows in one computation; bounds the memory (a window costs about
                ``4 * row_length * num_items`` bytes for its scores), never changes the result.
        """
        require(max_windows >= 1, "max_windows must be at least 1", max_windows=max_windows)
        require(not model.training, "the base must be in eval mode", training=model.training)
        self._model, self._spec, self._max_windows = model, spec, max_windows
        with torch.no_grad():
            self._items = model.item_vectors()

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that this engine trains."""
        return self._spec

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user; see ``ownlet.device.train.Engine``."""
        require(len(users) == len(noises), "users and noises must be as many", users=len(users), noises=len(noises))
        trained = np.empty((len(users), self._spec.size), dtype=np.float32)
        for chunk in self._chunks(users):
            members = [users[user] for user in chunk]
            trained[chunk] = self._train_chunk(vector, members, plan, [noises[user] for user in chunk])
        return trained

    def _chunks(self, users: Sequence[Windows]) -> Iterator[list[int]]:
        """Yield user indices, users of similar length together, at most ``max_windows`` windows (or one user) each."""
        longest = [int(w.valid.sum(axis=1).max()) if len(w) else 0 for w in users]
        chunk: list[int] = []
        held = 0
        for user in sorted(range(len(users)), key=lambda u: (longest[u], u)):
            if chunk and held + len(users[user]) > self._max_windows:
                yield chunk
                chunk, held = [], 0
            chunk.append(user)
            held += len(users[user])
        if chunk:
            yield chunk

    def _train_chunk(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        windows, owner_array = stack_windows(users)
        used = int((windows.history > 0).any(axis=0).sum()) or 1  # columns that hold an event: no work on padding
        history, target, valid = (
            torch.from_numpy(np.ascontiguousarray(part[:, :used]))
            for part in (windows.history, windows.target, windows.valid)
        )
        owner = torch.from_numpy(owner_array)
        adapters = torch.from_numpy(vector).repeat(len(users), 1)  # (users, P)
        for _ in range(plan.steps):
            masks = [noise.poisson_mask(len(w), plan.sample_rate) for w, noise in zip(users, noises, strict=True)]
            drawn = torch.from_numpy(np.concatenate(masks))  # (windows,)
            total = self._gradient_sums(adapters, owner, history, target, valid * drawn.unsqueeze(1), plan.clip_norm)
            if plan.noise_std:
                size = self._spec.num_trainable
                total += torch.from_numpy(np.stack([noise.gaussian(size, plan.noise_std) for noise in noises]))
            adapters[:, self._spec.trainable] -= plan.learning_rate / plan.expected_batch * total
        return adapters.numpy()

    def _gradient_sums(
        self, adapters: Tensor, owner: Tensor, history: Tensor, target: Tensor, valid: Tensor, clip_norm: float
    ) -> Tensor:
        """Return each user's sum of clipped window gradients, (users, num_trainable)."""
        total = torch.zeros(len(adapters), self._spec.num_trainable)
        if len(owner) == 0:
            return total
        weights, leaves = window_leaves(self._spec, adapters[owner], len(owner))
        with applied(self._model, weights):
            hidden = self._model.encode(history, self._items)  # (windows, length, d)
            hidden_gradient = softmax_gradient(hidden.detach(), self._items, target, valid)
            parts = torch.autograd.grad(hidden, leaves, hidden_gradient)
        gradients = torch.cat([part.flatten(1) for part in parts], dim=1)  # (windows, num_trainable)
        factors, _ = clip_factors(gradients, clip_norm)
        return total.index_add_(0, owner, factors.unsqueeze(1) * gradients)


def softmax_gradient(hidden: Tensor, items: Tensor, target: Tensor, valid: Tensor, *, rows: int = 512) -> Tensor:
    """Return the gradient of ``softmax_loss`` with respect to the hidden states, in closed form.

    For scores ``h Eᵀ`` it is ``(softmax(h Eᵀ) - onehot) E``, weighted by 1 / (valid positions of the window). Written
    out, no score of padding is computed and no table of all scores is kept: ``rows`` positions at a time stay in cache.

    Args:
        hidden: (windows, length, d).
        items: (num_items + 1, d); row 0 is padding and takes no part.
        target: (windows, length) item numbers.
        valid: (windows, length) float, 1 where the target counts.
        rows: positions at a time.

    Returns:
        (windows, length, d), 0 where not valid.
    """
    weight = valid / valid.sum(-1, keepdim=True).clamp(min=1.0)
    real = valid > 0
    states, answers, weights = hidden[real], target[real], weight[real]  # (positions, ...)
    gradient = torch.empty_like(states)
    for start in range(0, len(states), rows):
        part = slice(start, start + rows)
        chances = torch.softmax(states[part] @ items[1:].T, dim=-1)  # (rows, num_items)
        gradient[part] = (chances @ items[1:] - items[answers[part]]) * weights[part].unsqueeze(1)
    result = torch.zeros_like(hidden)
    result[real] = gradient
    return result
