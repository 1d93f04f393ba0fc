"""The reference engine: local DP-SGD as Opacus does it, held to the contract of ``device.train``.

Per-sample gradients come from Opacus' hooks (Yousefpour et al. 2021, https://arxiv.org/abs/2109.12298), clipping and
averaging from its ``DPOptimizer``. Two things are ours: batches and noise come from our ``NoiseSource``, because
Opacus' secure mode needs a package that is gone and torch's CPU generator has an effective seed of 32 bits; and an
empty batch still takes a step, because its noise is part of the mechanism.

The unit protected is one window, under add-or-remove neighbours and Poisson sampling at the plan's rate.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed
from torch import Tensor, nn

from ownlet.device.stages import rank_candidates
from ownlet.device.train import train_each
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.alternate import Part, spec_of_part
from ownlet.shared.candidates import Candidates, CandidateSampler
from ownlet.shared.config import Plan
from ownlet.shared.context import pad_context
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.interactions import pad_histories
from ownlet.shared.lora import applied, replace_module
from ownlet.shared.model import SASRec
from ownlet.shared.noise import NoiseSource
from ownlet.shared.objectives import softmax_loss, training_loss
from ownlet.shared.probe import check_adapter, check_layers, check_recommender
from ownlet.shared.ranking import RankingHead
from ownlet.shared.recommender import Recommender, known_frequencies, last_scores, module_of, scores
from ownlet.shared.sites import BottleneckLinear, LoRALinear, PrefixSite
from ownlet.shared.windows import Windows

__all__ = ["OpacusEngine"]


class _LinearPair(nn.Module):
    """A pair beside or behind a linear layer as two linear layers, whose per-sample gradients Opacus knows."""

    def __init__(self, site: LoRALinear, spec: AdapterSpec) -> None:
        super().__init__()
        self.frozen, self.scale, self.is_serial = site, site.scale, isinstance(site, BottleneckLinear)
        num_in, num_out = site.pair_shape
        self.lora_a = nn.Linear(num_in, spec.rank, bias=False).requires_grad_(spec.train_a)
        self.lora_b = nn.Linear(spec.rank, num_out, bias=False).requires_grad_(spec.train_b)
        self.trained = (self.lora_a.weight, self.lora_b.weight)
        self.lora_a.train(), self.lora_b.train()  # Opacus records in training mode only; the base stays in eval

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(x)
        inner = self.lora_a(y).relu() if self.is_serial else self.lora_a(x)
        return y + self.scale * self.lora_b(inner)  # type: ignore[no-any-return]


class _PrefixPair(nn.Module):
    """A prefix; Opacus has no rule for it and differentiates it with functorch."""

    def __init__(self, site: PrefixSite, spec: AdapterSpec) -> None:
        super().__init__()
        self.prefix = _Prefix(site, spec)
        self.trained = (self.prefix.lora_a, self.prefix.lora_b)
        self.prefix.train()

    def forward(self, mixed: Tensor, query: Tensor) -> Tensor:
        return mixed + self.prefix(query)  # type: ignore[no-any-return]


class _Prefix(nn.Module):
    """What a prefix gives for queries (batch, heads, length, d / heads)."""

    def __init__(self, site: PrefixSite, spec: AdapterSpec) -> None:
        super().__init__()
        self.num_heads, self.scale = site.num_heads, site.scale
        self.lora_a = nn.Parameter(torch.zeros(spec.rank, site.dim), requires_grad=spec.train_a)
        self.lora_b = nn.Parameter(torch.zeros(site.dim, spec.rank), requires_grad=spec.train_b)

    def forward(self, query: Tensor) -> Tensor:
        keys = self.lora_a.view(len(self.lora_a), self.num_heads, -1)  # (r, heads, d / heads)
        values = self.lora_b.view(self.num_heads, -1, self.lora_b.shape[1])  # (heads, d / heads, r)
        weights = torch.softmax(torch.einsum("bhld,rhd->bhlr", query, keys), dim=-1)
        return self.scale * torch.einsum("bhlr,hdr->bhld", weights, values)


class _EachLayerOnce(GradSampleModule):  # type: ignore[misc]
    """A ``GradSampleModule`` that hooks a layer once: Opacus 1.6 doubles the gradient of one in two places."""

    def iterate_submodules(self, module: nn.Module) -> Iterable[nn.Module]:
        """Yield the modules that get hooks."""
        yield from dict.fromkeys(super().iterate_submodules(module))


class _SourcedOptimizer(DPOptimizer):  # type: ignore[misc]
    """A ``DPOptimizer`` whose noise is one draw from a ``NoiseSource``, in the order of the adapter's vector."""

    def __init__(self, optimizer: torch.optim.Optimizer, plan: Plan, noise: NoiseSource) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.clip_norm,
            expected_batch_size=plan.expected_batch,  # a float divides as well
            loss_reduction="mean",  # divide the noised sum by the public expected batch
        )
        self._noise, self._std = noise, plan.noise_std

    def add_noise(self) -> None:
        """Add the noise of one step to the summed clipped gradients."""
        sizes = [p.numel() for p in self.params]
        drawn = torch.from_numpy(self._noise.gaussian(sum(sizes), self._std))
        for p, piece in zip(self.params, drawn.split(sizes), strict=True):
            _check_processed_flag(p.summed_grad)
            p.grad = (p.summed_grad + piece.view_as(p)).view_as(p)
            _mark_as_processed(p.summed_grad)


