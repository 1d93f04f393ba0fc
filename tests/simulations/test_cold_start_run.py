"""The cold-start experiment on a small population: which models there are and that they answer the same questions."""

import json

import numpy as np
import pytest

from ownlet.shared.config import ModelConfig
from ownlet.shared.errors import ConfigError
from ownlet.simulations.benchmarks import cold_start
from ownlet.simulations.cold_start_run import METHODS, QUESTIONS, ColdStartConfig, run_cold_start
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.progress import Silent
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.text_tuning import TextTuning
from ownlet.simulations.tiny_encoder import TinyEncoderConfig


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    config = ColdStartConfig(
        data=DataConfig(num_users=150, num_items=120, seed=1, core=0),
        seeds=(0, 1),
        fraction=0.2,
        model=ModelConfig(dim=8, num_layers=1),
        recipe=PretrainConfig(max_epochs=2, warmup_steps=2, learning_rate=5e-3),
        tiny=TinyEncoderConfig(dim=8, num_layers=1, num_heads=2, epochs=1),
        tuning=TextTuning(rank=2, epochs=1, pairs_per_epoch=128),
        cache=tmp_path_factory.mktemp("cache"),
    )
    return run_cold_start(config, Silent())


def test_every_method_answers_the_same_cases(result):
    assert set(result.ranks) == set(METHODS)
    for question in QUESTIONS:
        shapes = {result.ranks[method][question].shape for method in METHODS}
        assert len(shapes) == 1
    assert (result.ranks["popular"]["cold among cold"] == result.num_cold).all()
    assert result.num_cold == 24
    for a, b in (("id", "hashed"), ("hashed", "text"), ("text", "tuned")):
        assert (result.ranks[a]["warm"] != result.ranks[b]["warm"]).any()


def test_the_file_holds_intervals_for_every_method_and_question(result):
    found = json.loads(json.dumps(cold_start.as_json(result)))
    assert found["chance_hr@10_cold_among_cold"] == pytest.approx(10 / 24)
    assert set(found["methods"]) == set(METHODS)
    for metrics in found["methods"].values():
        assert set(metrics) == set(QUESTIONS)
        assert "hr@100" in metrics["cold among all"]
        assert all(m["low"] <= m["value"] <= m["high"] for m in metrics["warm"].values())
    gain = found["differences"]["hashed - id"]["warm"]["hr@10"]["value"]
    hits = [np.mean(result.ranks[method]["warm"] <= 10) for method in ("hashed", "id")]
    assert gain == pytest.approx(hits[0] - hits[1])


def test_the_command_writes_table_file_and_plot(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cold_start, "run_cold_start", lambda config, progress, workers: result)
    cold_start.main(["--out", str(tmp_path / "bench")])
    assert json.loads((tmp_path / "bench" / "cold_start.json").read_text())["seeds"] == [0, 1]
    assert (tmp_path / "bench" / "cold_start.png").stat().st_size > 10_000
    assert "NDCG@10 with 95 % intervals" in " ".join(capsys.readouterr().out.split())


def test_settings_that_hold_out_nothing_are_refused():
    with pytest.raises(ConfigError, match="fraction must be in"):
        ColdStartConfig(fraction=0.0)
    with pytest.raises(ConfigError, match="seeds"):
        ColdStartConfig(seeds=())
