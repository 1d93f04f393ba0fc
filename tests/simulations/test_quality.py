"""The quality benchmark on a tiny population: every part real, and an interrupted one goes on."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.config import FederationConfig, ModelConfig, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.metrics import ndcg
from ownlet.simulations.centralised import CentralisedConfig
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.progress import Silent
from ownlet.simulations.quality import STAGES, DataResult, kept_share, quality_table, run_quality
from ownlet.simulations.quality_config import Choice, QualityConfig, QualityData, quality_data
from ownlet.simulations.quality_parts import Federated, Unfederated
from ownlet.simulations.quality_report import markdown, write_quality
from ownlet.simulations.setting import DataConfig

DATA = QualityData(
    name="tiny",
    data=DataConfig(num_users=150, num_items=300, public_fraction=0.4),
    cohort_rate=0.5,
    tested=40,
    recipe=PretrainConfig(max_epochs=2, batch_size=16),
)
CONFIG = QualityConfig(
    data=(DATA,),
    methods=("lora-frozen-a", "prefix"),
    epsilons=(math.inf, 2.0),
    seeds=(0, 1),
    rates=(0.3,),
    clips=(0.3,),
    local_rates=(0.1,),
    model=ModelConfig(dim=16, num_layers=1, max_length=20),
    rank=2,
    federation=FederationConfig(rounds=2, plan=Plan(steps=1, learning_rate=0.3)),
    centralised=CentralisedConfig(max_epochs=1),
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    return run_quality(CONFIG, folder, Silent()), folder


def test_the_table_has_every_method_epsilon_and_stage_with_intervals(measured, tmp_path):
    results, _ = measured
    paths = write_quality(CONFIG, results, tmp_path)
    assert all(path.stat().st_size > 0 for path in paths)
    table = json.loads(paths[0].read_text())
    assert set(table["tiny"]) == {"lora-frozen-a", "prefix"}
    for method in table["tiny"].values():
        assert set(method) == {"none", "2"}
        assert tuple(method["none"]) == STAGES
        assert tuple(method["2"]) == (*STAGES[:2], "federated+personal")
        for stage in (*method["none"].values(), *method["2"].values()):
            for name in ("hr@10", "ndcg@10", "mrr@10"):
                assert stage[name]["low"] <= stage[name]["value"] <= stage[name]["high"]
    assert "| prefix |" in markdown(CONFIG, results)


def test_a_cell_is_the_mean_over_seeds_and_tested_devices(measured):
    (result,), _ = measured
    ranks = result.ranks("prefix", 2.0)["federated"]
    assert ranks.shape == (2, 40)
    cell = quality_table((result,))["tiny"]["prefix"]["2"]["federated"]["ndcg@10"]
    np.testing.assert_allclose(cell["value"], ndcg(ranks, 10).mean())
    assert all(run.epsilon <= 2.0 for run in result.federated["prefix", 2.0])


def test_what_is_there_is_not_done_again_and_other_settings_are_refused(measured):
    results, folder = measured
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    again = run_quality(CONFIG, folder, Silent())
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    np.testing.assert_array_equal(again[0].base, results[0].base)
    with pytest.raises(ConfigError, match="same settings"):
        run_quality(replace(CONFIG, rank=3), folder, Silent())


@pytest.mark.parametrize(("events", "asked", "length"), [(60, None, 50), (40, None, 20), (60, 30, 30)])
def test_windows_are_as_long_as_the_histories_ask_for(tmp_path, events, asked, length):
    """Half of the histories are longer than the 50 events that the base reads, or none is."""
    path = tmp_path / "shop.csv"
    lines = (f"{user},{(user + at) % 90},{at}" for user in range(20) for at in range(events))
    path.write_text("\n".join(["user,item,timestamp", *lines]))
    data = quality_data(path, cohort=10, tested=5, window_length=asked)
    assert data.windows.window_length == length
    choice = Choice(learning_rate=1.0, clip_norm=1.0)
    assert CONFIG.rounds(data, "lora-frozen-a", math.inf, choice, seed=0).windows == data.windows


@pytest.mark.parametrize(
    ("base", "plain", "private", "kept"), [(0, 2, 1, 0.5), (1, 1, 2, math.nan), (2, 1, 2, math.nan)]
)
def test_what_is_kept_of_a_gain_is_known_only_where_there_is_one(base, plain, private, kept):
    """Of four users some are at rank 1: under the base, without privacy, with it."""

    def ranks(hits):
        return np.array([1] * hits + [99] * (4 - hits))

    def run(hits):
        shared = {"federated": ranks(hits), "personal": ranks(hits)}
        return (Federated(**shared, public_ndcg=1, base_public_ndcg=0, epsilon=1, delta_bytes=4),)

    result = DataResult(
        data=DATA,
        base=ranks(base)[None],
        unfederated={"lora": (Unfederated(personal=ranks(0), local_only=ranks(0), centralised=ranks(0)),)},
        federated={("lora", math.inf): run(plain), ("lora", 2.0): run(private)},
        tuned={},
    )
    np.testing.assert_equal(kept_share(result, "lora", 2.0), kept)
