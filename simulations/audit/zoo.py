"""The broken zoo: one trainer that is right, and thirteen that are wrong in ways that have happened.

Each overrides one thing of the right one, and each still claims what the right one claims. An audit that does not flag
all of them, or that flags the right one, is itself broken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.device.train import train_each
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, initial_adapter
from ownlet.shared.config import ModelConfig, Plan
from ownlet.shared.lora import attach
from ownlet.shared.methods import METHODS
from ownlet.shared.model import SASRec
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.recommender import Recommender
from ownlet.shared.step import window_gradients
from ownlet.shared.windows import Windows
from ownlet.simulations.audit.component import QUICK, Trials, audit_engine
from ownlet.simulations.audit.result import AuditResult
from ownlet.simulations.progress import Progress

__all__ = ["ZOO", "Trainer", "audit_zoo", "zoo_base"]

Rows = NDArray[np.float64]


class Trainer:
    """DP-SGD as ``device.train`` has it, in the fewest lines: a ``device.train.Engine`` that shows its steps."""

    def __init__(self, model: Recommender, spec: AdapterSpec) -> None:
        """Take a base prepared with ``attach``, and its adapter's spec; the zoo wants one that trains A too."""
        self._model, self._spec = model, spec
        self._known: dict[bytes, Rows] = {}  # an audit asks for the same gradients hundreds of times

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that is trained."""
        return self._spec

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user; see ``device.train.Engine``."""

        def last(start: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Vector:
            return list(self.steps(start, windows, plan, noise))[-1]

        return train_each(last, self._spec, vector, users, plan, noises)

    def steps(self, vector: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Iterator[Vector]:
        """Train one adapter and yield it after each step."""
        for _ in range(plan.steps):
            chosen = self.chosen(len(windows), plan, noise)
            vector = vector.copy()
            vector[self._spec.trainable] -= self.move(vector, windows[chosen], plan, noise, len(windows))
            yield vector

    def chosen(self, size: int, plan: Plan, noise: NoiseSource) -> NDArray[np.bool_]:
        """Return who is in the batch, (size,)."""
        return noise.poisson_mask(size, plan.sample_rate)

    def move(self, vector: Vector, batch: Windows, plan: Plan, noise: NoiseSource, size: int) -> Rows:
        """Return what a step takes away from the trained numbers."""
        total = self.total(self.gradients(vector, batch), plan) + self.noise(plan, noise)
        moved: Rows = total * plan.learning_rate / self.denominator(plan, size)
        return moved

    def total(self, gradients: Rows, plan: Plan) -> Rows:
        """Return the sum of clipped gradients (batch, n)."""
        total: Rows = clipped(gradients, plan.clip_norm).sum(axis=0)
        return total

    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        """Return the noise of one step, (n,)."""
        return noise.gaussian(self._spec.num_trainable, plan.noise_std).astype(np.float64)

    def denominator(self, plan: Plan, size: int) -> float:
        """Return what the sum is divided by; ``size`` is private."""
        return plan.expected_batch

    def gradients(self, vector: Vector, windows: Windows) -> Rows:
        """Return the gradient of each window, (windows, n)."""
        rows = [self._gradient(vector, windows[at : at + 1]) for at in range(len(windows))]
        return np.concatenate([np.zeros((0, self._spec.num_trainable)), *rows])

    def _gradient(self, vector: Vector, window: Windows) -> Rows:
        key = vector.tobytes() + window.history.tobytes() + window.target.tobytes()
        if key not in self._known:
            tensors = [torch.from_numpy(part) for part in (window.history, window.target, window.valid)]
            _, gradients = window_gradients(self._model, self._spec, torch.from_numpy(vector), *tensors)
            self._known[key] = gradients.numpy().astype(np.float64)
        return self._known[key]


def clipped(rows: Rows, clip_norm: float) -> Rows:
    """Return rows (rows, n), each scaled down if needed to norm at most ``clip_norm``."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)  # (rows, 1)
    scaled: Rows = rows * np.minimum(1.0, clip_norm / np.maximum(norms, 1e-12))
    return scaled


class _NoNoise(Trainer):
    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        return np.zeros(self._spec.num_trainable)


class _HalvedNoise(Trainer):
    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        return super().noise(plan, noise) / 2


class _NoiseOnBOnly(Trainer):
    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        drawn = super().noise(plan, noise)
        drawn[: self._spec.size_a] = 0
        return drawn


class _NoiseNotScaledByC(Trainer):
    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        return noise.gaussian(self._spec.num_trainable, plan.noise_multiplier).astype(np.float64)


class _OneSeedForAllSteps(Trainer):
    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        return super().noise(plan, AesNoise.seeded("of all steps"))


class _ClipAfterAveraging(Trainer):
    def total(self, gradients: Rows, plan: Plan) -> Rows:
        average = gradients.sum(axis=0, keepdims=True) / plan.expected_batch
        total: Rows = clipped(average, plan.clip_norm)[0] * plan.expected_batch
        return total


class _PerLayerClipping(Trainer):
    def total(self, gradients: Rows, plan: Plan) -> Rows:
        sizes = [self._spec.rank * layer.in_features for layer in self._spec.layers]
        sizes += [self._spec.rank * layer.out_features for layer in self._spec.layers]
        layers = np.split(gradients, np.cumsum(sizes)[:-1], axis=1)
        return np.concatenate([clipped(layer, plan.clip_norm).sum(axis=0) for layer in layers])


class _FixedBatches(Trainer):
    def chosen(self, size: int, plan: Plan, noise: NoiseSource) -> NDArray[np.bool_]:
        mask = np.zeros(size, np.bool_)
        mask[np.random.default_rng().permutation(size)[: round(plan.expected_batch)]] = True
        return mask


class _WrongRate(Trainer):
    def chosen(self, size: int, plan: Plan, noise: NoiseSource) -> NDArray[np.bool_]:
        return super().chosen(size, replace(plan, sample_rate=min(1.0, 2 * plan.sample_rate)), noise)


class _EmptyBatchesSkipped(Trainer):
    def move(self, vector: Vector, batch: Windows, plan: Plan, noise: NoiseSource, size: int) -> Rows:
        if len(batch) == 0:
            return np.zeros(self._spec.num_trainable)
        return super().move(vector, batch, plan, noise, size)


class _DenominatorFromN(Trainer):
    def denominator(self, plan: Plan, size: int) -> float:
        return plan.sample_rate * max(1, size)


class _UnseenTensor(Trainer):
    def move(self, vector: Vector, batch: Windows, plan: Plan, noise: NoiseSource, size: int) -> Rows:
        unseen = slice(0, self._spec.rank * self._spec.layers[0].in_features)
        raw = self.gradients(vector, batch)
        moved = raw.sum(axis=0)  # as a statistic or a plain optimiser moves it: unclipped, and without noise
        raw[:, unseen] = 0
        seen = self.total(raw, plan) + self.noise(plan, noise)
        seen[unseen] = moved[unseen]
        return seen * plan.learning_rate / self.denominator(plan, size)


class _SmallSeed(Trainer):
    def noise(self, plan: Plan, noise: NoiseSource) -> Rows:
        generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4)))
        return torch.randn(self._spec.num_trainable, generator=generator).numpy().astype(np.float64) * plan.noise_std


ZOO: dict[str, type[Trainer]] = {
    "noise omitted": _NoNoise,
    "noise halved": _HalvedNoise,
    "noise on B only": _NoiseOnBOnly,
    "noise not scaled by C": _NoiseNotScaledByC,
    "one seed for all steps": _OneSeedForAllSteps,
    "clip after averaging": _ClipAfterAveraging,
    "per-layer clipping with flat noise": _PerLayerClipping,
    "fixed batches accounted as Poisson": _FixedBatches,
    "wrong q": _WrongRate,
    "empty batches skipped": _EmptyBatchesSkipped,
    "denominators from n": _DenominatorFromN,
    "a released tensor unseen by the optimiser": _UnseenTensor,
    "32-bit noise seed": _SmallSeed,
}
"""What is wrong -> the trainer that does it."""

_ITEMS, _LENGTH = 50, 6


def zoo_base() -> tuple[SASRec, AdapterSpec, Vector]:
    """Return a small base, the same every time, with LoRA whose A is trained too, and an adapter with B other than 0.

    Its scores are far apart, so gradients are long and C can be above 1: noise that is not scaled by C is then too
    little, as it would be in a real training, and not too much.
    """
    with torch.random.fork_rng():
        torch.manual_seed(7)
        content = torch.cat([torch.zeros(1, 6), torch.randn(_ITEMS, 6)])
        model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=12, dropout=0.0), content).eval()
        with torch.no_grad():
            model.item_embedding.weight[1:].normal_(std=0.3)
            model.final_norm.weight.fill_(20.0)
    spec = attach(
        model,
        target_modules=METHODS["lora"].targets,
        rank=4,
        alpha=8.0,
        base_hash=hash_state(model.state_dict()),
        train_a=True,
    )
    vector = initial_adapter(spec, seed=1)
    vector[spec.size_a :] = np.random.default_rng(2).normal(0, 0.05, spec.size - spec.size_a)
    return model, spec, vector


def audit_zoo(
    names: Sequence[str],
    plan: Plan,
    *,
    trials: Trials = QUICK,
    progress: Progress | None = None,
) -> dict[str, AuditResult]:
    """Audit trainers of the zoo on the zoo's base.

    Args:
        names: what is wrong, keys of ``ZOO``; ``correct`` is the right one.
        plan: what all of them claim to run.
        trials: how much is measured.
        progress: told of the stages of each.
    """
    model, spec, vector = zoo_base()
    kinds: dict[str, type[Trainer]] = {"correct": Trainer, **ZOO}
    return {
        name: audit_engine(
            kinds[name](model, spec),
            plan,
            num_items=_ITEMS,
            window_length=_LENGTH,
            name=name,
            vector=vector,
            trials=trials,
            progress=progress,
        )
        for name in names
    }
