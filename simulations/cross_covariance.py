"""How wrong the average of A and B is: the cross-covariance of the users' local adapters, in a simulation.

Where devices train A and B at once, the server averages both, and the product of the averages is not the average of the
products (Sun et al. 2024, https://arxiv.org/abs/2403.12313, section 3). For the local adapters of a round's cohort, as
they are sent, ``cross_covariance`` tells by how much, against how far they moved from the global B A:

    || mean(B_i A_i) - mean(B_i) mean(A_i) ||  /  || mean(B_i A_i) - B A ||      (Frobenius, all layers together)

It is 0 where A is fixed or only one user took part. The server sees sums only and could not say it; it is a diagnosis,
never to be released beside a private adapter, since it has no noise.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.delta import clip_to_norm, delta_of
from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import Windows

__all__ = ["CrossCovarianceEngine", "cross_covariance_applies"]


def cross_covariance_applies(spec: AdapterSpec, config: FederationConfig) -> bool:
    """Return whether a run averages A and B at once, in rounds whose clip norm is known from the start.

    Args:
        spec: of the adapter: only where it is LoRA is B A what it does.
        config: of the run.
    """
    trains_both = spec.form == "lora" and spec.train_a and spec.train_b and not config.alternate
    return trains_both and not config.ranks and not config.counts and config.buffer.size == 0


class CrossCovarianceEngine:
    """Trains users as another engine does, and adds up what the error of a round follows from; a ``train.Engine``.

    It holds per layer the sum of the users' products and one vector, however many users there are.
    """

    def __init__(self, inner: Engine, config: FederationConfig) -> None:
        """Wrap an engine.

        Args:
            inner: trains the users.
            config: of the run; says the norm that each user's delta is clipped to.

        Raises:
            ConfigError: see ``cross_covariance_applies``.
        """
        require(
            cross_covariance_applies(inner.spec, config),
            "cross-covariance must be of a LoRA whose A and B are trained at once, in rounds of one clip norm and rank",
            train_a=inner.spec.train_a,
        )
        self._inner, self._clip_norm = inner, config.delta_bound(inner.spec.num_trainable)
        self._mutex = threading.Lock()
        self._clear()

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that the inner engine trains."""
        return self._inner.spec

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Return each user's adapter; see ``device.train.Engine``."""
        trained = self._inner.train(vector, users, plan, noises)
        with np.errstate(invalid="ignore", over="ignore"):  # such a user sends zero
            sent = clip_to_norm(delta_of(self.spec, trained, vector), self._clip_norm)
        sent = np.where(np.isfinite(sent).all(axis=1, keepdims=True), sent, np.float32(0))
        with self._mutex:
            self._add(vector, torch.from_numpy(sent).double())
        return trained

    def take(self) -> float:
        """Return the error over all users since the last call, and forget them; 0 where nobody moved."""
        with self._mutex:
            error = self._error()
            self._clear()
        return error

    def _clear(self) -> None:
        self._start, self._count = torch.zeros(0), 0
        self._moved, self._products = torch.zeros(self.spec.size, dtype=torch.float64), dict[str, torch.Tensor]()

    def _add(self, vector: Vector, deltas: torch.Tensor) -> None:
        """Add deltas (users, P): their sum, and per layer the sum of b a, where B_i = B + b and A_i = A + a."""
        self._start = torch.from_numpy(vector).double()
        self._count += len(deltas)
        self._moved += deltas.sum(dim=0)
        for name, (a, b) in self.spec.split(deltas).items():
            total = torch.einsum("uor,uri->oi", b, a)  # (out, in)
            self._products[name] = self._products[name] + total if name in self._products else total

    def _error(self) -> float:
        if self._count == 0:
            return 0.0
        start, mean = self.spec.split(self._start), self.spec.split(self._moved / self._count)
        missed, went = 0.0, 0.0
        for name, total in self._products.items():
            (a, b), (mean_a, mean_b), product = start[name], mean[name], total / self._count
            missed += float((product - mean_b @ mean_a).square().sum())
            went += float((product + b @ mean_a + mean_b @ a).square().sum())
        return (missed / went) ** 0.5 if went > 0 else 0.0
