"""Adapters that the library PEFT reads, and PEFT's own that we read: the same scores on both sides."""

import importlib
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ownlet.shared.adapter import AdapterSpec, Vector, hash_state
from ownlet.shared.errors import AdapterError
from ownlet.shared.lora import applied, attach, attach_spec
from ownlet.shared.model import SASRec
from ownlet.shared.peft_format import CONFIG_FILE, WEIGHTS_FILE, read_peft, write_peft

HISTORY = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0]])


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    with warnings.catch_warnings():  # of what it imports
        warnings.simplefilter("ignore")
        return importlib.import_module("peft")


@pytest.fixture
def written(tiny: Any, tmp_path: Path) -> Path:
    write_peft(tmp_path / "peft", tiny.spec, tiny.vector)
    return tmp_path / "peft"


def bare(model: SASRec) -> SASRec:
    """Return the base as it was before ``attach``, a copy."""
    copy = SASRec(model.config, model.content.clone())
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def ours(model: SASRec, spec: AdapterSpec, vector: Vector) -> Tensor:
    with torch.no_grad(), applied(model, spec.split(torch.from_numpy(vector))):
        return model(HISTORY)


def change_config(folder: Path, **fields: object) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def test_real_peft_loads_our_adapter_and_scores_as_we_do(tiny: Any, written: Path, peft: ModuleType):
    model = bare(tiny.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns where keys are missing or unexpected
        loaded = peft.PeftModel.from_pretrained(model, written)
    adapted = {name for name, module in loaded.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {layer.name for layer in tiny.spec.layers}
    with torch.no_grad():
        scores = loaded(HISTORY)
    torch.testing.assert_close(scores, ours(tiny.model, tiny.spec, tiny.vector), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores, bare(tiny.model)(HISTORY), atol=1e-3)


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rank-stabilised"])
def test_we_read_an_adapter_that_peft_trained_and_score_as_it_does(
    tiny: Any, tmp_path: Path, peft: ModuleType, rslora: bool
):
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["value", "down"], use_rslora=rslora)
    trained = peft.get_peft_model(bare(tiny.model), config)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trained(HISTORY[:1])[0], HISTORY[0].roll(-1)).backward()
        optimizer.step()
    trained.save_pretrained(tmp_path)
    base = bare(tiny.model)
    spec, vector = read_peft(tmp_path, base, train_a=True)
    assert (spec.train_a, spec.base_hash) == (True, hash_state(base.state_dict()))
    assert spec.alpha == pytest.approx(6 * math.sqrt(4) if rslora else 6)
    attach_spec(base, spec)
    with torch.no_grad():
        scores = trained.eval()(HISTORY)
    torch.testing.assert_close(ours(base, spec, vector), scores, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores, bare(tiny.model)(HISTORY), atol=1e-3)


def test_what_is_written_reads_back_exactly(tiny: Any, written: Path):
    for model in (tiny.model, bare(tiny.model)):  # with and without adapter layers
        spec, vector = read_peft(written, model)
        assert spec == tiny.spec
        np.testing.assert_array_equal(vector, tiny.vector)


def test_a_layer_whose_name_is_the_end_of_another_is_not_mistaken_for_it(tmp_path: Path, peft: ModuleType):
    model = torch.nn.ModuleDict(
        {"up": torch.nn.Linear(4, 4), "deep": torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4)})}
    )
    copy = torch.nn.ModuleDict(
        {"up": torch.nn.Linear(4, 4), "deep": torch.nn.ModuleDict({"up": torch.nn.Linear(4, 4)})}
    )
    spec = attach(model, target_modules=["deep.up"], rank=2, alpha=2.0, base_hash=hash_state(model.state_dict()))
    write_peft(tmp_path, spec, np.ones(spec.size, np.float32))
    loaded = peft.PeftModel.from_pretrained(copy, tmp_path)
    assert [n for n, m in loaded.base_model.model.named_modules() if hasattr(m, "lora_A")] == ["deep.up"]
    assert read_peft(tmp_path, model)[0] == spec