class OpacusEngine:
    """Trains with Opacus on a copy of the model, scores with eager PyTorch; a ``device.train.LocalEngine``."""

    def __init__(self, model: Recommender, spec: AdapterSpec, ranking: RankingHead | None = None) -> None:
        """Copy the model and wrap it, once for all users.

        Args:
            model: the frozen base, prepared with ``attach``. It is not changed.
            spec: its adapter's spec.
            ranking: the base's ranking head: then ``recommend`` has two stages.

        Raises:
            PrivacyError: the base has batch normalisation, whose running statistics would carry one window's data
                into another's gradient, unseen by clipping and noise; or it mixes windows otherwise.
            ConfigError: a base of another kind breaks a rule of ``shared.probe``.
        """
        check_layers(module_of(model))
        if not isinstance(model, SASRec):  # whose behaviour tests pin
            check_recommender(model)
            check_adapter(model, spec)
        ranks = ranking is None or isinstance(model, SASRec)
        require(ranks, "base must be a SASRec where there is a ranking head", base=type(model).__name__)
        self._spec, self._num_items, self._ranking = spec, model.num_items, ranking
        self._frequencies = known_frequencies(model)
        self._eager, self._mutex = copy.deepcopy(model), threading.Lock()
        self._parts: dict[Part, OpacusEngine] = {}
        module_of(self._eager).eval().requires_grad_(False)
        wrapped = copy.deepcopy(module_of(model)).eval().requires_grad_(False)
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for layer in spec.layers:
            site = wrapped.get_submodule(layer.name)
            pair = _pair(site, layer.name, spec)
            replace_module(wrapped, site, pair)
            self._pairs[layer.name] = pair.trained
        self._model = _EachLayerOnce(wrapped, batch_first=True, loss_reduction="sum")

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that this engine trains."""
        return self._spec

    @property
    def base_state(self) -> dict[str, Tensor]:
        """The frozen base inside the engine, under the names of the model's own state dict."""
        state = self._model._module.state_dict()
        return {k.replace(".frozen.", "."): v for k, v in state.items() if ".lora_" not in k}

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Train one adapter per user, each starting from ``vector``; see ``device.train.Engine``."""
        return train_each(self._train_user, self._spec, vector, users, plan, noises)

    def of_part(self, part: Part) -> OpacusEngine:
        """Return the engine that trains a part; see ``device.train.TrainsParts``."""
        if part == "all":
            return self
        if part not in self._parts:
            self._parts[part] = OpacusEngine(self._eager, spec_of_part(self._spec, part), self._ranking)
        return self._parts[part]

    def check_plan(self, plan: Plan) -> None:
        """Raise ConfigError where the plan's negatives need to know how frequent items are and the base does not."""
        CandidateSampler(plan, self._num_items, self._frequencies)

    def steps(self, vector: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Iterator[Vector]:
        """Train one adapter and yield it after each step; one training at a time. See ``device.train.LocalEngine``."""
        sampler = CandidateSampler(plan, self._num_items, self._frequencies)
        self._load(self._spec.check(vector))
        parameters = self._trained_parameters()
        sgd = torch.optim.SGD(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay)  # after the noise
        optimizer = _SourcedOptimizer(sgd, plan, noise)
        for _ in range(plan.steps):
            mask = noise.poisson_mask(len(windows), plan.sample_rate)
            candidates = None
            if plan.num_negatives:
                candidates = sampler.candidates(sampler.draw(noise, windows, mask)[mask])
            optimizer.zero_grad(set_to_none=True)
            if mask.any():
                self._backward(windows[mask], candidates)
            else:  # nothing to differentiate; the step still clips nothing, adds noise and moves
                for p in parameters:
                    p.grad_sample = torch.zeros(0, *p.shape)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield self._spec.check(self._store(), what="trained adapter")

    def score(
        self, vector: Vector, history: NDArray[np.int64], context: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Score every item as the next one, (num_items + 1,); see ``device.train.LocalEngine``."""
        request = self._request(history, context)
        with self._mutex, torch.no_grad(), applied(module_of(self._eager), self._spec.split(torch.from_numpy(vector))):
            last = last_scores(self._eager, *request)
        return last[0].numpy()

    def recommend(
        self,
        vector: Vector,
        history: NDArray[np.int64],
        barred: NDArray[np.bool_],
        context: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return all items that are not barred, or a ranking head's candidates, best first, and their scores."""
        scores = self.score(vector, history, context)
        allowed = np.flatnonzero(~barred[1:]) + 1
        best = allowed[np.argsort(-scores[allowed], kind="stable")]
        if self._ranking is None:
            return best, scores[best]
        return rank_candidates(best, self._ranking.config.num_candidates, partial(self._rank, vector, history, context))

    def loss(self, vector: Vector, windows: Windows) -> NDArray[np.float32]:
        """Return the loss of every window, (num_windows,)."""
        rows = [torch.from_numpy(array) for array in (windows.history, windows.target, windows.valid)]
        with self._mutex, torch.no_grad(), applied(module_of(self._eager), self._spec.split(torch.from_numpy(vector))):
            table = scores(self._eager, rows[0], _tensor(windows.context))
            losses: NDArray[np.float32] = softmax_loss(table, rows[1], rows[2]).numpy()
        return losses

    def _rank(
        self,
        vector: Vector,
        history: NDArray[np.int64],
        context: NDArray[np.int64] | None,
        candidates: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Return the ranking head's scores (1, C) of candidates (1, C)."""
        model, head = self._eager, self._ranking
        assert isinstance(model, SASRec)  # checked when the engine was made
        assert head is not None
        request = self._request(history, context)
        with self._mutex, torch.no_grad(), applied(model, self._spec.split(torch.from_numpy(vector))):
            ranked: NDArray[np.float32] = head.rank(model, torch.from_numpy(candidates), *request).numpy()
        return ranked

    def _request(
        self, history: NDArray[np.int64], context: NDArray[np.int64] | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return history (1, max_length), length (1,) and context, where any is known."""
        longest = self._eager.max_length
        row, lengths = pad_histories([history[-longest:]], longest)
        moments = None if context is None else torch.from_numpy(pad_context([context], longest, context.shape[1]))
        return torch.from_numpy(row), torch.from_numpy(lengths), moments

    def _train_user(self, start: Vector, windows: Windows, plan: Plan, noise: NoiseSource) -> Vector:
        return list(self.steps(start, windows, plan, noise))[-1]

    def _backward(self, windows: Windows, candidates: Candidates | None) -> None:
        context = () if windows.context is None else (torch.from_numpy(windows.context),)
        table = self._model(torch.from_numpy(windows.history), *context)
        target, valid = torch.from_numpy(windows.target), torch.from_numpy(windows.valid)
        losses = training_loss(table, target, valid, candidates)
        with warnings.catch_warnings():  # the first layer's input has no gradient, which is as it should be
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses.sum().backward()

    def _trained_parameters(self) -> list[Any]:
        """Parameters in the order of the vector: every A, then every B."""
        first = [a for a, _ in self._pairs.values()] if self._spec.train_a else []
        return first + ([b for _, b in self._pairs.values()] if self._spec.train_b else [])

    def _load(self, vector: Vector) -> None:
        with torch.no_grad():
            for name, (a, b) in self._spec.split(torch.from_numpy(vector)).items():
                self._pairs[name][0].copy_(a)
                self._pairs[name][1].copy_(b)

    def _store(self) -> Vector:
        weights = {name: (a.detach(), b.detach()) for name, (a, b) in self._pairs.items()}
        return self._spec.join(weights).numpy()


def _pair(site: nn.Module, name: str, spec: AdapterSpec) -> _LinearPair | _PrefixPair:
    if isinstance(site, LoRALinear):
        return _LinearPair(site, spec)
    if isinstance(site, PrefixSite):
        return _PrefixPair(site, spec)
    raise ConfigError(f"adapter layers must have been attached to the model, got {name!r}")


def _tensor(array: NDArray[np.int64] | None) -> Tensor | None:
    return None if array is None else torch.from_numpy(array)
