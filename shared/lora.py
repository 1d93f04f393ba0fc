"""Adapters whose weights are inputs, not parameters: attached once, applied for the duration of a forward pass.

Because A and B are handed in, and may differ from example to example, the same code serves one device, per-example
gradients (expand the adapter over the batch, differentiate once) and a stacked cohort. The forms of an adapter stand in
``shared/sites.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, LayerShape, hash_state
from ownlet.shared.config import AdapterConfig
from ownlet.shared.errors import AdapterError, ConfigError, require
from ownlet.shared.methods import METHODS, targets_of
from ownlet.shared.sites import FORMS, Form, LoRALinear, PrefixSite

__all__ = ["LoRALinear", "applied", "attach", "attach_adapter", "attach_spec", "replace_module"]

LayerWeights = Mapping[str, tuple[Tensor, Tensor]]


def attach(
    model: nn.Module,
    *,
    target_modules: Sequence[str],
    rank: int,
    alpha: float,
    base_hash: str,
    train_a: bool = False,
    form: Form = "lora",
) -> AdapterSpec:
    """Freeze the model and put adapter sites in the place of its target modules.

    A module that stands in several places of the model is one: it carries one adapter, under its first name.

    Args:
        model: any module with ``nn.Linear`` layers; for a prefix one that has a ``PrefixSite``.
        target_modules: last parts of names (``"query"``) or whole dotted names (``"blocks.0.query"``).
        rank: the inner dimension r of A (r, in) and B (out, r).
        alpha: what the adapter adds is scaled by alpha / rank.
        base_hash: the hash of the base that the adapter belongs to (``adapter.hash_state``).
        train_a: train A as well as B; the default freezes A (FFA-LoRA, https://arxiv.org/abs/2403.12313).
        form: how the adapter enters, one of ``sites.FORMS``.

    Returns:
        The spec of an adapter for this model; its layers are in the model's own order.

    Raises:
        ConfigError: a target matches nothing that can carry the adapter, or the rank exceeds a layer's size.
    """
    require(rank >= 1, "rank must be at least 1", rank=rank)
    require(alpha > 0, "alpha must be positive", alpha=alpha)
    require(form in FORMS, f"form must be one of {', '.join(FORMS)}", form=form)
    site = FORMS[form]
    candidates = {n: module for n, module in model.named_modules(remove_duplicate=False) if site.accepts(module)}
    for target in target_modules:
        if not any(_matches(name, target) for name in candidates):
            raise ConfigError(
                f"target_modules must name modules that can carry the form {form}, got {target!r}; the model has "
                f"{[*candidates]}"
            )
    wanted = {m for n, m in candidates.items() if any(_matches(n, t) for t in target_modules)}
    chosen = {name: module for name, module in model.named_modules() if module in wanted}  # each under its first name
    sites = {name: site.wrap(module, alpha / rank) for name, module in chosen.items()}
    for name, one in sites.items():
        require(rank <= min(one.pair_shape), f"rank must fit layer {name}", rank=rank)
    model.requires_grad_(False)
    for name, one in sites.items():
        one.train(chosen[name].training)  # type: ignore[attr-defined]
        replace_module(model, chosen[name], one)  # type: ignore[arg-type]
    layers = tuple(
        LayerShape(name=name, in_features=one.pair_shape[0], out_features=one.pair_shape[1])
        for name, one in sites.items()
    )
    return AdapterSpec(layers=layers, rank=rank, alpha=alpha, base_hash=base_hash, train_a=train_a, form=form)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module, in place, wherever another one stands in the model."""
    for name in [name for name, module in model.named_modules(remove_duplicate=False) if module is old]:
        model.set_submodule(name, new)


def attach_adapter(model: nn.Module, config: AdapterConfig) -> AdapterSpec:
    """Attach the configured adapter to a base that has none yet; its hash is taken here. See ``attach``."""
    method = METHODS[config.method]
    return attach(
        model,
        target_modules=targets_of(config),
        rank=config.rank,
        alpha=config.alpha,
        base_hash=hash_state(model.state_dict()),
        train_a=method.train_a,
        form=method.form,
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
        form=spec.form,
    )
    if replace(found, train_b=spec.train_b) != spec:
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
        ConfigError: a name is not an adapter site of the model.
    """
    sites = []
    for name in weights:
        site = model.get_submodule(name)
        if not isinstance(site, LoRALinear | PrefixSite):
            raise ConfigError(f"adapter layers must have been attached to the model, got {name!r}")
        sites.append((site, weights[name]))
    for site, pair in sites:
        site.pair = pair
    try:
        yield
    finally:
        for site, _ in sites:
            site.pair = None
