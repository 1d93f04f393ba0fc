"""The subcommands as a user types them, on a small file of interactions."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device import Personalizer
from ownlet.shared.adapter import load_adapter
from ownlet.shared.config import ModelConfig
from ownlet.shared.manifest import read_manifest
from ownlet.shared.model import SASRec
from ownlet.simulations.pretrain import load_catalogue, save_base
from ownlet.simulations.setting import DataConfig, prepare
from ownlet.simulations.store import EventStore, StoreWriter
from ownlet.simulations.world import PopulationConfig, make_world


def run(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refuse(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions in which every item is followed by its neighbour most of the time."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "events.csv"
    lines = ["user,item,timestamp"]
    for user in range(120):
        item = int(rng.integers(30))
        for second in range(10):
            lines.append(f"u{user},i{item},{second}")
            item = (item + 1) % 30 if rng.random() < 0.8 else int(rng.integers(30))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def base(data: Path) -> Path:
    runs = data.parent / "runs"
    output = run(
        "pretrain", "--data", data, "--core", 0, "--dim", 16, "--layers", 1, "--epochs", 8, "--learning-rate", 0.01,
        "--runs", runs, "--name", "base",
    )  # fmt: skip
    assert "item-kNN" in output
    return runs / "base" / "base.pt"


def simulate(base: Path, data: Path, name: str, *more: object) -> Path:
    runs = base.parents[1]
    run("simulate", "--base", base, "--data", data, "--core", 0, "--runs", runs, "--name", name, "--rounds", 3, *more)
    return runs / name


def test_pretrain_learns_and_reports(base: Path) -> None:
    summary = json.loads((base.parent / "summary.json").read_text())
    assert summary["data"] == {"name": "events", "users": 120, "items": 30, "interactions": 1200}
    quality = {label: metrics["ndcg@10"]["value"] for label, metrics in summary["quality"].items()}
    assert quality["base"] > quality["popular"]
    assert pl.read_parquet(base.parent / "metrics.parquet").columns == ["epoch", "loss", "validation_ndcg@10"]
    assert (base.parent / "curves.png").read_bytes()[1:4] == b"PNG"


def test_user_level_simulation_spends_what_it_was_allowed(base: Path, data: Path) -> None:
    board = base.parents[2] / "board"
    folder = simulate(base, data, "user", "--target-epsilon", 2, "--nodes", 3, "--tensorboard", board)
    summary = json.loads((folder / "summary.json").read_text())
    assert 1.8 < summary["privacy"]["federated"]["epsilon"] <= 2
    assert summary["privacy"]["federated"]["unit"] == "user"
    assert list(pl.read_parquet(folder / "metrics.parquet")["round"]) == [1, 2, 3]
    assert (folder / "curves.png").read_bytes()[1:4] == b"PNG"
    assert [path.name for path in board.iterdir()] == ["user"]


def test_engines_agree_on_a_window_level_run(base: Path, data: Path) -> None:
    window = ("--unit", "window", "--noise-multiplier", 0.5, "--window-length", 5, "--learning-rate", 0.05)
    vectors = []
    for engine in ("cohort", "opacus"):
        folder = simulate(base, data, engine, *window, "--engine", engine, "--cohort-rate", 0.1)
        assert json.loads((folder / "summary.json").read_text())["privacy"]["federated"]["unit"] == "window"
        vectors.append(checkpoint_vector(folder))
    np.testing.assert_allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-6)


def checkpoint_vector(folder: Path) -> np.ndarray:
    """Return the adapter in a run's checkpoint: a run whose adapter is below the base publishes none."""
    return load_file(folder / "federation.ckpt")["adapter"]


def test_a_run_without_privacy_claims_none(base: Path, data: Path) -> None:
    folder = simulate(base, data, "plain", "--unit", "none")
    assert "privacy" not in json.loads((folder / "summary.json").read_text())


def test_a_run_that_averages_a_and_b_tells_their_cross_covariance_and_one_that_alternates_does_not(
    base: Path, data: Path
) -> None:
    told = {
        method: pl.read_parquet(simulate(base, data, method, "--unit", "none", "--method", method) / "metrics.parquet")
        for method in ("lora", "rolora")
    }
    first, *later = told["lora"]["cross_covariance"].to_list()
    assert first == 0  # at B = 0 a single step leaves A where it was
    assert min(later) > 0
    assert "cross_covariance" not in told["rolora"].columns


def test_mistakes_end_in_one_line_and_exit_code_2(base: Path, data: Path, tmp_path: Path) -> None:
    runs = ("--runs", tmp_path)
    assert "neither" in refuse("simulate", "--base", base, "--data", data, *runs)
    assert "base must be a readable file" in refuse("simulate", "--base", "no.pt", "--unit", "none", *runs)
    assert "catalogue" in refuse("simulate", "--base", base, "--unit", "none", *runs)
    assert "learning_rate must be positive, got learning_rate=-1.0" in refuse(
        "pretrain", "--data", data, "--learning-rate", -1, *runs
    )
    assert "must not be taken by a finished run" in refuse(
        "pretrain", "--data", data, "--runs", base.parents[1], "--name", "base"
    )
    assert list(tmp_path.iterdir()) == []  # a refused command leaves no run folder


