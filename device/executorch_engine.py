"""Local training and scoring with the ``.pte`` program: no autograd, no PyTorch module.

The program's batches are static, a Poisson batch is not. The step is linear in the gradient sum, so a batch is cut into
calls of the variants that the program has, all from the same vector; their changes add up, the noise goes into the
first only. Rows that are left over are padding with ``valid`` 0 and contribute nothing. An empty batch is one call of
padding: its noise is added all the same.

The item table is mapped from the bundle and handed to every call, which reads it where it lies. A program that holds
its items itself takes none.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.program_calls import best_items, program_candidates, split_batch
from ownlet.device.stages import rank_candidates
from ownlet.device.train import train_each
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter
from ownlet.shared.candidates import Candidates, CandidateSampler
from ownlet.shared.config import Plan
from ownlet.shared.context import num_context_rows
from ownlet.shared.errors import BundleError, DataError, require
from ownlet.shared.frequencies import open_frequencies
from ownlet.shared.item_table import Columns, open_item_table
from ownlet.shared.manifest import (
    ADAPTER_FILE,
    FREQUENCIES_FILE,
    PROGRAM_FILE,
    RANK_METHOD,
    TABLE_FILE,
    Manifest,
    read_manifest,
)
from ownlet.shared.noise import NoiseSource
from ownlet.shared.program import Program
from ownlet.shared.windows import Windows

__all__ = ["ExecutorchEngine"]


class ExecutorchEngine:
    """Runs the methods of a bundle's program; implements ``device.train.LocalEngine``.

    Safe to use from several threads: each call of the program has it for itself, so a recommendation waits for one
    step of a training at the most.
    """

    def __init__(
        self,
        program: Program,
        spec: AdapterSpec,
        manifest: Manifest,
        columns: Columns | None,
        frequencies: NDArray[np.int64] | None = None,
    ) -> None:
        """Take a loaded program.

        Args:
            program: the bundle's program.
            spec: what its flat vector means.
            manifest: the static sizes.
            columns: (d, num_items) the item table; None where the program holds its items itself.
            frequencies: (num_items + 1,) how often public users chose each item, where the bundle says it.

        Raises:
            BundleError: a table of another size than the manifest's.
        """
        self._program, self._spec, self._manifest, self._columns = program, spec, manifest, columns
        self._frequencies = frequencies
        self._calling = threading.Lock()
        if columns is not None and columns.shape[1] != manifest.num_items:
            raise BundleError(f"items must be {manifest.num_items}, the catalogue, got {columns.shape[1]} in the table")

    @classmethod
    def open(cls, bundle: Path) -> ExecutorchEngine:
        """Load the program of a bundle, once its files have been checked.

        Raises:
            BundleError: the bundle is incomplete, altered or of another format.
            AdapterError: its adapter does not belong to its base.
        """
        manifest = read_manifest(bundle)
        spec, _, _ = load_adapter(bundle / ADAPTER_FILE, base_hash=manifest.base_hash)
        return cls.of_bundle(bundle, manifest, spec)

    @classmethod
    def of_bundle(cls, bundle: Path, manifest: Manifest, spec: AdapterSpec) -> ExecutorchEngine:
        """Load the program of a bundle whose manifest and adapter were read already.

        Raises:
            BundleError: the program or the item table cannot be used.
        """
        columns = open_item_table(bundle / TABLE_FILE) if manifest.has_item_table else None
        known = FREQUENCIES_FILE in manifest.files
        frequencies = open_frequencies(bundle / FREQUENCIES_FILE) if known else None
        return cls(Program(bundle / PROGRAM_FILE), spec, manifest, columns, frequencies)

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that this engine trains."""
        return self._spec

    def check_plan(self, plan: Plan) -> None:
        """Raise ConfigError where the program cannot run the plan.

        It has one objective with one number of negatives, fixed when it was exported, and it gives no scores by which
        the host could choose the hard ones.
        """
        for name in ("num_negatives", "objective"):
            asked, wanted = getattr(plan, name), getattr(self._manifest, name)
            require(asked == wanted, f"{name} must be {wanted} in this bundle's program", **{name: asked})
        hard = plan.negatives == "hard"
        require(not hard, "negatives must not be hard in a program, which keeps its scores", negatives=plan.negatives)
        self._sampler(plan)

    def _sampler(self, plan: Plan) -> CandidateSampler:
        return CandidateSampler(plan, self._manifest.num_items, self._frequencies)

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user, each starting from ``vector``; see ``device.train.Engine``."""
        return train_each(self._train_user, self._spec, vector, users, plan, noises)

    def steps(self, vector: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Iterator[Vector]:
        """Train one adapter and yield it after each of the plan's steps; see ``device.train.LocalEngine``."""
        self.check_plan(plan)
        self._check_items(windows.history, windows.target)
        self._check_context(windows.context)
        sampler = self._sampler(plan)
        current, rate = self._spec.check(vector), plan.learning_rate / plan.expected_batch
        for _ in range(plan.steps):
            mask = noise.poisson_mask(len(windows), plan.sample_rate)
            candidates = None
            if plan.num_negatives:
                candidates = sampler.candidates(sampler.draw(noise, windows, mask)[mask])
            drawn = noise.gaussian(self._spec.num_trainable, plan.noise_std)
            stepped = self._step(current, windows[mask], candidates, drawn, plan.clip_norm, rate)
            if plan.weight_decay:  # the program does not know of it
                stepped = self._decayed(stepped, current, plan.decay)
            current = self._spec.check(stepped, what="trained adapter")
            yield current

    def score(
        self, vector: Vector, history: NDArray[np.int64], context: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Score every item as the next one.

        Args:
            vector: (P,) the adapter.
            history: (num_events,) item numbers in time order; the last ``max_length`` are read.
            context: (max(1, num_events), fields) rows of the moment after each event, the last that of the request.

        Returns:
            (num_items + 1,); number 0 is padding and means nothing.

        Raises:
            DataError: a number that is no item, or no row of the context.
        """
        return np.concatenate([np.zeros(1, np.float32), self._scores(vector, history, context)])

    def recommend(
        self,
        vector: Vector,
        history: NDArray[np.int64],
        barred: NDArray[np.bool_] | None = None,
        context: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items that are not barred; where the program can rank, they are in the order of ``rank``.

        Args:
            vector: (P,) the adapter.
            history: (num_events,) item numbers in time order.
            barred: (num_items + 1,) marks items that are not to be recommended; by default the whole history.
            context: as in ``score``.

        Returns:
            items and scores, best first, at most ``top_k`` of them; the lower number first where scores are equal.

        Raises:
            DataError: a number that is no item, or no row of the context.
        """
        scores = self._scores(vector, history, context)
        if barred is None:
            scores[history - 1] = -np.inf
        else:
            scores[barred[1:]] = -np.inf
        if not self._manifest.num_candidates:
            best = best_items(scores, self._manifest.top_k)
            return best + 1, scores[best]
        candidates = best_items(scores, self._manifest.num_candidates) + 1
        items, scores = rank_candidates(
            candidates, self._manifest.num_candidates, partial(self._rank, vector, history, context)
        )
        return items[: self._manifest.top_k], scores[: self._manifest.top_k]

    def loss(self, vector: Vector, windows: Windows) -> NDArray[np.float32]:
        """Return the loss of every window, (num_windows,)."""
        self._check_items(windows.history, windows.target)
        self._check_context(windows.context)
        batch, losses = self._manifest.batches[0], np.zeros(len(windows), np.float32)
        for at in range(0, len(windows), batch):
            part = np.arange(at, min(at + batch, len(windows)))
            rows, moments = self._rows(windows, part, batch), self._moments(windows, part, batch)
            losses[part] = self._run("loss", vector, *rows, *moments)[0][: len(part)]
        return losses

    def _train_user(self, start: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Vector:
        *_, last = self.steps(start, windows, plan, noise)
        return last

    def _step(
        self,
        vector: Vector,
        windows: Windows,
        candidates: Candidates | None,
        noise: NDArray[np.float32],
        clip: float,
        rate: float,
    ) -> Vector:
        stepped, at = vector, 0
        for batch in split_batch(len(windows), self._manifest.batches):
            part = np.arange(at, min(at + batch, len(windows)))
            rows, moments = self._rows(windows, part, batch), self._moments(windows, part, batch)
            extra = () if candidates is None else program_candidates(candidates[part], rows[1])
            result, _ = self._run(f"step_{batch}", vector, *rows, *extra, noise, float(clip), float(rate), *moments)
            stepped = result if at == 0 else np.add(stepped, result - vector, dtype=np.float32)
            noise, at = np.zeros_like(noise), at + batch  # noise in the first call only
        return stepped

    def _decayed(self, stepped: Vector, before: Vector, decay: float) -> Vector:
        decayed, trained = stepped.copy(), self._spec.trainable
        decayed[trained] -= np.float32(decay) * before[trained]
        return decayed

    def _scores(
        self, vector: Vector, history: NDArray[np.int64], context: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """Return scores (num_items,); place i - 1 belongs to item i."""
        row, length, *moments = self._request(history, context)
        (scores,) = self._run("score", self._spec.check(vector), row, length, *moments)
        first: NDArray[np.float32] = scores[0]
        return first

    def _rank(
        self,
        vector: Vector,
        history: NDArray[np.int64],
        context: NDArray[np.int64] | None,
        candidates: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Return the ranking stage's scores (1, C) of candidates (1, C)."""
        row, length, *moments = self._request(history, context)
        (scores,) = self._run(RANK_METHOD, vector, row, length, candidates, *moments)
        return scores

    def _request(self, history: NDArray[np.int64], context: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], ...]:
        """Return history (1, max_length), length (1,) and context, where the base reads any.

        An empty history is one padding event.
        """
        self._check_items(history, lowest=1)
        self._check_context(context)
        kept = history[-self._manifest.max_length :]
        row = np.zeros((1, self._manifest.max_length), np.int64)
        row[0, : len(kept)] = kept
        moments = []
        if self._manifest.context:
            longest = self._manifest.max_length
            moments = [self._filled((1, longest), [] if context is None else [context[-longest:]])]
        return row, np.array([max(1, len(kept))], np.int64), *moments

    def _run(self, method: str, vector: Vector, *rest: NDArray[np.generic] | float) -> tuple[NDArray[np.float32], ...]:
        with self._calling:
            if self._columns is None:
                return self._program.run(method, vector, *rest)
            return self._program.run(method, vector, self._columns, *rest)

    def _rows(
        self, windows: Windows, part: NDArray[np.int64], batch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return (history, target, valid), each (batch, row_length), of at most ``batch`` windows."""
        length, given = self._manifest.windows.row_length, windows.history.shape[1]
        require(given <= length, f"windows must have at most {length} positions for this bundle", row_length=given)
        shape, n = (batch, length), len(part)
        history, target, valid = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        history[:n, :given], target[:n, :given] = windows.history[part], windows.target[part]
        valid[:n, :given] = windows.valid[part]
        return history, target, valid

    def _moments(self, windows: Windows, part: NDArray[np.int64], batch: int) -> list[NDArray[np.int64]]:
        """Return the context of at most ``batch`` windows as an argument of a method, none where it has none."""
        if not self._manifest.context:
            return []
        rows = [] if windows.context is None else list(windows.context[part])
        return [self._filled((batch, self._manifest.windows.row_length), rows)]

    def _filled(self, shape: tuple[int, int], rows: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Return (*shape, fields) with what is known in front, and unknown behind."""
        context = np.zeros((*shape, len(self._manifest.context)), np.int64)
        for at, known in enumerate(rows):
            context[at, : len(known)] = known
        return context

    def _check_context(self, context: NDArray[np.int64] | None) -> None:
        """Raise DataError unless it is rows of the base's table: the program would read on."""
        if context is None:
            return
        fields, highest = len(self._manifest.context), num_context_rows(self._manifest.context) - 1
        if context.shape[-1] != fields:
            raise DataError(f"context must have the {fields} fields of the bundle, got {context.shape[-1]}")
        if context.size and not (context.min() >= 0 and context.max() <= highest):
            wrong = (int(context.min()), int(context.max()))
            raise DataError(f"context must be of rows from 0 to {highest}, got {wrong}")

    def _check_items(self, *numbers: NDArray[np.int64], lowest: int = 0) -> None:
        """Raise DataError unless all are item numbers, or padding where ``lowest`` is 0: the program would read on."""
        highest = self._manifest.num_items
        for array in numbers:
            if array.size and not (lowest <= array.min() and array.max() <= highest):
                wrong = array[(array < lowest) | (array > highest)][0]
                raise DataError(f"item must be a number from {lowest} to {highest}, got item={wrong}")
