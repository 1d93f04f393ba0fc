"""``ownlet rank-head``, and its head in ``ownlet export``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device import Personalizer
from ownlet.shared.config import ModelConfig
from ownlet.shared.manifest import read_manifest
from ownlet.shared.model import SASRec
from ownlet.shared.ranking import load_ranking
from ownlet.simulations.pretrain import save_base
from ownlet.simulations.readers import read


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions, and a base that says the same after every history, but whose vectors make neighbours alike."""
    path, rng = tmp_path_factory.mktemp("rank"), np.random.default_rng(0)
    rows = ["user,item,timestamp"]
    for user in range(200):
        walk = (rng.integers(30) + np.arange(8)) % 30
        rows += [f"u{user},i{item:02},{second}" for second, item in enumerate(walk)]
    (path / "events.csv").write_text("\n".join(rows))
    data = read(path / "events.csv")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=12), torch.zeros(31, 4)).eval()
        ring = torch.tensor([2 * np.pi * int(item.id[1:]) / 30 for item in data.items])
        with torch.no_grad():
            model.item_embedding.weight[1:, :2] = torch.stack([ring.cos(), ring.sin()], dim=1)
            model.final_norm.weight.zero_()
            model.final_norm.bias.normal_()
    save_base(path / "base.pt", model, data.items)
    return path


def rank_head(folder: Path, name: str, *more: object) -> Any:
    where = ["--base", folder / "base.pt", "--data", folder / "events.csv", "--runs", folder / "runs", "--name", name]
    return invoke("rank-head", *where, "--core", 0, "--candidates", 20, *more)


def test_a_head_is_trained_measured_and_left_in_the_run_folder(folder: Path) -> None:
    done = rank_head(folder, "head", "--epochs", 30, "--learning-rate", 0.1)
    assert done.exit_code == 0, done.output
    assert "two-stage" in done.output
    run = folder / "runs" / "head"
    assert load_ranking(run / "ranking.safetensors").config.num_candidates == 20
    quality = json.loads((run / "summary.json").read_text())["quality"]
    assert quality["ranked"]["ndcg@10"]["value"] > quality["base"]["ndcg@10"]["value"]
    metrics = pl.read_parquet(run / "metrics.parquet")
    assert metrics.columns == ["epoch", "loss", "validation_ndcg@10"]
    assert metrics["epoch"][0] == 0
    assert metrics["loss"][0] is None


def test_a_base_of_another_catalogue_is_refused_and_leaves_nothing(folder: Path, tiny: Any, tmp_path: Path) -> None:
    save_base(tmp_path / "base.pt", tiny.model, tiny.items)
    done = rank_head(folder, "other", "--base", tmp_path / "base.pt")
    assert done.exit_code == 2
    assert "data must have the catalogue of the base, 50 items, got 30 items" in done.stderr
    assert not (folder / "runs" / "other").exists()


@pytest.mark.slow
def test_an_exported_head_serves_on_a_device_and_that_of_another_base_is_refused(
    folder: Path, tiny: Any, tmp_path: Path
) -> None:
    assert rank_head(folder, "served", "--epochs", 3).exit_code == 0
    head = ["--ranking-head", folder / "runs" / "served" / "ranking.safetensors", "--batches", 1, "--window-length", 6]
    done = invoke("export", "--base", folder / "base.pt", "--out", tmp_path / "bundle", *head)
    assert done.exit_code == 0, done.output
    assert read_manifest(tmp_path / "bundle").num_candidates == 20
    with Personalizer.open(tmp_path / "bundle", tmp_path / "state") as personalizer:
        personalizer.record("i05", timestamp=0.0)
        assert len(personalizer.recommend(20)) == 20
    save_base(tmp_path / "base.pt", tiny.model, tiny.items)
    done = invoke("export", "--base", tmp_path / "base.pt", "--out", tmp_path / "other", *head)
    assert done.exit_code == 2
    assert "ranking head must belong to base" in done.stderr