def test_half_precision_becomes_float32(tiny: Any, written: Path):
    def halve(tensors: dict[str, Tensor]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    change_tensors(written, halve)
    _, vector = read_peft(written, tiny.model)
    np.testing.assert_array_equal(vector, torch.from_numpy(tiny.vector).bfloat16().float().numpy())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type must be LORA, got peft_type='LOHA'"),
        ({"rank_pattern": {"up": 2}}, "rank_pattern must be empty .* got rank_pattern={'up': 2}"),
        ({"alpha_pattern": {"up": 2}}, "alpha_pattern must be empty"),
        ({"use_dora": True}, "use_dora must be empty"),
        ({"modules_to_save": ["item_embedding"]}, "modules_to_save must be empty"),
        ({"a_variant_of_next_year": {"on": True}}, "a_variant_of_next_year must be empty"),
        ({"bias": "all"}, "bias must be none, got bias='all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be one that leaves the base as it is, got 'pissa'"),
        ({"r": 0}, "r must be a number from 1, got r=0"),
        ({"r": 3}, r"lora_A of layer blocks.0.query must have shape \(3, 16\), got shape=\(4, 16\)"),
        ({"r": 17}, "r must fit layer blocks.0.query, got r=17"),
        ({"lora_alpha": -1}, "lora_alpha must be positive, got lora_alpha=-1"),
        ({"target_modules": ["query", "output"]}, r"every layer that target_modules matches, .* \['blocks.0.output'\]"),
        ({"target_modules": "all-linear"}, "every layer that target_modules matches"),
        ({"target_modules": "("}, "target_modules must be a regular expression"),
        ({"target_modules": None}, "target_modules must be a pattern or a list of names"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_plain_lora_of_this_model_is_refused(
    tiny: Any, written: Path, fields: dict[str, object], message: str
):
    change_config(written, **fields)
    with pytest.raises(AdapterError, match=message):
        read_peft(written, tiny.model)


def test_layers_that_do_not_fit_are_refused(tiny: Any, written: Path):
    def rename(tensors: dict[str, Tensor]) -> None:
        for part in "AB":
            tensors[f"base_model.model.other.lora_{part}.weight"] = tensors.pop(
                f"base_model.model.blocks.0.up.lora_{part}.weight"
            )

    change_tensors(written, rename)
    with pytest.raises(AdapterError, match=r"must be for linear layers of the model, got \['other'\]"):
        read_peft(written, tiny.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("base_model.model.blocks.0.up.lora_B.weight"), r"lora_A and lora_B of layer blocks.0.up"),
        (lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.ones(2)}), "lora_A and lora_B of linear"),
        (lambda t: t.clear(), "at least one layer, got none"),
        (lambda t: t["base_model.model.blocks.0.up.lora_B.weight"].fill_(math.nan), "must be finite"),
    ],
    ids=["half a pair", "an embedding", "nothing", "not a number"],
)
def test_tensors_that_are_no_whole_adapter_are_refused(
    tiny: Any, written: Path, change: Callable[[dict[str, Tensor]], None], message: str
):
    change_tensors(written, change)
    with pytest.raises(AdapterError, match=message):
        read_peft(written, tiny.model)


def test_an_adapter_that_we_wrote_for_another_base_is_refused(tiny: Any, written: Path):
    other = bare(tiny.model)
    with torch.no_grad():
        other.position_embedding.add_(1)
    with pytest.raises(AdapterError, match="adapter must belong to base"):
        read_peft(written, other)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.99])
def test_missing_and_truncated_files_are_refused(tiny: Any, written: Path, name: str, share: float | None):
    path = written / name
    content = path.read_bytes()
    if share is None:
        path.unlink()
    else:
        path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AdapterError, match=f"must be readable .*{name}"):
        read_peft(written, tiny.model)


def test_pickled_weights_are_refused_by_name(tiny: Any, written: Path):
    (written / WEIGHTS_FILE).rename(written / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"must be safetensors, which cannot run code, got .*adapter_model\.bin"):
        read_peft(written, tiny.model)


def test_a_vector_that_does_not_fit_leaves_an_older_adapter_alone(tiny: Any, written: Path):
    with pytest.raises(AdapterError, match="must have shape"):
        write_peft(written, tiny.spec, tiny.vector[:-1])
    assert read_peft(written, tiny.model)[0] == tiny.spec


def test_only_lora_is_written(tiny: Any, tmp_path: Path):
    with pytest.raises(AdapterError, match="form must be lora for PEFT's files, got form='bottleneck'"):
        write_peft(tmp_path / "peft", replace(tiny.spec, form="bottleneck"), tiny.vector)
    assert not (tmp_path / "peft").exists()


def test_a_crash_between_the_files_leaves_a_folder_that_nobody_reads(tiny: Any, written: Path, monkeypatch: Any):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("ownlet.shared.peft_format.write_atomic", full)
    with pytest.raises(OSError):
        write_peft(written, tiny.spec, 2 * tiny.vector)
    with pytest.raises(AdapterError, match=CONFIG_FILE):
        read_peft(written, tiny.model)
