"""Knowledge compression: the server learns A on public data, so that devices need only train B.

Our reading of IAK (Jiang et al. 2025, "Pre-train and Fine-tune: Recommenders as Large Models"), which splits
fine-tuning into knowledge compression and knowledge matching by way of the information bottleneck. The paper's full
equations were not at hand: this is not a reproduction. At every adapted layer ``y = W x`` becomes

    z ~ N(E x, diag(exp(S x + s₀))),    y = W x + (alpha / r) D z

and E, S and D minimise ``task loss + beta · KL(z | N(0, 1))``, the variational bound of Alemi et al. 2017
(https://arxiv.org/abs/1612.00410, equation 17). *Compression* runs here, on public users. *Matching* runs on devices:
A = E is frozen and B = D begins at 0, so that the first adapter changes nothing, and is trained under differential
privacy. What serves is a plain LoRA; export, aggregation and accounting know nothing of all this.

With beta = 0 and no noise in z, E and D are trained exactly as the A and B of a plain LoRA.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ownlet.server.fedsvd import turn_a
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.errors import AdapterError, require
from ownlet.shared.model import SASRec
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.sites import LoRALinear
from ownlet.shared.windows import Windows

__all__ = ["CompressionConfig", "compress", "divergence", "train_kernels"]


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How A is learned.

    Args:
        steps: optimiser steps.
        batch_size: windows in a step.
        learning_rate: of the optimiser.
        optimizer: ``adam`` or ``sgd``.
        beta: weight of the KL term against the task loss.
        noise_std: standard deviation of z where S x is 0; 0 makes z its mean, and then beta must be 0.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 3e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    beta: float = 1e-3
    noise_std: float = 0.1

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", **{name: getattr(self, name)})
        require(0 < self.learning_rate < math.inf, "learning_rate must be positive", learning_rate=self.learning_rate)
        require(self.optimizer in ("adam", "sgd"), "optimizer must be adam or sgd", optimizer=self.optimizer)
        for name in ("beta", "noise_std"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} must not be negative", **{name: value})
        require(self.noise_std > 0 or self.beta == 0, "beta must be 0 where noise_std is 0", beta=self.beta)


def compress(
    model: SASRec,
    spec: AdapterSpec,
    windows: Windows,
    config: CompressionConfig,
    seed: int,
    *,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Vector:
    """Learn A on public windows and return the adapter that devices start from: that A, and B = 0.

    The rows of each A are made orthonormal, ordered by what they carry of the product D E (``fedsvd.turn_a``): their
    span is what was learned, and steps on B then have the same scale as on a random A.

    Args:
        model: the frozen base, prepared with ``attach``. It is not changed.
        spec: the adapter's spec, of the form ``lora`` with A frozen.
        windows: of public users only.
        config: the recipe.
        seed: of the start, the batches and the noise in z.
        on_step: called after every step with its number, from 1, and its loss.

    Returns:
        (P,).

    Raises:
        ConfigError: another form, A not frozen, or no windows.
        AdapterError: the training diverged.
    """
    learned = train_kernels(model, spec, windows, config, seed, on_step=on_step)
    turned, _ = turn_a(spec, learned, np.zeros(spec.num_trainable))
    turned[spec.trainable] = 0.0
    return turned


def train_kernels(
    model: SASRec,
    spec: AdapterSpec,
    windows: Windows,
    config: CompressionConfig,
    seed: int,
    *,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Vector:
    """Train E, S and D jointly; return E as A and D as B, (P,). Arguments as in ``compress``."""
    require(spec.form == "lora", "compression must have an adapter of the form lora", form=spec.form)
    require(len(windows) > 0, "compression must have public windows", windows=len(windows))
    generator = torch.Generator().manual_seed(seed)
    start = torch.from_numpy(initial_adapter(spec, seed))
    kernels = {name: _Kernel(a, b, config.noise_std, generator) for name, (a, b) in spec.split(start).items()}
    wrapped = _with_kernels(model, kernels)
    optimizer = _optimizer(config, kernels)
    rows = [torch.from_numpy(array) for array in (windows.history, windows.target, windows.valid)]
    for step in range(1, config.steps + 1):
        chosen = torch.randperm(len(windows), generator=generator)[: config.batch_size]
        history, target, valid = (row[chosen] for row in rows)
        loss = softmax_loss(wrapped(history), target, valid).mean()
        if config.beta:
            loss = loss + config.beta * torch.stack([kernel.divergence for kernel in kernels.values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step, float(loss.detach()))
    vector = spec.join({name: (kernel.e.detach(), kernel.d.detach()) for name, kernel in kernels.items()}).numpy()
    if not np.isfinite(vector).all():
        raise AdapterError(f"compression must end in finite numbers, got learning_rate={config.learning_rate}")
    return vector


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, exp(log_variance)) | N(0, 1)) over the last axis, (..., r) -> (...)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


class _Kernel(nn.Module):
    """E, S and D of one layer, and the divergence of its last forward pass."""

    divergence: Tensor

    def __init__(self, e: Tensor, d: Tensor, noise_std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.e, self.d = nn.Parameter(e.clone()), nn.Parameter(d.clone())
        self.s = nn.Parameter(torch.zeros_like(e), requires_grad=noise_std > 0)
        self.noise_std, self.generator = noise_std, generator

    def forward(self, x: Tensor) -> Tensor:
        """Return D z for x (batch, length, in)."""
        z = x @ self.e.T  # (batch, length, r)
        if self.noise_std:
            log_variance = x @ self.s.T + 2 * math.log(self.noise_std)
            self.divergence = divergence(z, log_variance).mean()
            z = z + (0.5 * log_variance).exp() * torch.randn(z.shape, generator=self.generator)
        return z @ self.d.T


class _KernelLinear(nn.Module):
    """A frozen layer with a kernel beside it."""

    def __init__(self, frozen: LoRALinear, kernel: _Kernel) -> None:
        super().__init__()
        self.frozen, self.kernel = frozen, kernel

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, length, in) to (batch, length, out)."""
        y: Tensor = self.frozen(x) + self.frozen.scale * self.kernel(x)
        return y


def _with_kernels(model: SASRec, kernels: dict[str, _Kernel]) -> SASRec:
    """Return a copy of the model's modules, over the same tensors, with kernels at the adapted layers."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    wrapped = copy.deepcopy(model, tensors)
    for name, kernel in kernels.items():
        layer = wrapped.get_submodule(name)
        require(isinstance(layer, LoRALinear), "adapter layers must have been attached to the model", name=name)
        wrapped.set_submodule(name, _KernelLinear(layer, kernel))  # type: ignore[arg-type]
    return wrapped


def _optimizer(config: CompressionConfig, kernels: dict[str, _Kernel]) -> torch.optim.Optimizer:
    parameters = [p for kernel in kernels.values() for p in kernel.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.learning_rate)
    return torch.optim.SGD(parameters, lr=config.learning_rate)
