"""The program of a base that is not SASRec: recorded from the shared step, run by the real runtime, equal to eager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device import Personalizer
from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.device.opacus_engine import OpacusEngine
from ownlet.export.decompose import decompositions
from ownlet.export.grow import grow_catalogue
from ownlet.export.model_bundle import write_model_bundle
from ownlet.export.rewrite import rewrite
from ownlet.export.simplify import simplify
from ownlet.shared.adapter import AdapterSpec, Vector, hash_state, initial_adapter
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.delta import delta_of
from ownlet.shared.errors import BundleError, ConfigError, PrivacyError
from ownlet.shared.interactions import Item
from ownlet.shared.lora import applied, attach
from ownlet.shared.manifest import Manifest, read_manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.recommender import ScoredModule
from ownlet.shared.step import dp_sgd_step
from ownlet.shared.windows import cut_windows

ITEMS, LENGTH, DIM = 25, 7, 8
WINDOWS = WindowConfig(window_length=5)
PLAN = Plan(steps=6, learning_rate=0.5, sample_rate=0.5, expected_batch=2.0, clip_norm=0.1, noise_multiplier=0.5)
CATALOGUE = tuple(Item(number=n, id=f"item-{n}", title=f"Title {n}") for n in range(1, ITEMS + 1))


class Mixer(nn.Module):
    """Mean of the events so far, a layer norm, two layers beside it, and a tied output."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.norm = nn.Embedding(ITEMS + 1, DIM), nn.LayerNorm(DIM)
        self.up, self.down = nn.Linear(DIM, 3 * DIM), nn.Linear(3 * DIM, DIM)

    def forward(self, history: Tensor) -> Tensor:
        count = torch.arange(1, history.shape[1] + 1).view(1, -1, 1)
        x = self.items(history).cumsum(1) / count  # (batch, length, d)
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x @ self.items.weight.T


def make(module: nn.Module) -> tuple[ScoredModule, AdapterSpec, Vector]:
    model = ScoredModule(module, lambda m, history: m(history), num_items=ITEMS, max_length=LENGTH).eval()
    spec = attach(
        model, target_modules=("up", "down"), rank=2, alpha=4.0, base_hash=hash_state(model.state_dict()), train_a=True
    )
    vector = initial_adapter(spec, 0)
    vector[spec.size_a :] = np.random.default_rng(0).normal(0, 0.1, spec.size - spec.size_a)
    return model, spec, vector


def write(folder: Path, base: tuple[ScoredModule, AdapterSpec, Vector], **options: Any) -> Manifest:
    model, spec, vector = base
    settings = {"version": 2, "items": CATALOGUE, "windows": WINDOWS, "batches": (2,), "backend": "portable"} | options
    return write_model_bundle(folder, model, spec, vector, **settings)


@pytest.fixture(scope="module")
def base() -> tuple[ScoredModule, AdapterSpec, Vector]:
    torch.manual_seed(5)
    return make(Mixer())