def test_a_table_with_other_column_names_is_the_same_data(base: Path, data: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "events.csv"
    renamed.write_text(data.read_text().replace("user,item,timestamp", "customer,product,bought_at", 1))
    run(
        "pretrain", "--data", renamed, "--columns", "user=customer, item=product,timestamp=bought_at", "--core", 0,
        "--dim", 16, "--layers", 1, "--epochs", 8, "--learning-rate", 0.01, "--runs", tmp_path, "--name", "base",
    )  # fmt: skip
    folders = (base.parent, tmp_path / "base")
    ours, theirs = (json.loads((folder / "summary.json").read_text())["quality"] for folder in folders)
    assert ours == theirs
    for bad in ("user", "user=customer", "=x"):
        assert "columns must" in refuse("pretrain", "--data", renamed, "--columns", bad, "--runs", tmp_path)


def test_a_store_of_a_file_holds_its_users_in_the_numbers_of_the_base(base: Path, data: Path, tmp_path: Path):
    output = run("store", "--base", base, "--data", data, "--out", tmp_path / "devices")
    size_bytes = sum(file.stat().st_size for file in (tmp_path / "devices").iterdir())
    assert f"devices: 84 users, 840 events, {size_bytes:,} bytes" in output
    assert "does not know, 0 users with too few others, 36 users whom the base knows." in output
    store, setting = EventStore.open(tmp_path / "devices"), prepare(DataConfig(path=data, core=0))
    assert store.items == load_catalogue(base)
    by_id = {setting.data.user_ids[user]: setting.data.histories[user] for user in setting.device_users}
    assert [store.history(u).tolist() for u in range(84)] == [by_id[user].tolist() for user in sorted(by_id)]


def test_a_store_of_the_built_in_population_is_refused_for_another_base(base: Path, data: Path, tmp_path: Path):
    out = tmp_path / "devices"
    assert "catalogue must have items of the built-in population" in refuse(
        "store", "--base", base, "--out", out, "--users", 5
    )
    assert "got neither" in refuse("store", "--base", base, "--out", out)
    assert "got both" in refuse("store", "--base", base, "--out", out, "--users", 5, "--data", data)
    assert "data must be a file that exists" in refuse("store", "--base", base, "--out", out, "--data", "no.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_the_built_in_population_is_drawn_for_its_base(tmp_path: Path):
    items = make_world(PopulationConfig(num_items=120)).items
    model = SASRec(ModelConfig(dim=8, num_layers=1), torch.zeros(121, 6))
    save_base(tmp_path / "base.pt", model, items)
    command = ("store", "--base", tmp_path / "base.pt", "--out", tmp_path / "devices", "--items", 120)
    assert "devices: 1,050 users" in run(*command, "--users", 1050)
    assert "store folder must not exist yet" in refuse(*command, "--users", 3)
    assert EventStore.open(tmp_path / "devices").num_users == 1050
    assert "devices: 3 users" in run(*command, "--users", 3, "--overwrite")
    assert EventStore.open(tmp_path / "devices").num_users == 3


@pytest.mark.slow
def test_a_store_is_simulated_like_the_data_it_was_made_from(base: Path, data: Path, tmp_path: Path) -> None:
    run("store", "--base", base, "--data", data, "--out", tmp_path / "store")
    sizes = ("--public-users", 24, "--sampled-users", 50)
    output = run(
        "simulate", "--base", base, "--store", tmp_path / "store", *sizes, "--runs", tmp_path, "--name", "stored",
        "--rounds", 3, "--cohort-rate", 0.4, "--target-epsilon", 2, "--negatives", 5,
    )  # fmt: skip
    assert "60 devices" in output
    assert "user level, 3 rounds" in output
    summary = json.loads((tmp_path / "stored" / "summary.json").read_text())
    assert summary["data"]["users"] == 84
    assert len(load_file(tmp_path / "stored" / "federation.ckpt")["participations"]) == 60
    assert set(summary["quality"]) == {"base", "federated"}


def test_a_store_that_does_not_fit_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with StoreWriter(store, name="other", items=load_catalogue(base)[:-1]) as writer:
        writer.append(np.array([1, 2, 3]), np.array([3]))
    options = ("--base", base, "--unit", "none", "--runs", tmp_path / "runs")
    assert "store must be written for the catalogue of the base" in refuse("simulate", "--store", store, *options)
    assert "must not be given together" in refuse("simulate", "--store", store, "--data", data, *options)
    run("store", "--base", base, "--data", data, "--out", tmp_path / "small")
    refused = refuse("simulate", "--store", tmp_path / "small", "--public-users", 84, *options)
    assert "must have more users than the 84 public ones, got 84" in refused
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@pytest.mark.slow
def test_a_ray_grid_gives_the_adapter_of_one_process(base: Path, data: Path, tmp_path: Path) -> None:
    run("store", "--base", base, "--data", data, "--out", tmp_path / "store")
    vectors = []
    for name, grid in (("here", ()), ("ray", ("--grid", "ray"))):
        run(
            "simulate", "--base", base, "--store", tmp_path / "store", "--public-users", 30, "--runs", tmp_path,
            "--name", name, "--rounds", 2, "--cohort-rate", 0.5, "--noise-multiplier", 1, "--nodes", 2, *grid,
        )  # fmt: skip
        vectors.append(checkpoint_vector(tmp_path / name))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.slow  # a whole export; the demo's test makes one in the fast suite
def test_an_exported_run_recommends_in_an_app(base: Path, data: Path, tmp_path: Path) -> None:
    folder = simulate(base, data, "shipped", "--unit", "none", "--engine", "executorch", "--rank", 2)
    adapter = folder / "adapter.safetensors"
    published = ("--adapter", adapter) if adapter.exists() else ()
    run("export", "--base", base, *published, "--out", tmp_path / "bundle")
    terms = read_manifest(tmp_path / "bundle").federation
    assert (terms is not None and terms.rounds > 0) == bool(published)
    if published:
        assert load_adapter(tmp_path / "bundle" / "adapter.safetensors")[2] == load_adapter(adapter)[2]
    with Personalizer.open(tmp_path / "bundle", tmp_path / "state") as personalizer:
        personalizer.record("i3", 0)
        personalizer.record("i4", 1)
        assert "i5" in [found.item for found in personalizer.recommend(5)]
