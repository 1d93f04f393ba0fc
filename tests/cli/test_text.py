"""``--text-encoder``: a base whose items are read by a language model, from training to new items in a bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device import Personalizer
from ownlet.export.grow import vectors_of
from ownlet.shared.adapter import hash_state
from ownlet.shared.interactions import Item
from ownlet.simulations.base_file import load_base, load_catalogue, load_text_source
from ownlet.simulations.text_content import new_text_content

WORDS = ("alien", "crew", "drama", "horror", "love", "moon", "red", "robot", "space", "wedding")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty items that follow each other, and a description of each."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("text")
    lines = ["user,item,timestamp"]
    for user in range(90):
        item = int(rng.integers(30))
        for second in range(8):
            lines.append(f"u{user},i{item},{second}")
            item = (item + 1) % 30
    (folder / "events.csv").write_text("\n".join(lines))
    texts = [{"id": f"i{n}", "text": f"{WORDS[n % 10]} {WORDS[n // 3]}"} for n in range(30)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    return folder


def pretrain(data: Path, encoder: Path, name: str, *more: object) -> Any:
    return run(
        "pretrain", "--data", data / "events.csv", "--core", 0, "--dim", 8, "--layers", 1, "--epochs", 1,
        "--runs", data / "runs", "--name", name, "--text-cache", data / "cache",
        "--text-encoder", encoder, "--item-text", data / "texts.jsonl", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(data: Path, tiny_encoder: Path) -> Path:
    lora = (
        "--text-lora", "--set", "text.tuning.epochs=1", "--set", "text.tuning.pairs_per_epoch=64",
        "--set", "text.tuning.rank=2",
    )  # fmt: skip
    done = pretrain(data, tiny_encoder, "tuned", *lora)
    assert done.exit_code == 0, done.output
    return data / "runs" / "tuned" / "base.pt"


def test_a_base_holds_the_vectors_of_its_texts_and_remembers_what_made_them(base: Path, tiny_encoder: Path) -> None:
    model, items, source = load_base(base), load_catalogue(base), load_text_source(base)
    assert model.content.shape == (31, 7)  # thirty texts have seven directions
    assert source is not None
    assert source.encoder == str(tiny_encoder)
    assert source.tuned is not None
    number = int(items[0].id[1:])
    assert items[0].description == f"{WORDS[number % 10]} {WORDS[number // 3]}"
    again = new_text_content(source, items)
    np.testing.assert_allclose(again, model.content[1:].numpy(), atol=1e-4)
    # with the one item that is most alike, a new item with the text of a known one is that one
    twin = vectors_of(model, [Item(number=31, id="new", description=items[4].description)], again[4:5], neighbours=1)
    with torch.no_grad():
        np.testing.assert_allclose(twin[0], model.item_vectors()[5].numpy(), atol=1e-4)


def test_a_run_that_is_made_again_gives_the_same_base(base: Path, data: Path, tiny_encoder: Path) -> None:
    done = [pretrain(data, tiny_encoder, name) for name in ("plain", "plain-again")]
    assert all(one.exit_code == 0 for one in done), done[0].output
    first, second = (load_base(data / "runs" / name / "base.pt") for name in ("plain", "plain-again"))
    assert hash_state(first.state_dict()) == hash_state(second.state_dict())
    assert hash_state(first.state_dict()) != hash_state(load_base(base).state_dict())


def test_an_encoder_that_is_not_there_leaves_one_line_and_no_folder(data: Path, tiny_encoder: Path) -> None:
    (data / "empty").mkdir(exist_ok=True)
    done = pretrain(data, data / "empty", "absent")
    assert done.exit_code == 2
    assert "text encoder must be a model and a tokenizer" in done.output
    assert not (data / "runs" / "absent").exists()
    without = ("pretrain", "--data", data / "events.csv", "--core", 0, "--item-text", data / "texts.jsonl")
    done = run(*without, "--runs", data / "runs", "--name", "absent")
    assert done.exit_code == 2
    assert "descriptions must have a text encoder" in done.output


@pytest.mark.slow
def test_new_items_of_a_bundle_are_read_by_the_encoder_of_its_base(base: Path, tmp_path: Path, data: Path) -> None:
    simulated = run(
        "simulate", "--base", base, "--data", data / "events.csv", "--core", 0, "--runs", data / "runs",
        "--name", "federated", "--rounds", 1, "--set", "federation.unit=none",
    )  # fmt: skip
    assert simulated.exit_code == 0, simulated.output
    adapter = data / "runs" / "federated" / "adapter.safetensors"
    done = run("export", "--base", base, "--adapter", adapter, "--out", tmp_path / "bundle")
    assert done.exit_code == 0, done.output
    (tmp_path / "new.jsonl").write_text(json.dumps({"id": "new", "title": "alien", "description": "moon"}))
    grow = ("grow", "--bundle", tmp_path / "bundle", "--base", base, "--items", tmp_path / "new.jsonl")
    done = run(*grow, "--out", tmp_path / "grown")
    assert done.exit_code == 0, done.output
    with Personalizer.open(tmp_path / "grown", tmp_path / "state") as personalizer:
        personalizer.record("i1", timestamp=1.0)
        assert len(personalizer.score(["new", "i2"])) == 2
    (tmp_path / "other").mkdir()
    done = run(*grow, "--out", tmp_path / "more", "--text-encoder", tmp_path / "other")
    assert done.exit_code == 2
    assert not (tmp_path / "more").exists()
