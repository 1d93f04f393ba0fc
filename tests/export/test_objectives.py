"""A bundle for another objective: one that trains, agrees with its golden vectors, grows, and refuses other plans."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from ownlet.cli.export import _objective
from ownlet.device import Personalizer
from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.export.bundle import write_bundle
from ownlet.export.frozen import FrozenBase
from ownlet.export.golden import GOLDEN_FILE, write_golden
from ownlet.export.grow import grow_catalogue
from ownlet.export.objectives import candidate_gradient
from ownlet.shared.adapter import load_adapter
from ownlet.shared.candidates import CandidateSampler
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.frequencies import open_frequencies
from ownlet.shared.interactions import Item
from ownlet.shared.manifest import read_manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.objectives import sampled_loss
from ownlet.shared.windows import cut_windows

WINDOWS = WindowConfig(window_length=6)


@pytest.mark.parametrize("objective", ["softmax", "bpr", "bce", "listnet"])
def test_the_written_out_gradient_is_that_of_the_loss(tiny: Any, objective: Any) -> None:
    """Of hidden states, by autograd through the shared loss over a table of all scores."""
    columns = FrozenBase.of(tiny.model).item_columns()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 6, 16, generator=generator, requires_grad=True)
    target = torch.randint(1, 51, (3, 6), generator=generator)
    drawn = torch.randint(1, 51, (3, 5), generator=generator)
    drawn[:, 0] = target[:, 0]
    config = ObjectiveConfig(objective=objective, num_negatives=5, calibration=0.5 if objective == "bce" else 0.0)
    candidates = CandidateSampler(config, 50).candidates(drawn.numpy())
    scores = torch.cat([torch.zeros(3, 6, 1), hidden @ columns], -1)
    (want,) = torch.autograd.grad(sampled_loss(scores, target, torch.ones(3, 6), candidates).sum() * 6, hidden)
    kept = (drawn.unsqueeze(1) != target.unsqueeze(2)).float()
    extra = {"softmax": (candidates.correction,), "bce": (torch.tensor(candidates.positive_weight),)}
    got = candidate_gradient(objective, hidden.detach(), columns, target, drawn, kept, *extra.get(objective, ()))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_bundle_of_another_objective_does_all_that_a_bundle_does(tiny: Any, tmp_path: Path) -> None:
    model, folder = copy.deepcopy(tiny.model), tmp_path / "bundle"
    model.frequencies = torch.arange(51)
    manifest = write_bundle(
        folder,
        model,
        tiny.spec,
        tiny.vector,
        version=1,
        items=tiny.items,
        windows=WINDOWS,
        batches=(2,),
        backend="portable",
        objective="bce",
        num_negatives=3,
    )
    assert (manifest.objective, manifest.num_negatives) == ("bce", 3)
    assert read_manifest(folder) == manifest
    np.testing.assert_array_equal(open_frequencies(folder / "frequencies.safetensors"), np.arange(51))

    write_golden(folder, tmp_path / "golden", model)
    golden = load_file(tmp_path / "golden" / GOLDEN_FILE)
    with safe_open(tmp_path / "golden" / GOLDEN_FILE, framework="np") as file:
        plan = Plan(**json.loads(file.metadata()["plan"]))
    assert (plan.objective, plan.num_negatives) == ("bce", 3)
    engine, (_, start, _) = ExecutorchEngine.open(folder), load_adapter(folder / "adapter.safetensors")
    windows = cut_windows(golden["training/events"], WINDOWS)
    (trained,) = engine.train(start, [windows], plan, [AesNoise(golden["noise/key"].tobytes())])
    np.testing.assert_allclose(trained, golden["training/vector"], rtol=1e-4, atol=1e-6)

    with Personalizer.open(folder, tmp_path / "state") as personalizer:
        for at in range(20):
            personalizer.record(f"item-{1 + at % 7}", timestamp=1_000 + at)
        assert personalizer.train().steps_done == 1  # by default with the bundle's own objective
        with pytest.raises(ConfigError, match="num_negatives must be 3"):
            personalizer.update(FederationConfig(unit="none", windows=WINDOWS))

    new = [Item(number=51, id="new")]
    grow_catalogue(folder, tmp_path / "grown", new, np.ones((1, 16), np.float32))
    assert open_frequencies(tmp_path / "grown" / "frequencies.safetensors").tolist() == [*range(51), 0]
    popular = replace(plan, negatives="popularity")
    ExecutorchEngine.open(tmp_path / "grown").train(start, [windows], popular, [AesNoise.seeded(0)])


def test_export_takes_the_objective_of_the_run_where_a_program_can_have_it() -> None:
    def terms(**plan: Any) -> FederationConfig:
        return FederationConfig(unit="none", plan=Plan(**plan))

    assert _objective(None, None, None) == ("softmax", 0)
    assert _objective(None, None, terms(objective="bpr", num_negatives=4)) == ("bpr", 4)
    assert _objective(None, 7, terms(num_negatives=4)) == ("softmax", 7)
    assert _objective("bce", 7, terms(objective="bpr", num_negatives=4)) == ("bce", 7)
    assert _objective("softmax", None, terms(objective="bpr", num_negatives=4)) == ("softmax", 0)
    assert _objective(None, None, terms(objective="lambda", num_negatives=4)) == ("softmax", 0)
