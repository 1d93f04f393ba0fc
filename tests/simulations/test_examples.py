"""The examples of docs/your_model.md go all the way, through the real runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state
from ownlet.shared.config import AdapterConfig
from ownlet.shared.lora import attach
from ownlet.shared.manifest import read_manifest
from ownlet.shared.probe import check_adapter, check_recommender
from ownlet.simulations.evaluate import Cases
from ownlet.simulations.examples.gru import GRURecommender
from ownlet.simulations.examples.hf_encoder import encoder_recommender
from ownlet.simulations.examples.walk import walk
from ownlet.simulations.pretrain import PretrainConfig, train_base


def test_the_linear_cell_is_that_of_pytorchs_gru() -> None:
    model = GRURecommender(20, 9, 8).eval()
    fused = torch.nn.GRU(8, 8, batch_first=True)
    fused.load_state_dict(
        {
            "weight_ih_l0": model.gates_of_input.weight,
            "bias_ih_l0": model.gates_of_input.bias,
            "weight_hh_l0": model.gates_of_state.weight,
            "bias_hh_l0": model.gates_of_state.bias,
        }
    )
    history = torch.randint(1, 21, (4, 7))
    with torch.no_grad():
        want, _ = fused(model.items(history))
        torch.testing.assert_close(model.states(history), want)


def test_an_encoder_of_transformers_is_causal_and_carries_an_adapter() -> None:
    pytest.importorskip("transformers")
    model = encoder_recommender(20, 9).eval()
    check_recommender(model)
    targets = ("q_lin", "v_lin", "lin1", "lin2")
    spec = attach(model, target_modules=targets, rank=2, alpha=4.0, base_hash=hash_state(model.state_dict()))
    assert {layer.name.rsplit(".", 1)[-1] for layer in spec.layers} == set(targets)
    check_adapter(model, spec)


def test_any_base_learns_what_follows_what() -> None:
    torch.manual_seed(0)
    model = GRURecommender(10, 6, 16)
    histories = [np.array([start, start % 10 + 1, (start + 1) % 10 + 1]) for start in range(1, 11)] * 4
    cases = Cases(histories=tuple(np.array([n]) for n in range(1, 11)), targets=np.arange(1, 11) % 10 + 1)
    epochs = []
    recipe = PretrainConfig(max_epochs=30, patience=30, batch_size=20, learning_rate=0.02, warmup_steps=2)
    train_base(model, histories, cases, recipe, on_epoch=epochs.append)
    assert not model.training
    assert max(epoch.ndcg for epoch in epochs) > 0.95
    assert epochs[-1].loss < 0.5 * epochs[0].loss


@pytest.mark.slow
@pytest.mark.parametrize("example", ["gru", "hf_encoder"])
def test_an_example_goes_from_a_module_to_a_device(example: str, tmp_path: Path) -> None:
    if example == "gru":
        make, targets = GRURecommender, ("gates_of_input", "gates_of_state")
    else:
        pytest.importorskip("transformers")
        make, targets = encoder_recommender, ("q_lin", "v_lin", "lin1", "lin2")  # type: ignore[assignment]
    said: list[str] = []
    outcome = walk(make, AdapterConfig(target_modules=targets, rank=4, alpha=8.0), folder=tmp_path, say=said.append)
    assert outcome.difference < 1e-4
    assert 0 < outcome.epsilon < 5
    assert len(outcome.recommended) == 3
    assert outcome.base_ndcg > 0.06  # ten items by chance alone have .03 of 142
    manifest = read_manifest(tmp_path / "bundle")
    assert [method.name for method in manifest.methods] == ["score", "step_1", "step_4", "loss"]
    assert len(said) == 6
