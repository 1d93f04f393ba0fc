from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ownlet.shared.adapter import hash_state
from ownlet.shared.base import load_base_weights, save_base_weights
from ownlet.shared.errors import BundleError


def test_a_base_comes_back_with_the_same_hash_and_scores_though_an_adapter_was_attached(
    tiny: Any, tmp_path: Path
) -> None:
    save_base_weights(tmp_path / "base", tiny.model)
    model = load_base_weights(tmp_path / "base")
    assert hash_state(model.state_dict()) == tiny.spec.base_hash
    assert (model.config, model.training) == (tiny.model.config, False)
    history = torch.tensor([[3, 1, 4, 0]])
    with torch.no_grad():
        assert torch.equal(model(history), tiny.model(history))


def test_another_file_is_refused(tiny: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"content": torch.zeros(3, 2)}, tmp_path / "other")
    with pytest.raises(BundleError, match="must have format ownlet-base-1"):
        load_base_weights(tmp_path / "other")
    (tmp_path / "torn").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="readable safetensors"):
        load_base_weights(tmp_path / "torn")
    with pytest.raises(BundleError, match="readable safetensors"):
        load_base_weights(tmp_path / "missing")
    state = {name: tensor.contiguous() for name, tensor in tiny.model.state_dict().items()}
    save_file(
        {**state, "position_embedding": torch.zeros(2, 2)},
        tmp_path / "odd",
        metadata={"format": "ownlet-base-1", "config": '{"dim": 16, "num_layers": 1, "max_length": 12}'},
    )
    with pytest.raises(BundleError, match="readable safetensors"):
        load_base_weights(tmp_path / "odd")
