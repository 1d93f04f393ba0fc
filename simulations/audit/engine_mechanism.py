"""A training engine as a mechanism: the same code that devices run, called with windows that come and go.

The unit is one window, under add-or-remove neighbours and Poisson sampling at the plan's rate. The learning rate and
the start are public, so the audit chooses them: a rate at which float32 loses nothing, and a start at which every
window's raw gradient is far above the clip norm (A is scaled up, or the clip norm lowered).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import Plan
from ownlet.shared.errors import PrivacyError, require
from ownlet.shared.noise import AesNoise, NoiseSource
from ownlet.shared.windows import Windows
from ownlet.simulations.audit.mechanism import LOUD, tensors_of
from ownlet.simulations.audit.result import Claim
from ownlet.simulations.audit.sources import Batch, Steered

__all__ = ["EngineMechanism", "canary_windows", "claim_of_plan", "norms_by_tensor"]

_SPREAD = 1e-3  # the least share of a raw norm that must be in every trained tensor, of some canary


def claim_of_plan(plan: Plan, *, participations: int = 1, dp_delta: float = 1e-5) -> Claim:
    """Return what a window-level plan promises to a device that runs it ``participations`` times."""
    return Claim(
        unit="window",
        sample_rate=plan.sample_rate,
        noise_multiplier=plan.noise_multiplier,
        clip_norm=plan.clip_norm,
        steps=plan.steps * participations,
        dp_delta=dp_delta,
    )


def canary_windows(num_windows: int, num_items: int, length: int, seed: int = 0) -> Windows:
    """Return windows of random items, full ones: whatever is unlikely has a large gradient."""
    items = np.random.default_rng(seed).integers(1, num_items + 1, (num_windows, length + 1))
    valid = np.ones((num_windows, length), np.float32)
    return Windows(history=items[:, :-1], target=items[:, 1:], valid=valid)


class EngineMechanism:
    """Implements ``Mechanism`` over any ``device.train.Engine``."""

    def __init__(
        self, engine: Engine, windows: Windows, plan: Plan, claim: Claim, *, name: str, vector: Vector
    ) -> None:
        """Find a loud start.

        Args:
            engine: what is audited.
            windows: the candidate windows.
            plan: the public numbers of a training; its learning rate and weight decay do not matter.
            claim: what is promised.
            name: of the engine.
            vector: (P,) the adapter to start from, but for its scale.

        Raises:
            PrivacyError: no start was found at which every window is loud and every trained tensor is touched.
        """
        require(plan.noise_multiplier > 0, "plan must add noise", noise_multiplier=plan.noise_multiplier)
        self._engine, self._windows = engine, windows
        self._name, self._claim = name, claim
        self._plan = replace(plan, weight_decay=0.0, steps=1)
        self._steps = plan.steps
        self._rate = 1.0
        self._start, self._raw = self._loud_start(vector)

    @property
    def name(self) -> str:
        """What is audited."""
        return self._name

    @property
    def claim(self) -> Claim:
        """What is promised of it."""
        return self._claim

    @property
    def num_units(self) -> int:
        """Candidate windows."""
        return len(self._windows)

    @property
    def tensors(self) -> Mapping[str, slice]:
        """The matrices of the adapter."""
        return tensors_of(self._engine.spec)

    @property
    def noised(self) -> slice:
        """What is trained."""
        return self._engine.spec.trainable

    def raw_norms(self) -> NDArray[np.float64]:
        """Return (windows, tensors) norms of unclipped gradients at the start."""
        return self._raw

    def release(self, present: NDArray[np.bool_], source: NoiseSource, batch: Batch = "all") -> NDArray[np.float64]:
        """Return the noised sum of one step; see ``Mechanism``."""
        plan = self._at_rate(self._plan)
        trained = self._engine.train(self._start, [self._windows[present]], plan, [Steered(source, batch)])[0]
        return self._sum(self._start, trained)

    def training(self, source: NoiseSource) -> NDArray[np.float64]:
        """Return the noised sums of one training without data, step by step where the engine shows its steps."""
        nobody = self._windows[:0]
        plan = replace(self._at_rate(self._plan), steps=self._steps)
        steps = getattr(self._engine, "steps", None)
        reached: Iterable[Vector]
        if steps is None:
            reached = self._engine.train(self._start, [nobody], plan, [source])
        else:
            reached = steps(self._start, nobody, plan, source)
        path = [self._start, *reached]
        return np.stack([self._sum(before, after) for before, after in itertools.pairwise(path)])

    def _sum(self, before: Vector, after: Vector) -> NDArray[np.float64]:
        moved: NDArray[np.float64] = before.astype(np.float64) - after
        return moved / self._rate

    def _at_rate(self, plan: Plan) -> Plan:
        return replace(plan, learning_rate=self._rate * plan.expected_batch)

    def _loud_start(self, vector: Vector) -> tuple[Vector, NDArray[np.float64]]:
        """Return the start, and the raw norms (windows, tensors) there.

        Where only B is trained, its gradient at B = 0 is proportional to A, so A is scaled. Where A is trained too,
        nothing is: there the clip norm is lowered, which is a public number that epsilon does not depend on.
        """
        spec = self._engine.spec
        start = _with_a(spec, vector)
        raw = self._raw_norms(start)
        least = float(np.linalg.norm(raw, axis=1).min())
        if not least > 0:
            raise PrivacyError("canaries must have gradients, got one without any")
        if least < LOUD * self._plan.clip_norm:
            if spec.train_a:
                clip_norm = least / LOUD
                self._plan = replace(self._plan, clip_norm=clip_norm)
                self._claim = replace(self._claim, clip_norm=clip_norm)
            else:
                start[: spec.size_a] *= np.float32(2 * LOUD * self._plan.clip_norm / least)
                raw = self._raw_norms(start)
        self._check_canaries(raw)
        size = float(np.abs(start[spec.trainable]).max())
        self._rate = 1.0 if size == 0 else 2.0 ** round(math.log2(size / self._plan.clip_norm))
        return start, raw

    def _raw_norms(self, start: Vector) -> NDArray[np.float64]:
        plan = replace(self._plan, clip_norm=math.inf, noise_multiplier=0.0, learning_rate=self._plan.expected_batch)
        source = Steered(AesNoise.seeded("raw"), "all")
        moved = [
            start.astype(np.float64) - self._engine.train(start, [self._windows[at : at + 1]], plan, [source])[0]
            for at in range(len(self._windows))
        ]
        return norms_by_tensor(np.stack(moved), self.tensors)

    def _check_canaries(self, raw: NDArray[np.float64]) -> None:
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        if float(norms.min()) < LOUD * self._plan.clip_norm * (1 - 1e-3):
            wanted = f"raw gradients of canaries must be at least {LOUD:g} clip norms long"
            raise PrivacyError(f"{wanted}, got {float(norms.min()) / self._plan.clip_norm:.2g}")
        shares = (raw / norms).max(axis=0)
        trained = self._engine.spec.trainable
        for (tensor, part), share in zip(self.tensors.items(), shares, strict=True):
            if part.start >= trained.start and share < _SPREAD:
                raise PrivacyError(f"canaries must touch every trained tensor, got share={share:.2g} in {tensor}")


def norms_by_tensor(rows: NDArray[np.float64], tensors: Mapping[str, slice]) -> NDArray[np.float64]:
    """Return (rows, tensors) norms of rows (rows, P)."""
    return np.stack([np.linalg.norm(rows[:, part], axis=1) for part in tensors.values()], axis=1)


def _with_a(spec: AdapterSpec, vector: Vector) -> Vector:
    """Return the adapter with an A that is not zero and, where A is trained, a B that is not zero, else B = 0."""
    start = spec.check(vector).copy()
    if not start[: spec.size_a].any():
        start = initial_adapter(spec, 0)
    start[spec.size_a :] = 0  # then what is trained does not depend on the scale of A
    if spec.train_a:
        start[spec.size_a :] = np.random.default_rng(0).normal(0, 0.05, spec.size - spec.size_a)
    return start
