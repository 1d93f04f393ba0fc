"""Bases other than SASRec: every engine that takes one gives what plain autograd gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, initial_adapter
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.delta import delta_of
from ownlet.shared.errors import ConfigError, PrivacyError
from ownlet.shared.lora import applied, attach
from ownlet.shared.noise import AesNoise
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.recommender import Recommender, ScoredModule
from ownlet.shared.sites import Form
from ownlet.shared.windows import Windows, cut_windows
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.evaluate import Cases, model_ranks
from ownlet.simulations.examples.gru import GRURecommender
from ownlet.simulations.model_gradients import held_bytes

ITEMS, DIM = 30, 8
PLAN = Plan(steps=4, learning_rate=0.5, sample_rate=0.6, expected_batch=2.0, clip_norm=0.05, noise_multiplier=0.7)


class Shared(nn.Module):
    """The same linear layer used twice, on (batch, length, d) and on (batch, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.user = nn.Embedding(ITEMS + 1, DIM), nn.Linear(DIM, DIM)
        self.deep = nn.Sequential(nn.Tanh(), self.user, nn.LayerNorm(DIM))

    def forward(self, history: Tensor) -> Tensor:
        x = self.deep(self.items(history).cumsum(1))  # (batch, length, d)
        start = self.user(self.items(history[:, 0]))  # (batch, d)
        return (x + start.unsqueeze(1)) @ self.items.weight.T


def make(name: str, *, train_a: bool = False, form: Form = "lora") -> tuple[Recommender, AdapterSpec, Vector]:
    torch.manual_seed(3)
    model: GRURecommender | ScoredModule
    if name == "gru":
        model, targets = GRURecommender(ITEMS, 8, DIM).eval(), ("gates_of_input", "gates_of_state")
    else:
        scored = ScoredModule(Shared(), lambda module, history: module(history), num_items=ITEMS, max_length=8)
        model, targets = scored.eval(), ("deep.1",)
    spec = attach(
        model,
        target_modules=targets,
        rank=2,
        alpha=4.0,
        base_hash=hash_state(model.state_dict()),
        train_a=train_a,
        form=form,
    )
    vector = initial_adapter(spec, 0)
    vector[spec.size_a :] = np.random.default_rng(1).normal(0, 0.1, spec.size - spec.size_a)
    return model, spec, vector


def users() -> list[Windows]:
    rng = np.random.default_rng(0)
    return [cut_windows(rng.integers(1, ITEMS + 1, n), WindowConfig(window_length=6)) for n in (20, 3, 0, 31)]


def sampled_softmax(scores: Tensor, target: Tensor, valid: Tensor, negatives: Tensor) -> Tensor:
    """Compute the loss of one window, position by position: each negative stands for N / n items."""
    losses = []
    for row, answer in zip(scores[valid > 0], target[valid > 0], strict=True):
        others = row[negatives[negatives != answer]] + math.log(ITEMS / len(negatives))
        losses.append(torch.logsumexp(torch.cat([row[answer, None], others]), 0) - row[answer])
    return torch.stack(losses).mean()


def trained_alone(
    model: Recommender, spec: AdapterSpec, vector: Vector, windows: Windows, plan: Plan, noise: AesNoise
) -> Vector:
    """Train one user with autograd alone: a loop over windows, each with a pass of its own."""
    current = torch.from_numpy(vector.copy())
    for _ in range(plan.steps):
        chosen = np.flatnonzero(noise.poisson_mask(len(windows), plan.sample_rate))
        negatives = noise.negatives(len(windows), plan.num_negatives, ITEMS) if plan.num_negatives else None
        total = torch.from_numpy(noise.gaussian(spec.num_trainable, plan.noise_std).astype(np.float32))
        for row in chosen:
            history, target, valid = (
                torch.from_numpy(part[row : row + 1]) for part in (windows.history, windows.target, windows.valid)
            )
            flat = current.clone().requires_grad_()
            with applied(model, spec.split(flat)):  # type: ignore[arg-type]
                scores = model(history)
            if negatives is None:
                loss = softmax_loss(scores, target, valid)
            else:
                loss = sampled_softmax(scores[0], target[0], valid[0], torch.from_numpy(negatives[row]))
            (gradient,) = torch.autograd.grad(loss.sum(), flat)
            part = gradient[spec.trainable]
            total += part * min(1.0, plan.clip_norm / max(1e-12, float(part.norm())))
        current[spec.trainable] -= plan.learning_rate / plan.expected_batch * total
    return current.numpy()


@pytest.mark.parametrize("plan", [PLAN, Plan(steps=2, num_negatives=5, clip_norm=math.inf)], ids=["full", "sampled"])
@pytest.mark.parametrize(("form", "train_a"), [("lora", False), ("lora", True), ("bottleneck", True)])
@pytest.mark.parametrize("name", ["gru", "shared"])
def test_cohort_and_opacus_give_what_autograd_gives_window_by_window(
    name: str, form: Form, train_a: bool, plan: Plan
) -> None:
    model, spec, vector = make(name, train_a=train_a, form=form)
    want = np.stack([trained_alone(model, spec, vector, w, plan, AesNoise.seeded(n)) for n, w in enumerate(users())])
    assert np.abs(delta_of(spec, want, vector)).max() > 1e-3
    engines: list[Engine] = [OpacusEngine(model, spec), CohortEngine(model, spec, chunk_bytes=1, threads=2)]
    engines.append(CohortEngine(model, spec, threads=1))
    for engine in engines:
        got = engine.train(vector, users(), plan, [AesNoise.seeded(n) for n in range(4)])
        np.testing.assert_allclose(delta_of(spec, got, vector), delta_of(spec, want, vector), rtol=1e-4, atol=1e-6)


def test_a_foreign_base_is_left_bit_identical() -> None:
    model, spec, vector = make("gru")
    CohortEngine(model, spec).train(vector, users(), PLAN, [AesNoise.seeded(n) for n in range(4)])
    assert hash_state(model.state_dict()) == spec.base_hash  # type: ignore[attr-defined]


def test_engines_refuse_what_privacy_does_not_cover() -> None:
    class Centred(Shared):
        def forward(self, history: Tensor) -> Tensor:
            scores = super().forward(history)
            return scores - scores.mean(0, keepdim=True)

    model = ScoredModule(Centred(), lambda module, history: module(history), num_items=ITEMS, max_length=8).eval()
    spec = attach(model, target_modules=("user",), rank=2, alpha=4.0, base_hash="h")
    for engine in (CohortEngine, OpacusEngine):
        with pytest.raises(PrivacyError, match="must not depend on the rest of its batch"):
            engine(model, spec)


def test_low_precision_is_refused_for_a_base_without_a_written_out_form() -> None:
    model, spec, _ = make("gru")
    with pytest.raises(ConfigError, match="dtype must be float32"):
        CohortEngine(model, spec, dtype=torch.bfloat16)


def test_evaluation_ranks_a_foreign_base_with_an_adapter_per_case() -> None:
    model, spec, vector = make("gru")
    histories = tuple(np.array(h, np.int64) for h in ([3, 4], [5], list(range(1, 15))))
    cases = Cases(histories=histories, targets=np.array([7, 8, 20]))
    together = model_ranks(model, cases, spec=spec, vectors=np.stack([vector, 2 * vector, vector]))
    for row, each in enumerate((vector, 2 * vector, vector)):
        weights = spec.split(torch.from_numpy(each))
        with torch.no_grad(), applied(model, weights):  # type: ignore[arg-type]
            scores = model(torch.from_numpy(histories[row][-8:])[None])[0, -1].numpy()
        scores[[0, *histories[row]]] = -np.inf
        assert together[row] == 1 + (scores > scores[cases.targets[row]]).sum()


def test_held_bytes_grow_with_catalogue_and_length() -> None:
    sizes = {}
    for items, length in ((100, 8), (1000, 8), (100, 16)):
        model = GRURecommender(items, length, DIM).eval()
        spec = attach(model, target_modules=("gates_of_state",), rank=2, alpha=4.0, base_hash="h")
        sizes[items, length] = held_bytes(model, spec)
    scores = 4 * 8 * 900  # what 900 more items take in one table of scores for 8 positions
    assert scores <= sizes[1000, 8] - sizes[100, 8] <= 6 * scores
    assert sizes[100, 16] > 1.5 * sizes[100, 8]
