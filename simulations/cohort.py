"""The cohort engine: many users' adapters trained as one batched computation.

The base is frozen and shared, so users differ only in their adapters, which are inputs. All windows of a chunk of users
go through one forward and one backward pass that gives a gradient per window; each is clipped, and summed for its user.
Masks and noise are drawn per user from that user's own source, so the result does not depend on who shares a chunk, and
equals what the engine of a single device computes.

A chunk is as many users as fit a byte budget; chunks run at once on threads of one core each. The measurements behind
all this stand in ``docs/cohort.md``.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.alternate import Part, spec_of_part
from ownlet.shared.candidates import Candidates, CandidateSampler
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.shared.model import SASRec
from ownlet.shared.noise import NoiseSource
from ownlet.shared.probe import check_adapter, check_recommender
from ownlet.shared.recommender import Recommender, known_frequencies, module_of
from ownlet.shared.step import factors_of
from ownlet.shared.windows import Windows, WindowStack, stack_windows
from ownlet.simulations.autograd_gradients import AutogradGradients
from ownlet.simulations.model_gradients import ModelGradients, held_bytes
from ownlet.simulations.sasrec_gradients import SASRecGradients, SharedWeights

__all__ = ["CohortEngine"]

_CHUNK_BYTES = 96 * 2**20
_SUMMED_USERS = 16  # whose windows are summed in one product
_SAME_LENGTH = 0.75  # windows at least this much of the longest one's length are padded to it


class WindowGradients(Protocol):
    """Computes the gradient of every window with respect to its own adapter; not for two threads at once."""

    def batch(self, history: Tensor, target: Tensor, valid: Tensor, context: Tensor | None = None) -> Any:
        """Prepare windows (windows, length); what this returns can be indexed by windows."""
        ...

    def __call__(
        self, batch: Any, own: Tensor, owner: Tensor, candidates: Candidates | None = None
    ) -> list[tuple[slice, Tensor]]:
        """Return the gradient of each window at its owner's vector, as parts of a table (windows, num_trainable).

        Args:
            batch: the windows.
            own: (users, num_trainable) what is trained.
            owner: (windows,) the user of each window.
            candidates: what stands for the catalogue; None is the full softmax.

        Returns:
            columns and their values; the next call may overwrite them.
        """
        ...


class CohortEngine:
    """Trains a cohort in chunks of bounded size; implements ``device.train.Engine``."""

    def __init__(
        self,
        model: Recommender,
        spec: AdapterSpec,
        *,
        chunk_bytes: int = _CHUNK_BYTES,
        threads: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take a base prepared with ``attach``.

        Args:
            model: the frozen base, in eval mode; copied where the device is not the CPU. SASRec has a fast form of its
                own; any other base is checked (``shared.probe``) and differentiated by autograd.
            spec: the adapter's spec.
            chunk_bytes: about how much memory the intermediate results of one chunk may take, and never less than one
                window needs; never changes the result. On a GPU give it some gigabytes.
            threads: chunks that are computed at once; by default as many as torch has threads, on a GPU one.
            device: where the arithmetic happens, as torch names it.
            dtype: of the arithmetic; adapters, clipping and sums stay in float32. bfloat16 is an approximation.
        """
        require(chunk_bytes >= 1, "chunk_bytes must be at least 1", chunk_bytes=chunk_bytes)
        require(not model.training, "the base must be in eval mode", training=model.training)
        if not isinstance(model, SASRec):
            check_recommender(model)
            check_adapter(model, spec)
        self._device = torch.device(device)
        self._model, self._spec, self._dtype = model, spec, dtype
        if self._device.type != "cpu":
            self._model = copy.deepcopy(model)
            module_of(self._model).to(self._device)
        if threads is None:
            threads = torch.get_num_threads() if self._device.type == "cpu" else 1
        require(threads >= 1, "threads must be at least 1", threads=threads)
        is_written_out = isinstance(model, SASRec) and spec.form == "lora" and not spec.train_a
        exact = dtype == torch.float32 or is_written_out
        require(exact, "dtype must be float32 but for LoRA with a frozen A on SASRec", dtype=dtype)
        self._threads, self._chunk_bytes = threads, chunk_bytes
        self._parts: dict[Part, CohortEngine] = {}
        self._chunk_positions = max(1, chunk_bytes // _position_bytes(model, spec))

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
        if len(users) == 0:
            return trained
        self.check_plan(plan)
        stack = stack_windows(users)
        start = torch.from_numpy(vector).to(self._device)
        free = self._gradients(start)

        def train_chunk(chunk: NDArray[np.int64]) -> None:
            gradients = free.get()
            try:
                own = self._train_chunk(gradients, start, stack.take(chunk), plan, [noises[user] for user in chunk])
            finally:
                free.put(gradients)
            trained[chunk, self._spec.trainable] = own.numpy(force=True)

        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for done in [pool.submit(train_chunk, chunk) for chunk in self._chunks(stack)]:
                done.result()
        return trained

    def of_part(self, part: Part) -> CohortEngine:
        """Return the engine that trains a part; see ``ownlet.device.train.TrainsParts``."""
        if part == "all":
            return self
        if part not in self._parts:
            self._parts[part] = CohortEngine(
                self._model,
                spec_of_part(self._spec, part),
                chunk_bytes=self._chunk_bytes,
                threads=self._threads,
                device=str(self._device),
                dtype=self._dtype,
            )
        return self._parts[part]

    def check_plan(self, plan: Plan) -> None:
        """Raise ConfigError where the plan's negatives need to know how frequent items are and the base does not."""
        self._sampler(plan)

    def _sampler(self, plan: Plan) -> CandidateSampler:
        return CandidateSampler(plan, self._model.num_items, known_frequencies(self._model))

    def _gradients(self, start: Tensor) -> SimpleQueue[WindowGradients]:
        """Return one ``WindowGradients`` per thread."""
        free: SimpleQueue[WindowGradients] = SimpleQueue()
        model, spec = self._model, self._spec
        make: Callable[[], WindowGradients]
        if not isinstance(model, SASRec):
            make = partial(ModelGradients, model, spec, start)
        elif spec.train_a or spec.form != "lora":
            make = partial(AutogradGradients, model, spec, start)
        else:
            make = partial(SASRecGradients, SharedWeights(model, spec, start, self._dtype))
        for _ in range(self._threads):
            free.put(make())
        return free

    def _chunks(self, stack: WindowStack) -> Iterator[NDArray[np.int64]]:
        """Yield users that are trained together: similar ones, as many as fit, at least one.

        A small cohort is divided so that every thread has the same to do.
        """
        lengths = _lengths(stack.windows)
        positions = np.bincount(stack.owner, weights=lengths, minlength=len(stack))  # per user
        order = np.lexsort((positions, stack.counts))
        turns = max(1, math.ceil(positions.sum() / self._chunk_positions / self._threads))
        most = min(
            self._chunk_positions, math.ceil(positions.sum() / self._threads / turns) + int(positions.max()) // 2
        )
        chunk: list[int] = []
        held = 0.0
        for user in order.tolist():
            if chunk and held + positions[user] > most:
                yield np.array(chunk)
                chunk, held = [], 0.0
            chunk.append(user)
            held += positions[user]
        yield np.array(chunk)

    @torch.no_grad()
    def _train_chunk(
        self, gradients: WindowGradients, start: Tensor, stack: WindowStack, plan: Plan, noises: Sequence[NoiseSource]
    ) -> Tensor:
        """Return the trained part of each user's adapter, (users, num_trainable)."""
        owner = torch.from_numpy(stack.owner).to(self._device)
        batches = [
            (rows, gradients.batch(*self._tensors(stack.windows[rows]))) for rows in self._batches(stack.windows)
        ]
        own = start[self._spec.trainable].repeat(len(stack), 1)  # (users, num_trainable)
        sampler = self._sampler(plan) if plan.num_negatives else None
        for _ in range(plan.steps):
            masks = [noise.poisson_mask(n, plan.sample_rate) for n, noise in zip(stack.counts, noises, strict=True)]
            drawn = np.concatenate(masks)  # (windows,)
            candidates = None if sampler is None else self._candidates(sampler, stack, masks, noises)
            total = torch.zeros_like(own)
            for rows, batch in batches:
                kept = np.flatnonzero(drawn[rows])
                if len(kept) == 0:
                    continue
                at = torch.from_numpy(rows[kept]).to(self._device)
                chosen = batch if len(kept) == len(rows) else batch[torch.from_numpy(kept).to(self._device)]
                parts = gradients(chosen, own, owner[at], None if candidates is None else candidates[at])
                _add_clipped(total, owner[at], parts, plan.clip_norm)
            if plan.noise_std:
                size = self._spec.num_trainable
                drawn_noise = np.stack([noise.gaussian(size, plan.noise_std) for noise in noises])
                total += torch.from_numpy(drawn_noise).to(self._device)
            own.mul_(1 - plan.decay).sub_(total, alpha=plan.learning_rate / plan.expected_batch)
        return own

    def _candidates(
        self,
        sampler: CandidateSampler,
        stack: WindowStack,
        masks: Sequence[NDArray[np.bool_]],
        noises: Sequence[NoiseSource],
    ) -> Candidates:
        """Draw each user's candidates, of all windows of the chunk."""
        drawn = [sampler.draw(noise, of, mask) for noise, of, mask in zip(noises, stack, masks, strict=True)]
        return sampler.candidates(np.concatenate(drawn)).to(self._device)

    def _tensors(self, windows: Windows) -> list[Tensor]:
        """Return history, target and valid, and context where there is any."""
        used = int(_lengths(windows).max())  # no work on padding that all windows have
        parts = [part for part in (windows.history, windows.target, windows.valid, windows.context) if part is not None]
        return [torch.from_numpy(np.ascontiguousarray(part[:, :used])).to(self._device) for part in parts]

    def _batches(self, windows: Windows) -> Iterator[NDArray[np.int64]]:
        """Yield windows that are computed together: of similar length, as many as fit, at least one."""
        lengths = _lengths(windows)
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        first = 0
        for at in range(1, len(order) + 1):
            longest = lengths[order[first]]
            full = (at - first + 1) * longest > self._chunk_positions
            if at == len(order) or lengths[order[at]] < _SAME_LENGTH * longest or full:
                yield np.sort(order[first:at])  # owners in order
                first = at


def _add_clipped(total: Tensor, owner: Tensor, parts: list[tuple[slice, Tensor]], clip_norm: float) -> None:
    """Add windows' gradients, each scaled down to ``clip_norm``, to their owners' rows of (users, num_trainable).

    As a product with the table (users, windows) that holds each window's factor in its owner's row: for a few users at
    a time that is several times faster than scaling, then adding row by row. It is also how one user's NaN would reach
    others, 0 times NaN being NaN, so where there is one the rows are added after all.

    Args:
        total: (users, num_trainable).
        owner: (windows,) rows of ``total``, never falling.
        parts: of the gradients (windows, num_trainable).
        clip_norm: C; infinity means no bound.
    """
    parts = [(columns, part.float()) for columns, part in parts]
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for _, part in parts]).norm(dim=0)  # (windows,)
    factors = factors_of(norms, clip_norm)
    if not bool(torch.isfinite(norms).all()):
        for columns, part in parts:
            total[:, columns] = total[:, columns].index_add(0, owner, part * factors.unsqueeze(1))
        return
    weights = torch.zeros(len(total), len(owner), device=total.device)
    weights[owner, torch.arange(len(owner), device=total.device)] = factors
    edges = torch.searchsorted(owner, torch.arange(0, len(total) + _SUMMED_USERS, _SUMMED_USERS, device=total.device))
    for block, (first, stop) in enumerate(itertools.pairwise(edges.tolist())):
        users = slice(block * _SUMMED_USERS, (block + 1) * _SUMMED_USERS)
        for columns, part in parts:
            total[users, columns].addmm_(weights[users, first:stop], part[first:stop])


def _lengths(windows: Windows) -> NDArray[np.int64]:
    """Return how many positions of each window hold an event."""
    lengths: NDArray[np.int64] = (windows.history > 0).sum(axis=1)
    return lengths


def _position_bytes(model: Recommender, spec: AdapterSpec) -> int:
    """Return about how much memory the intermediate results for one position take."""
    if not isinstance(model, SASRec):
        return held_bytes(model, spec) // model.max_length + 1
    per_block = 20 * model.config.dim + model.config.num_heads * model.config.max_length
    per_window = 4 * spec.num_trainable // 10  # own vectors and their gradients, spread over a window's positions
    return 4 * (per_block * model.config.num_layers + per_window)
