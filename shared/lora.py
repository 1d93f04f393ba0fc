"""LoRA whose weights are inputs, not parameters (Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1).

``LoRALinear`` computes ``y = x Wᵀ + b + (alpha / rank) · (x Aᵀ) Bᵀ`` where A and B are handed in for the duration of a
forward pass. Either may carry a leading batch dimension, one adapter per example: the same broadcasting matmul then
serves one device, per-example gradients (expand the adapter over the batch, differentiate once) and a stacked cohort.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, LayerShape, hash_state
from ownlet.shared.config import AdapterConfig
from ownlet.shared.errors import AdapterError, ConfigError, require

__all__ = ["LoRALinear", "applied", "attach", "attach_adapter", "attach_spec"]

LayerWeights = Mapping[str, tuple[Tensor, Tensor]]


class LoRALinear(nn.Linear):
    """A frozen linear layer that adds a low-rank term while an adapter is applied.

    It keeps the parameter names of ``nn.Linear``, so a state dict fits before and after ``attach``.
    """

    scale: float
    lora: tuple[Tensor, Tensor] | None

    @classmethod
    def wrap(cls, linear: nn.Linear, scale: float) -> LoRALinear:
        """Return a layer that shares the weight and bias of ``linear``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.scale, layer.lora = scale, None
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map x (batch, ..., in) to (batch, ..., out)."""
        y = nn.functional.linear(x, self.weight, self.bias)
        if self.lora is None:
            return y
        a, b = self.lora  # a (r, in) or (batch, r, in); b (out, r) or (batch, out, r)
        if x.dim() == 2 and (a.dim() == 3 or b.dim() == 3):
            x = x.unsqueeze(1)  # (batch, 1, in): one row per example
            return y + self.scale * ((x @ a.mT) @ b.mT).squeeze(1)
        return y + self.scale * ((x @ a.mT) @ b.mT)


def attach(
    model: nn.Module,
    *,
    target_modules: Sequence[str],
    rank: int,
    alpha: float,
    base_hash: str,
    train_a: bool = False,
) -> AdapterSpec:
    """Freeze the model and replace its target linear layers, in place, with ``LoRALinear``.

    Args:
        model: any module with ``nn.Linear`` layers.
        target_modules: last parts of layer names (``"query"``) or whole dotted names (``"blocks.0.query"``).
        rank: the inner dimension r of A (r, in) and B (out, r).
        alpha: the low-rank term is scaled by alpha / rank.
        base_hash: the hash of the base that the adapter belongs to (``adapter.hash_state``).
        train_a: train A as well as B; the default freezes A (FFA-LoRA, https://arxiv.org/abs/2403.12313).

    Returns:
        The spec of an adapter for this model; its layers are in the model's own order.

    Raises:
        ConfigError: a target matches no linear layer, or the rank exceeds a layer's size.
    """
    require(rank >= 1, "rank must be at least 1", rank=rank)
    require(alpha > 0, "alpha must be positive", alpha=alpha)
    model.requires_grad_(False)
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    for target in target_modules:
        if not any(_matches(name, target) for name in linears):
            raise ConfigError(
                f"target_modules must name linear layers of the model, got {target!r}; it has {[*linears]}"
            )
    chosen = {n: m for n, m in linears.items() if any(_matches(n, t) for t in target_modules)}
    for name, linear in chosen.items():
        require(rank <= min(linear.in_features, linear.out_features), f"rank must fit layer {name}", rank=rank)
        model.set_submodule(name, LoRALinear.wrap(linear, alpha / rank))
    layers = tuple(
        LayerShape(name=n, in_features=m.in_features, out_features=m.out_features) for n, m in chosen.items()
    )
    return AdapterSpec(layers=layers, rank=rank, alpha=alpha, base_hash=base_hash, train_a=train_a)


def attach_adapter(model: nn.Module, config: AdapterConfig) -> AdapterSpec:
    """Attach the configured adapter to a base that has none yet; its hash is taken here. See ``attach``."""
    return attach(
        model,
        target_modules=config.target_modules,
        rank=config.rank,
        alpha=config.alpha,
        base_hash=hash_state(model.state_dict()),
        train_a=config.train_a,
    )


def attach_spec(model: nn.Module, spec: AdapterSpec) -> None:
    """Attach the layers of an adapter that exists already. See ``attach``.

    Raises:
        ConfigError: the model lacks one of its layers.
        AdapterError: a layer has another shape than the adapter's.
    """
    found = attach(
        model,
        target_modules=[layer.name for layer in spec.layers],
        rank=spec.rank,
        alpha=spec.alpha,
        base_hash=spec.base_hash,
        train_a=spec.train_a,
    )
    if found != spec:
        raise AdapterError(f"adapter must fit the layers of the base, got {spec.layers} for {found.layers}")


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


@contextmanager
def applied(model: nn.Module, weights: LayerWeights) -> Iterator[None]:
    """Apply adapter weights for the forward passes inside the block.

    Args:
        model: a model prepared with ``attach``.
        weights: layer name -> (A, B), as ``AdapterSpec.split`` gives them.

    Raises:
        ConfigError: a name is not a ``LoRALinear`` of the model.
    """
    layers = []
    for name in weights:
        layer = model.get_submodule(name)
        require(isinstance(layer, LoRALinear), "adapter layers must have been attached to the model", name=name)
        layers.append((layer, weights[name]))
    for layer, pair in layers:
        layer.lora = pair  # type: ignore[assignment]
    try:
        yield
    finally:
        for layer, _ in layers:
            layer.lora = None  # type: ignore[assignment]
