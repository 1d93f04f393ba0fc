"""The cohort engine: many users' adapters trained as one batched computation.

The base is frozen and shared, so users differ only in their adapters, which are inputs. All windows of a chunk of users
go through one forward pass and one ``autograd.grad``. Masks and noise are drawn per user from that user's own source,
so the result does not depend on who shares a chunk, and equals what the engine of a single device computes.

What is not arithmetic has been removed, and ``docs/cohort.md`` has the measurements: blocks below the lowest adapter
run once and not in every step, windows of similar length are padded together, scores are computed for valid positions
only, and chunks are small enough to stay in a core's cache, with one thread per chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.shared.lora import applied
from ownlet.shared.model import SASRec
from ownlet.shared.noise import NoiseSource
from ownlet.shared.step import clip_factors, window_leaves
from ownlet.shared.windows import Windows, WindowStack, stack_windows
from ownlet.simulations.stacked_lora import replicate

__all__ = ["CohortEngine"]

_LENGTH_CLASSES = 3  # windows of a chunk are padded to one of this many lengths


class CohortEngine:
    """Trains a cohort in chunks of bounded size."""

    def __init__(self, model: SASRec, spec: AdapterSpec, *, max_windows: int = 64, threads: int | None = None) -> None:
        """Take a base prepared with ``attach``.

        Args:
            model: the frozen base, in eval mode.
            spec: the adapter's spec.
            max_windows: windows in one computation; bounds the memory, never changes the result.
            threads: chunks that are computed at once; by default as many as torch has threads now.
        """
        require(max_windows >= 1, "max_windows must be at least 1", max_windows=max_windows)
        require(not model.training, "the base must be in eval mode", training=model.training)
        self._spec, self._max_windows = spec, max_windows
        self._threads = torch.get_num_threads() if threads is None else threads
        require(self._threads >= 1, "threads must be at least 1", threads=self._threads)
        self._first_block = _lowest_adapted_block(spec)
        self._replicas: SimpleQueue[SASRec] = SimpleQueue()
        for _ in range(self._threads):
            self._replicas.put(replicate(model, stacked=not spec.train_a))
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
        trained[:] = vector
        if not len(users):
            return trained
        stack = stack_windows(users)
        start = torch.from_numpy(vector)

        def train_chunk(chunk: NDArray[np.int64]) -> None:
            model = self._replicas.get()
            try:
                own = self._train_chunk(model, start, stack.take(chunk), plan, [noises[user] for user in chunk])
            finally:
                self._replicas.put(model)
            trained[chunk, self._spec.trainable] = own

        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(train_chunk, chunk) for chunk in self._chunks(stack.counts)]:
                done.result()
        return trained

    def _chunks(self, counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield runs of users with at most ``max_windows`` windows, or one user, each."""
        first, held = 0, 0
        for user, count in enumerate(counts.tolist()):
            if user > first and held + count > self._max_windows:
                yield np.arange(first, user)
                first, held = user, 0
            held += count
        yield np.arange(first, len(counts))

    def _train_chunk(
        self, model: SASRec, start: Tensor, stack: WindowStack, plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Return the trainable part of each user's adapter, (users, num_trainable)."""
        groups = [self._group(model, stack, rows) for rows in _by_length(stack.windows)]
        own = start[self._spec.trainable].repeat(len(stack), 1)  # (users, num_trainable)
        for _ in range(plan.steps):
            masks = [noise.poisson_mask(n, plan.sample_rate) for n, noise in zip(stack.counts, noises, strict=True)]
            drawn = np.concatenate(masks)  # (windows,)
            total = torch.zeros_like(own)
            for group in groups:
                self._add_gradients(total, model, start, own, group.drawn(drawn), plan.clip_norm)
            if plan.noise_std:
                for row, noise in zip(total.numpy(), noises, strict=True):
                    row += noise.gaussian(len(row), plan.noise_std)
            own.sub_(total, alpha=plan.learning_rate / plan.expected_batch)
        return own.numpy()

    def _group(self, model: SASRec, stack: WindowStack, rows: NDArray[np.int64]) -> _Group:
        windows = stack.windows[rows]
        used = int((windows.history > 0).any(axis=0).sum())  # columns that hold an event: no work on padding
        history, target, valid = (
            torch.from_numpy(np.ascontiguousarray(part[:, :used]))
            for part in (windows.history, windows.target, windows.valid)
        )
        with torch.no_grad():
            x = model.transform(model.embed(history, self._items), stop=self._first_block)
        return _Group(rows, torch.from_numpy(stack.owner[rows]), x, target, valid)

    def _add_gradients(
        self, total: Tensor, model: SASRec, start: Tensor, own: Tensor, group: _Group, clip_norm: float
    ) -> None:
        """Add the clipped gradients of a group's windows to their owners' rows of ``total`` (users, num_trainable)."""
        if len(group.owner) == 0:
            return
        weights, leaves = self._leaves(start, own[group.owner])
        with applied(model, weights):
            hidden = model.final_norm(model.transform(group.x, first=self._first_block))  # (windows, length, d)
            hidden_gradient = softmax_gradient(hidden.detach(), self._items, group.target, group.valid)
            parts = torch.autograd.grad(hidden, leaves, hidden_gradient)
        gradients = torch.cat([part.flatten(1) for part in parts], dim=1)  # (windows, num_trainable)
        if clip_norm != float("inf"):
            factors, _ = clip_factors(gradients, clip_norm)
            gradients.mul_(factors.unsqueeze(1))
        total.index_add_(0, group.owner, gradients)

    def _leaves(self, start: Tensor, own: Tensor) -> tuple[dict[str, tuple[Tensor, Tensor]], list[Tensor]]:
        """Return weights for ``applied`` and the leaves among them; B per window, A shared unless it is trained."""
        if self._spec.train_a:
            return window_leaves(self._spec, own, len(own))
        weights: dict[str, tuple[Tensor, Tensor]] = {}
        at = 0
        for name, (a, _) in self._spec.split(start).items():
            out = self._spec.layers[len(weights)].out_features
            b = own[:, at : at + out * self._spec.rank].unflatten(1, (out, self._spec.rank))
            weights[name] = (a, b.detach().requires_grad_())
            at += out * self._spec.rank
        return weights, [b for _, b in weights.values()]


class _Group:
    """Windows of a chunk that are padded to the same length."""

    def __init__(self, rows: NDArray[np.int64], owner: Tensor, x: Tensor, target: Tensor, valid: Tensor) -> None:
        self.rows, self.owner, self.x, self.target, self.valid = rows, owner, x, target, valid

    def drawn(self, mask: NDArray[np.bool_]) -> _Group:
        """Keep the windows that a mask over the chunk's windows has drawn."""
        kept = mask[self.rows]
        if kept.all():
            return self
        at = torch.from_numpy(np.flatnonzero(kept))
        return _Group(self.rows[kept], self.owner[at], self.x[at], self.target[at], self.valid[at])


def _by_length(windows: Windows) -> list[NDArray[np.int64]]:
    """Divide windows into groups of similar length."""
    lengths = (windows.history > 0).sum(axis=1)
    row_length = windows.history.shape[1]
    length_class = -(-lengths * _LENGTH_CLASSES // row_length)  # 0 for no event at all
    return [np.flatnonzero(length_class == c) for c in range(1, _LENGTH_CLASSES + 1) if (length_class == c).any()]


def _lowest_adapted_block(spec: AdapterSpec) -> int:
    """Return the number of the first block with an adapter: what lies below gives the same in every step."""
    return min(int(layer.name.split(".")[1]) for layer in spec.layers)


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
