"""The grid, what is skipped when it goes on, and that devices' results decide nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ownlet.shared.config import FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError, DataError, OwnletError
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.simulations.evaluate import mean_ndcg
from ownlet.simulations.federated_run import FederatedRunConfig, load_parts, run_federated
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain, save_base
from ownlet.simulations.progress import Silent
from ownlet.simulations.results import RunFolder
from ownlet.simulations.setting import DataConfig, prepare
from ownlet.simulations.sweep import Cell, SweepConfig, cells_of, run_sweep

DATA = DataConfig(num_users=120, num_items=120)
FEDERATION = FederationConfig(
    rounds=2,
    cohort_rate=0.5,
    noise_multiplier=2.0,
    seed=0,
    plan=Plan(steps=1, learning_rate=0.5),
    windows=WindowConfig(window_length=8),
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    setting = prepare(DATA)
    content, recipe = content_vectors(setting.data.items), PretrainConfig(max_epochs=2)
    model = pretrain(setting.public, setting.validation, content, ModelConfig(dim=16, num_layers=1), recipe)
    path = tmp_path_factory.mktemp("base") / "base.pt"
    save_base(path, model, setting.data.items)
    return path


@pytest.fixture
def config(base: Path) -> SweepConfig:
    run = FederatedRunConfig(base=base, data=DATA, federation=FEDERATION)
    return SweepConfig(run=run, ranks=(1, 2), targets=(("down",), ("query", "value")))


def folder_of(tmp_path: Path, config: SweepConfig) -> RunFolder:
    return RunFolder.create(tmp_path, "sweep", config, 0, name="sweep")


def test_the_grid_is_the_product_and_alpha_follows_the_rank(config: SweepConfig) -> None:
    assert [cell.name for cell in cells_of(config)] == [
        "rank1-alpha2-down-lr0.5",
        "rank2-alpha4-down-lr0.5",
        "rank1-alpha2-query+value-lr0.5",
        "rank2-alpha4-query+value-lr0.5",
    ]
    full = replace(config, alphas=(1.0, 2.0, 3.0), learning_rates=(0.1, 0.2), targets=())
    cells = cells_of(full)
    assert len(cells) == len({cell.name for cell in cells}) == 2 * 3 * 2
    assert {cell.targets for cell in cells} == {("query", "value", "up", "down")}  # what suits the method


def test_a_sweep_is_sorted_by_public_quality_and_says_what_it_cost(config: SweepConfig, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config)
    result = run_sweep(config, folder, Silent())
    values = [found.ndcg.value for found in result.cells]
    assert values == sorted(values, reverse=True)
    sizes = {(found.cell.rank, found.cell.targets): found.num_trained for found in result.cells}
    assert sizes == {(r, t): r * 16 * len(t) for r in (1, 2) for t in (("down",), ("query", "value"))}  # B: (16, r)
    assert result.total_epsilon == epsilon(user_level_event(0.5, 2.0, 8), 1e-5)
    assert all(found.epsilon == epsilon(user_level_event(0.5, 2.0, 2), 1e-5) for found in result.cells)
    told = json.loads((folder.path / "sweep.json").read_text())
    assert (told["runs_compared"], len(told["cells"])) == (4, 4)
    table = pl.read_parquet(folder.path / "sweep.parquet")
    assert table["public_ndcg@10"].to_list() == values
    assert (folder.path / "sweep.png").read_bytes()[1:4] == b"PNG"
    assert folder.read_summary()["command"] == "sweep"
    assert "quality" not in folder.read_summary()  # no device was asked how good it is


def test_a_cell_is_the_run_that_simulate_would_do(config: SweepConfig, tmp_path: Path) -> None:
    one = replace(config, ranks=(2,), targets=(("down",),))
    found = run_sweep(one, folder_of(tmp_path, one), Silent()).cells[0]
    adapter = replace(config.run.adapter, rank=2, alpha=4.0, target_modules=("down",))
    run = replace(config.run, adapter=adapter)
    result = run_federated(run, RunFolder.create(tmp_path, "simulate", run, 0, name="run"), Silent())
    fleet, model, spec = load_parts(run)
    want = mean_ndcg(model, fleet.validation, spec=spec, vector=result.federation.vector)
    assert found.ndcg.value == pytest.approx(want, rel=1e-12)  # sums in another order


def test_cells_that_are_done_are_not_done_again(config: SweepConfig, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, config)
    first = run_sweep(config, folder, Silent())
    (folder.path / "summary.json").unlink()
    (folder.path / "cells" / f"{Cell(rank=1, alpha=2, targets=('down',), learning_rate=0.5).name}.json").unlink()
    again = run_sweep(config, folder_of(tmp_path, config), Silent())
    assert [found.ndcg for found in again.cells] == [found.ndcg for found in first.cells]
    kept = [found.seconds for found in again.cells if found.cell.rank == 2 or found.cell.targets != ("down",)]
    assert set(kept) <= {found.seconds for found in first.cells}
    next((folder.path / "cells").iterdir()).write_text("{}")
    with pytest.raises(DataError, match="cell must be a file that a sweep wrote"):
        run_sweep(config, folder, Silent())


def test_without_privacy_nothing_is_claimed(config: SweepConfig, tmp_path: Path) -> None:
    plain = replace(config.run, federation=replace(FEDERATION, unit="none", noise_multiplier=0.0, rounds=1))
    result = run_sweep(SweepConfig(run=plain, ranks=(1,)), RunFolder(path=tmp_path), Silent())
    assert result.total_epsilon == result.cells[0].epsilon == math.inf
    assert json.loads((tmp_path / "sweep.json").read_text())["total_epsilon"] == "inf"
    base_only = mean_ndcg(load_base(plain.base), load_parts(plain)[0].validation)
    np.testing.assert_allclose(result.base.value, base_only)


def test_mistakes_are_found_before_the_first_round(config: SweepConfig, tmp_path: Path) -> None:
    wrong = replace(config, targets=(("down",), ("dwon",)))
    with pytest.raises(OwnletError, match="dwon"):
        run_sweep(wrong, RunFolder(path=tmp_path), Silent())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="ranks must differ from each other"):
        replace(config, ranks=(2, 2))
    local = replace(FEDERATION, unit="window", plan=Plan(clip_norm=1.0, noise_multiplier=1.0))
    with pytest.raises(ConfigError, match="unit of a sweep must be user or none, got unit='window'"):
        replace(config, run=replace(config.run, federation=local))
