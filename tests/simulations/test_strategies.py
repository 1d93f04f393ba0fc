"""The table of strategies on a tiny population: parts of the quality benchmark are used, and nothing runs twice."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.config import FederationConfig, ModelConfig, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.metrics import paired_difference
from ownlet.simulations import strategies
from ownlet.simulations.benchmarks import strategies as table
from ownlet.simulations.benchmarks.strategies import main, strategy_rows, strategy_table
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.progress import Silent
from ownlet.simulations.quality_config import Choice, QualityConfig, QualityData
from ownlet.simulations.quality_parts import run_federated_part
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.strategies import STRATEGIES, StrategyResult, run_strategies

DATA = QualityData(
    name="tiny",
    data=DataConfig(num_users=150, num_items=300, public_fraction=0.4),
    cohort_rate=0.5,
    tested=40,
    recipe=PretrainConfig(max_epochs=2, batch_size=16),
)
CONFIG = QualityConfig(
    data=(DATA,),
    epsilons=(math.inf, 2.0),
    seeds=(0,),
    rates=(0.3,),
    clips=(0.3,),
    local_rates=(0.1,),
    model=ModelConfig(dim=16, num_layers=1, max_length=20),
    rank=2,
    federation=FederationConfig(rounds=3, plan=Plan(steps=1, learning_rate=0.3)),
)


def test_a_round_of_the_table_is_what_its_ranks_say():
    rng = np.random.default_rng(0)
    base, better = rng.integers(5, 30, (2, 50)), rng.integers(1, 6, (2, 50))
    choice = Choice(learning_rate=0.3, clip_norm=math.inf, server_learning_rate=0.01)
    errors = np.array([[0.1, 0.3], [0.2, 0.2]])
    results = [
        StrategyResult(name="fedadam", epsilon=math.inf, ranks=better, choice=choice, errors=None),
        StrategyResult(name="naive", epsilon=math.inf, ranks=base, choice=choice, errors=errors),
    ]
    adam, naive = strategy_rows(base, results)
    assert adam["gain"]["value"] == paired_difference(better, base)["ndcg@10"].value > 0
    assert (adam["server_optimizer"], adam["server_learning_rate"], adam["clip_norm"]) == ("fedadam", 0.01, None)
    assert naive["gain"]["value"] == 0
    assert naive["cross_covariance"] == pytest.approx(0.2)
    assert naive["cross_covariance_by_round"] == pytest.approx([0.15, 0.25])
    assert strategy_table([adam, naive], "title").row_count == 2
    json.dumps([adam, naive], allow_nan=False)


def test_an_unknown_strategy_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="strategies must be among fedavg"):
        main(["--strategies", "fedavg,magic", "--out", str(tmp_path)])


@pytest.mark.slow
def test_every_strategy_runs_once_and_parts_of_the_quality_benchmark_serve(tmp_path, monkeypatch):
    monkeypatch.setattr(strategies, "SERVER_RATES", (0.01,))
    base, results = run_strategies(CONFIG, tuple(STRATEGIES), tmp_path, Silent())
    assert base.shape == (1, 40)
    assert [(one.name, one.epsilon) for one in results] == [(n, e) for n in STRATEGIES for e in CONFIG.epsilons]
    adam = {one.epsilon: one.choice for one in results if one.name == "fedadam"}
    assert adam[2.0] == Choice(learning_rate=0.3, clip_norm=0.3, server_learning_rate=0.01)
    for one in results:
        assert (one.errors is None) == (one.name != "naive")
        if one.errors is not None:
            assert one.errors.shape == (1, 3)
            assert one.errors[0, 0] == 0  # from B = 0 one step leaves A
            assert (one.errors[0, 1:] > 0).all()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    again = run_strategies(replace(CONFIG, epsilons=(2.0,)), ("naive", "fedyogi"), tmp_path, Silent())[1]
    np.testing.assert_array_equal(again[0].ranks, next(r for r in results if (r.name, r.epsilon) == ("naive", 2)).ranks)
    part = run_federated_part(CONFIG, DATA, "lora", 2.0, 0, tmp_path, Silent())
    np.testing.assert_array_equal(part.federated, again[0].ranks[0])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == times


def test_the_command_writes_every_cell(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    base, choice = rng.integers(1, 30, (2, 50)), Choice(learning_rate=0.3, clip_norm=0.1)

    def measured(config, names, folder, progress, *, workers):
        assert (folder, config.epsilons, config.federation.rounds) == (tmp_path / "quality", (math.inf, 2.0), 4)
        cells = [(name, epsilon) for name in names for epsilon in config.epsilons]
        return base, tuple(
            StrategyResult(name=n, epsilon=e, ranks=rng.integers(1, 9, (2, 50)), choice=choice, errors=None)
            for n, e in cells
        )

    monkeypatch.setattr(table, "run_strategies", measured)
    monkeypatch.setattr(table, "quality_data", lambda path, cohort, tested: DATA)
    wanted = ["--strategies", "fedavg,rolora", "--epsilons", "none,2", "--rounds", "4"]
    table.main([*wanted, "--seeds", "0,1", "--out", str(tmp_path)])
    told = json.loads((tmp_path / "strategies.json").read_text())
    assert [(row["strategy"], row["epsilon"]) for row in told["rows"]] == [
        ("fedavg", "none"),
        ("fedavg", "2"),
        ("rolora", "none"),
        ("rolora", "2"),
    ]
    assert (told["data"], told["devices"], told["seeds"], told["rounds"]) == ("tiny", 50, [0, 1], 4)
