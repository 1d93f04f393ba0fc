"""Checks of a foreign base that no type can make: what per-window privacy, training and export rely on.

A window's gradient may depend on that window alone, or clipping it bounds nothing. What mixes examples by its nature
(batch normalisation) is refused by its name; the rest is tried out on a few random histories, which finds a mistake in
a model, not malice. None of it is needed for ``SASRec``, whose tests pin the same rules.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, initial_adapter
from ownlet.shared.errors import ConfigError, PrivacyError, require
from ownlet.shared.lora import applied
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.recommender import Recommender, module_of
from ownlet.shared.step import window_gradients

__all__ = ["check_adapter", "check_layers", "check_recommender"]

_ROWS, _TOLERANCE = 3, 1e-4


def check_layers(model: nn.Module) -> None:
    """Refuse layers whose running statistics carry one window's data into another's gradient, unseen by clipping.

    Raises:
        PrivacyError: the model has batch normalisation, or instance normalisation that tracks statistics.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise PrivacyError(f"base must not have batch normalisation, got layer {name!r}")
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise PrivacyError(f"base must not track running statistics, got layer {name!r}")


@torch.no_grad()
def check_recommender(model: Recommender) -> None:
    """Check that scores have the right shape and depend on nothing but the row's own events so far.

    Args:
        model: any base, in eval mode.

    Raises:
        PrivacyError: it keeps running statistics, is in training mode, uses chance, or mixes the rows of a batch.
        ConfigError: scores of another shape or dtype, not finite, dependent on later events, or ``score_last`` is not
            the last of them.
    """
    module = module_of(model)
    check_layers(module)
    for name, part in (("", module), *module.named_modules()):
        if part.training:
            raise PrivacyError(f"base must be in eval mode, whose layers do not use chance, got training at {name!r}")
    history = _history(model)  # (rows, length)
    scores, length = model(history), history.shape[1]
    shape = (_ROWS, length, model.num_items + 1)
    got = (tuple(scores.shape), scores.dtype)
    require(got == (shape, torch.float32), f"scores must be float32 of shape {shape}", scores=got)
    require(bool(scores.isfinite().all()), "scores must be finite, behind padding too", history=history.tolist())
    if not _equal(model(history), scores):
        raise PrivacyError("scores must not depend on chance, got two results for one batch; is there dropout left?")
    others = history.clone()
    others[1:] = model.num_items + 1 - others[1:].clamp(min=1)
    if not _equal(model(others)[0], scores[0]):
        raise PrivacyError(
            "scores of a history must not depend on the rest of its batch, got another result beside others"
        )
    if length > 1:
        later = history.clone()
        later[:, length // 2 :] = 0
        same = _equal(model(later)[:, : length // 2], scores[:, : length // 2])
        require(same, "scores must not depend on later events: mask them", changed_from=length // 2)
    lengths = torch.tensor([length, max(1, length // 2), 1])
    last = scores[torch.arange(_ROWS), lengths - 1]
    kept = history * (torch.arange(length) < lengths.unsqueeze(1))
    same = _equal(model.score_last(kept, lengths), last)
    require(same, "score_last must be the scores after the last event", lengths=lengths.tolist())


def check_adapter(model: Recommender, spec: AdapterSpec) -> None:
    """Check that the adapter reaches the scores, and that every window's gradient is what autograd gives for it alone.

    Args:
        model: a base prepared with ``attach``, which ``check_recommender`` accepts.
        spec: its adapter's spec.

    Raises:
        ConfigError: an adapted layer is not called, is bypassed where no gradient is asked for, or reads inputs whose
            first axis is not the batch.
        PrivacyError: a window's gradient depends on other windows.
    """
    history = _history(model)
    target, valid = history.flip(1).clamp(min=1), (history > 0).float()
    generator = torch.Generator().manual_seed(1)
    start = torch.from_numpy(initial_adapter(spec, 0))
    vector = start + 0.05 * torch.randn(spec.size, generator=generator)
    alone = [_gradient_alone(model, spec, vector, history[[row]], target[[row]], valid[[row]]) for row in range(_ROWS)]
    _check_used(spec, alone[0])
    try:
        _, together = window_gradients(model, spec, vector, history, target, valid)
    except RuntimeError as error:
        rule = "adapted layers must read inputs (batch, ..., in), batch first"
        raise ConfigError(f"{rule}, got another layout in one of {[layer.name for layer in spec.layers]}") from error
    for row in range(_ROWS):
        want = alone[row][spec.trainable]
        if not _equal(together[row], want):
            raise PrivacyError("a window's gradient must be its own, got another one beside other windows")
    with applied(module_of(model), spec.split(vector)):
        graded = model(history).detach()
        with torch.no_grad():
            plain = model(history)
    require(_equal(plain, graded), "adapted layers must be called without gradients too", fused_layers=True)


def _history(model: Recommender) -> Tensor:
    """Return histories (rows, length): one whole, one with padding behind, one that is padding alone."""
    length = min(model.max_length, 5)
    numbers = torch.randint(1, model.num_items + 1, (_ROWS, length), generator=torch.Generator().manual_seed(0))
    numbers[1, max(1, length - 2) :] = 0
    numbers[2] = 0
    return numbers


def _gradient_alone(
    model: Recommender, spec: AdapterSpec, vector: Tensor, history: Tensor, target: Tensor, valid: Tensor
) -> Tensor:
    """Return the gradient (P,) of one window by plain autograd; of layers that were not called it is NaN."""
    flat = {name: [part.clone().requires_grad_() for part in pair] for name, pair in spec.split(vector).items()}
    leaves = [part for pair in flat.values() for part in pair]
    with torch.enable_grad(), applied(module_of(model), {name: (a, b) for name, (a, b) in flat.items()}):
        loss = softmax_loss(model(history), target, valid).sum()
        require(loss.requires_grad, "adapted layers must be called, got none", layers=[*flat])
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
    whole = [torch.full_like(leaf, torch.nan) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
    pairs = iter(whole)
    return spec.join({name: (next(pairs), next(pairs)) for name in flat})


def _check_used(spec: AdapterSpec, gradient: Tensor) -> None:
    unused = [name for name, (_, b) in spec.split(gradient).items() if bool(b.isnan().any())]
    require(not unused, "adapted layers must be called, a fused layer may take their weights instead", unused=unused)


def _equal(got: Tensor, want: Tensor) -> bool:
    """Compare to float tolerance, relative to the largest number."""
    return torch.allclose(got, want, rtol=_TOLERANCE, atol=1e-8 + _TOLERANCE * float(want.abs().max()))
