"""The judging of a deployed run does with public users what a simulated run does with them."""

import json
from pathlib import Path

import numpy as np
import torch

from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.shared.window_mode import window_federation
from ownlet.simulations.deployed_server import JudgingConfig, load_judging
from ownlet.simulations.line_search import best_length
from ownlet.simulations.pretrain import save_base
from ownlet.simulations.setting import DataConfig, load_interactions, prepare

DATA = DataConfig(num_users=60, num_items=130, core=0)


def test_a_window_level_run_goes_as_far_as_the_held_out_public_users_like(tmp_path: Path) -> None:
    items = load_interactions(DATA).items
    torch.manual_seed(3)
    content = torch.cat([torch.zeros(1, 6), torch.randn(len(items), 6)])
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=20), content).eval()
    save_base(tmp_path / "base.pt", model, items)
    spec = attach_adapter(model, AdapterConfig(rank=4))
    start = initial_adapter(spec, 0)
    end = start.copy()
    end[spec.trainable] = np.random.default_rng(1).normal(0, 3.0, spec.num_trainable)
    chosen = JudgingConfig(base=tmp_path / "base.pt", data=DATA, spec=spec.to_json())
    values = json.loads(json.dumps(chosen.to_plain()))

    best, length = best_length(model, spec, start, end, prepare(DATA).validation)
    assert length != 1.0
    found = load_judging(values, window_federation(1.0)).length(start, end)
    np.testing.assert_array_equal(found[0], best)
    assert found[1] == length
    kept = load_judging(values, FederationConfig()).length(start, end)
    np.testing.assert_array_equal(kept[0], end)
    assert kept[1] == 1.0
