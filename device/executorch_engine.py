"""Local training with the ``.pte`` step: no autograd, no PyTorch module, the base only inside the program.

The program's batch is static, a Poisson batch is not. The step is linear in the gradient sum, so a larger batch is
several calls from the same vector whose changes add up, the noise in the first only; rows that are left over are
padding with ``valid`` 0 and contribute nothing. An empty batch is one call of padding: its noise is added all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.train import train_each
from ownlet.shared.adapter import AdapterSpec, Vector, load_adapter
from ownlet.shared.config import Plan
from ownlet.shared.errors import require
from ownlet.shared.manifest import ADAPTER_FILE, PROGRAM_FILE, Manifest, read_manifest
from ownlet.shared.noise import NoiseSource
from ownlet.shared.program import Program
from ownlet.shared.windows import Windows

__all__ = ["ExecutorchEngine"]


class ExecutorchEngine:
    """Runs the methods of a bundle's program; implements ``device.train.Engine``."""

    def __init__(self, program: Program, spec: AdapterSpec, manifest: Manifest) -> None:
        """Take a loaded program.

        Args:
            program: the bundle's program.
            spec: what its flat vector means.
            manifest: the static sizes.
        """
        self._program, self._spec, self._manifest = program, spec, manifest

    @classmethod
    def open(cls, bundle: Path) -> ExecutorchEngine:
        """Load the program of a bundle, once its files have been checked.

        Raises:
            BundleError: the bundle is incomplete, altered or too new.
            AdapterError: its adapter does not belong to its base.
        """
        manifest = read_manifest(bundle)
        spec, _, _ = load_adapter(bundle / ADAPTER_FILE, base_hash=manifest.base_hash)
        return cls(Program(bundle / PROGRAM_FILE), spec, manifest)

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that this engine trains."""
        return self._spec

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user, each starting from ``vector``; see ``device.train.Engine``."""
        return train_each(self._train_user, self._spec, vector, users, plan, noises)

    def score(self, vector: Vector, history: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score every item as the next one.

        Args:
            vector: (P,) the adapter.
            history: (num_events,) item numbers in time order; the last ``max_length`` are read.

        Returns:
            (num_items + 1,); number 0 is padding and means nothing.
        """
        (scores,) = self._program.run("score", self._spec.check(vector), *self._row(history))
        return scores

    def recommend(
        self, vector: Vector, history: NDArray[np.int64], seen: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best unseen items.

        Args:
            vector: (P,) the adapter.
            history: (num_events,) item numbers in time order.
            seen: item numbers that are not to be recommended; by default the whole history.

        Returns:
            items and scores, best first, at most ``top_k`` of them; fewer where fewer are unseen.
        """
        mask = np.zeros(self._manifest.num_items + 1, np.bool_)
        mask[history if seen is None else seen] = True
        items, scores = self._program.run("recommend", self._spec.check(vector), *self._row(history), mask)
        unseen = np.isfinite(scores)
        return items[unseen], scores[unseen]

    def loss(self, vector: Vector, windows: Windows) -> NDArray[np.float32]:
        """Return the loss of every window, (num_windows,)."""
        everyone = np.arange(len(windows))
        losses = [self._program.run("loss", vector, *self._rows(windows, part))[0][: len(part)]
                  for part in self._parts(everyone)]  # fmt: skip
        return np.concatenate(losses)[: len(windows)]

    def _train_user(self, start: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Vector:
        require(
            plan.num_negatives == 0, "num_negatives must be 0 in a bundle's program", num_negatives=plan.num_negatives
        )
        vector, rate = start, plan.learning_rate / plan.expected_batch
        for _ in range(plan.steps):
            chosen = np.flatnonzero(noise.poisson_mask(len(windows), plan.sample_rate))
            drawn = noise.gaussian(self._spec.num_trainable, plan.noise_std)
            vector = self._step(vector, windows, chosen, drawn, plan.clip_norm, rate)
        return self._spec.check(vector, what="trained adapter")

    def _step(
        self,
        vector: Vector,
        windows: Windows,
        chosen: NDArray[np.int64],
        noise: NDArray[np.float32],
        clip: float,
        rate: float,
    ) -> Vector:
        stepped: Vector = vector
        for part in self._parts(chosen):
            rows = self._rows(windows, part)
            result, _, _ = self._program.run("step", vector, *rows, noise, float(clip), float(rate))
            stepped = result if stepped is vector else np.add(stepped, result - vector, dtype=np.float32)
            noise = np.zeros_like(noise)  # in the first call only
        return stepped

    def _parts(self, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut window numbers into parts that fit one call; at least one part, which may be empty."""
        size = self._manifest.batch
        return [chosen[at : at + size] for at in range(0, max(1, len(chosen)), size)]

    def _rows(
        self, windows: Windows, part: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return (history, target, valid), each (batch, row_length), of at most ``batch`` windows."""
        length, given = self._manifest.windows.row_length, windows.history.shape[1]
        require(given <= length, f"windows must have at most {length} positions for this bundle", row_length=given)
        shape = (self._manifest.batch, length)
        history, target, valid = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        n = len(part)
        history[:n, :given], target[:n, :given] = windows.history[part], windows.target[part]
        valid[:n, :given] = windows.valid[part]
        return history, target, valid

    def _row(self, events: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (history (1, max_length), length (1,)) with padding behind; an empty history is one padding event."""
        kept = events[-self._manifest.max_length :]
        history = np.zeros((1, self._manifest.max_length), np.int64)
        history[0, : len(kept)] = kept
        return history, np.array([max(1, len(kept))], np.int64)