@pytest.fixture(scope="module")
def bundle(base: tuple[ScoredModule, AdapterSpec, Vector], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "mixer"
    write(folder, base)
    return folder


def eager(base: tuple[ScoredModule, AdapterSpec, Vector], history: NDArray[np.int64]) -> NDArray[np.float32]:
    model, spec, vector = base
    row = torch.zeros(1, LENGTH, dtype=torch.int64)
    kept = torch.from_numpy(history[-LENGTH:])
    row[0, : len(kept)] = kept
    with torch.no_grad(), applied(model, spec.split(torch.from_numpy(vector))):
        scores: NDArray[np.float32] = model(row)[0, max(0, len(kept) - 1)].numpy()
    return scores


def test_the_manifest_says_that_the_program_takes_no_item_table(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert not manifest.has_item_table
    assert sorted(path.name for path in bundle.iterdir()) == [
        "adapter.safetensors",
        "items.jsonl",
        "manifest.json",
        "program.pte",
    ]
    assert [method.name for method in manifest.methods] == ["score", "step_2", "loss"]
    assert [entry.name for entry in manifest.method("step_2").arguments] == [
        "vector",
        "history",
        "target",
        "valid",
        "noise",
        "clip",
        "rate",
    ]
    assert manifest.method("score").results[0].shape == (1, -1)


def test_the_program_trains_as_opacus_and_the_eager_step_do(
    base: tuple[ScoredModule, AdapterSpec, Vector], bundle: Path
) -> None:
    model, spec, vector = base
    events = np.random.default_rng(1).integers(1, ITEMS + 1, 23)
    windows, noise = cut_windows(events, WINDOWS), AesNoise.seeded(0)
    rows = [torch.from_numpy(part) for part in (windows.history, windows.target, windows.valid)]
    clip, rate = torch.tensor(PLAN.clip_norm), torch.tensor(PLAN.learning_rate / PLAN.expected_batch)
    current, sizes = torch.from_numpy(vector), []
    for _ in range(PLAN.steps):
        mask = noise.poisson_mask(len(windows), PLAN.sample_rate)
        drawn = torch.from_numpy(noise.gaussian(spec.num_trainable, PLAN.noise_std))
        valid = rows[2] * torch.from_numpy(mask)[:, None]
        current, _, _ = dp_sgd_step(model, spec, current, rows[0], rows[1], valid, drawn, clip, rate)
        sizes.append(int(mask.sum()))
    assert max(sizes) > 2  # more than one call of the program
    want = delta_of(spec, current.numpy(), vector)
    assert np.abs(want).max() > 1e-2
    for engine in (ExecutorchEngine.open(bundle), OpacusEngine(model, spec)):
        got = engine.train(vector, [windows], PLAN, [AesNoise.seeded(0)])[0]
        np.testing.assert_allclose(delta_of(spec, got, vector), want, rtol=1e-4, atol=1e-6)


def test_an_empty_batch_gets_its_noise_alone(base: tuple[ScoredModule, AdapterSpec, Vector], bundle: Path) -> None:
    _, spec, vector = base
    plan, noise = Plan(steps=1, clip_norm=0.1, noise_multiplier=0.5, learning_rate=1.0), AesNoise.seeded(3)
    nothing = cut_windows(np.zeros(0, np.int64), WINDOWS)
    noise.poisson_mask(0, 1.0)
    want = -noise.gaussian(spec.num_trainable, plan.noise_std)
    got = ExecutorchEngine.open(bundle).train(vector, [nothing], plan, [AesNoise.seeded(3)])[0]
    np.testing.assert_allclose(delta_of(spec, got, vector), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_events", [0, 1, 4, LENGTH, LENGTH + 5])
def test_scores_are_those_of_eager_for_histories_of_any_length(
    base: tuple[ScoredModule, AdapterSpec, Vector], bundle: Path, num_events: int
) -> None:
    history = np.random.default_rng(num_events).integers(1, ITEMS + 1, num_events)
    got = ExecutorchEngine.open(bundle).score(base[2], history)
    np.testing.assert_allclose(got[1:], eager(base, history)[1:], rtol=1e-4, atol=1e-5)


def test_the_personalizer_opens_the_bundle_recommends_and_trains(
    base: tuple[ScoredModule, AdapterSpec, Vector], bundle: Path, tmp_path: Path
) -> None:
    history = np.array([3, 9, 4, 12, 7, 1, 20, 6, 2], np.int64)
    with Personalizer.open(bundle, tmp_path / "state") as personalizer:
        for second, number in enumerate(history):
            personalizer.record(f"item-{number}", timestamp=1_700_000_000.0 + second)
        scores = eager(base, history)
        scores[[0, *history]] = -np.inf
        best = [f"item-{number}" for number in np.argsort(-scores, kind="stable")[:5]]
        assert [found.item for found in personalizer.recommend(5)] == best
        assert personalizer.train().steps_done == 1


def test_a_catalogue_inside_the_program_does_not_grow(bundle: Path, tmp_path: Path) -> None:
    new = Item(number=ITEMS + 1, id="new", title="New")
    reason = "must have an item table to grow"
    with pytest.raises(BundleError, match=reason):
        grow_catalogue(bundle, tmp_path / "grown", [new], np.zeros((1, DIM), np.float32))
    (tmp_path / "new.jsonl").write_text('{"id": "new"}\n')
    command = ["grow", "--bundle", str(bundle), "--base", "no.pt", "--items", str(tmp_path / "new.jsonl")]
    done = CliRunner().invoke(build_app(COMMANDS), [*command, "--out", str(tmp_path / "grown")])
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())
    assert not (tmp_path / "grown").exists()


class Branching(Mixer):
    """Looks at a number of the history to choose its path."""

    def forward(self, history: Tensor) -> Tensor:
        scores = super().forward(history)
        return scores if int(history.sum()) >= 0 else -scores


def test_a_base_that_chooses_its_path_by_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="must be traceable by make_fx"):
        write(tmp_path / "b", make(Branching()))
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_mixes_windows_or_does_not_fit_is_refused(
    base: tuple[ScoredModule, AdapterSpec, Vector], tmp_path: Path
) -> None:
    class Centred(Mixer):
        def forward(self, history: Tensor) -> Tensor:
            scores = super().forward(history)
            return scores - scores.mean(0, keepdim=True)

    with pytest.raises(PrivacyError, match="rest of its batch"):
        write(tmp_path / "b", make(Centred()))
    with pytest.raises(ConfigError, match="row_length must be at most max_length 7"):
        write(tmp_path / "b", base, windows=WindowConfig(window_length=8))
    with pytest.raises(ConfigError, match="items must be 25"):
        write(tmp_path / "b", base, items=CATALOGUE[:-1])
    other, _, _ = make(Mixer())
    with pytest.raises(BundleError, match="base must be"):
        write(tmp_path / "b", (other, *base[1:]))
    assert list(tmp_path.iterdir()) == []


def products(x: Tensor, vector: Tensor) -> tuple[Tensor, ...]:
    """Take every form that the rewrites know: x (3, 4, 6), vector (24,)."""
    constant, bias = torch.arange(30.0).view(6, 5) / 30, torch.arange(5.0)
    matrix = vector.view(4, 6)
    expanded = x @ matrix.mT.expand(3, 6, 4)  # a batched product with one matrix
    back = torch.bmm(expanded.transpose(1, 2), x).transpose(1, 2)  # (3, 6, 4)
    flat = torch.addmm(bias, x.reshape(12, 6), constant)  # a constant weight
    pieces = torch.stack([x.select(2, at) for at in range(6)], dim=0)  # six parts
    computed = x[0] @ matrix.T  # both sides computed
    moved = x.permute(2, 0, 1).contiguous().view(2, 36).t().squeeze(0).unsqueeze(1)
    return expanded, back, flat.view(3, 4, 5), pieces, computed, moved


def test_rewriting_changes_no_number() -> None:
    x, vector = torch.randn(3, 4, 6), torch.randn(24)
    graph = make_fx(products, decomposition_table=decompositions())(torch.ones(3, 4, 6), torch.ones(24))
    simplify(graph)
    rewrite(graph)
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    aten = torch.ops.aten
    assert aten.linear.default in called
    assert not called & {aten.mm.default, aten.addmm.default, aten.transpose.int, aten.t.default, aten.view.default}
    widest = max(len(node.args[0]) for node in graph.graph.nodes if node.target is aten.cat.default)
    assert widest <= 4
    for got, want in zip(graph(x, vector), products(x, vector), strict=True):
        torch.testing.assert_close(got, want)


def calls(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """Take every call that has a rule of its own, and each in a case that the rule leaves to PyTorch."""
    x = x.detach().requires_grad_()
    normal = nn.functional.layer_norm(x, (6,), weight, weight + 1)
    plain = nn.functional.layer_norm(x, (4, 6))
    parts = [
        normal,
        plain,
        torch.softmax(x, -1),
        torch.softmax(x, 1),
        torch.relu(x),
        nn.functional.threshold(x, 0.5, 0.0),
        torch.logsumexp(x, -1),
        torch.logsumexp(x, 1),
        torch.logsumexp(x, -1, keepdim=True),
        x[..., 1:4],
        x[:, 1:3],
        x[..., ::2],
    ]
    loss = torch.stack([(part * part.cos()).sum() for part in parts]).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return (*(part.detach() for part in parts), gradient)


def test_decompositions_change_no_number_forward_or_backward() -> None:
    x, weight = torch.randn(3, 4, 6), torch.rand(6)
    with torch.enable_grad():
        graph = make_fx(calls, decomposition_table=decompositions())(torch.randn(3, 4, 6), torch.ones(6))
        for got, want in zip(graph(x, weight), calls(x, weight), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    aten = torch.ops.aten
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert not called & {aten.native_layer_norm_backward.default, aten.threshold_backward.default}
    assert aten.linear.default in called or aten.mm.default in called  # sums over the last axis are products
