"""``ownlet evaluate`` as a user types it, on a small file of interactions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ownlet.cli.main import COMMANDS, build_app

DAY = 86_400


def call(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(COMMANDS), [str(argument) for argument in arguments], env={"COLUMNS": "120"})


def run(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refuse(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 users with two visits a week apart, of 5 events each; every item is mostly followed by its neighbour."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("evaluate")
    lines = ["user,item,timestamp,region"]
    for user in range(150):
        item, first = int(rng.integers(30)), int(rng.integers(20))
        for event in range(10):
            seconds = (first + 7 * (event >= 5)) * DAY + event
            lines.append(f"u{user},i{item},{seconds},{'north' if user % 2 else 'south'}")
            item = (item + 1) % 30 if rng.random() < 0.8 else int(rng.integers(30))
    (folder / "events.csv").write_text("\n".join(lines))
    return folder


COLUMNS = "user=user,item=item,timestamp=timestamp,region=region"


def pretrain(folder: Path, name: str, *more: object) -> Path:
    run(
        "pretrain", "--data", folder / "events.csv", "--columns", COLUMNS, "--core", 0, "--dim", 16, "--layers", 1,
        "--epochs", 3, "--learning-rate", 0.01, "--runs", folder, "--name", name, *more,
    )  # fmt: skip
    return folder / name / "base.pt"


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return pretrain(folder, "base")


@pytest.fixture(scope="module")
def adapter(folder: Path, base: Path) -> Path:
    run(
        "simulate", "--base", base, "--data", folder / "events.csv", "--columns", COLUMNS, "--core", 0, "--unit",
        "none", "--rounds", 3, "--runs", folder, "--name", "adapter",
    )  # fmt: skip
    return folder / "adapter" / "adapter.safetensors"


def test_leave_one_out_asks_the_devices_and_agrees_with_what_pretrain_measured(base: Path, tmp_path: Path):
    output = " ".join(run("evaluate", "--base", base, "--recbole", tmp_path / "out.json").split())
    found = json.loads((tmp_path / "out.json").read_text())
    summary = json.loads((base.parent / "summary.json").read_text())["quality"]
    for label, metrics in summary.items():
        for ours, theirs in (("hr@10", "hit@10"), ("ndcg@10", "ndcg@10"), ("mrr@10", "mrr@10")):
            assert found[label][theirs] == pytest.approx(metrics[ours]["value"])
    assert "events, split leave-one-out: 105 users asked" in output
    for text in (
        "most popular",
        "item-kNN",
        "activity: 9 to 9 events",
        "region: north",
        "item-kNN is above the base in ",
    ):
        assert text in output
    assert "Note" not in output


def test_a_base_that_reads_context_is_asked_with_it(folder: Path, tmp_path: Path):
    base = pretrain(folder, "context", "--context", "weekday,region=region")
    run("evaluate", "--base", base, "--recbole", tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["base"]["ndcg@10"]
    summary = json.loads((base.parent / "summary.json").read_text())["quality"]["base"]
    assert found == pytest.approx(summary["ndcg@10"]["value"])


def test_an_adapter_is_measured_as_its_run_measured_it(base: Path, adapter: Path, tmp_path: Path):
    output = " ".join(run("evaluate", "--base", base, "--adapter", adapter, "--recbole", tmp_path / "out.json").split())
    summary = json.loads((adapter.parent / "summary.json").read_text())["quality"]["federated"]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["adapter"]["ndcg@10"] == pytest.approx(summary["ndcg@10"]["value"])
    assert list(found) == ["popular", "item_knn", "base", "adapter"]
    assert "adapter is below the base in " in output
    assert "Note" not in output


def test_segments_can_be_left_out(base: Path):
    assert "Floor" not in run("evaluate", "--base", base, "--no-segments")


def test_a_session_split_asks_devices_for_the_second_visit(base: Path):
    assert "split session: 105 users asked" in run("evaluate", "--base", base, "--split", "session")
    refused = refuse("evaluate", "--base", base, "--split", "session", "--gap-hours", 24 * 30)
    assert "split session must leave somebody to be asked, got nobody" in refused


def test_an_adapter_that_was_trained_on_the_answers_is_refused(base: Path, adapter: Path):
    refused = refuse("evaluate", "--base", base, "--adapter", adapter, "--split", "session")
    assert "the adapter must not have been trained on answers of split session" in refused


def test_a_base_that_has_read_the_future_is_refused_on_a_split_by_time(folder: Path, base: Path):
    everybody = pretrain(folder, "everybody", "--users", "all")
    run("evaluate", "--base", everybody)
    refused = refuse("evaluate", "--base", everybody, "--split", "time", "--date", "1970-01-15")
    assert "the base must not have been trained on answers of split time" in refused
    assert "--public-before" in refused
    output = run("evaluate", "--base", base, "--split", "time", "--date", "1970-01-15")
    assert "Note: The base has read other users' events from 1970-01-15 on." in output


def test_a_base_that_ends_before_the_date_asks_everybody(folder: Path):
    early = pretrain(folder, "early", "--public-before", "1970-01-15")
    output = run("evaluate", "--base", early, "--split", "time", "--date", "1970-01-15")
    assert "Note" not in output
    rows = [line.split(",") for line in (folder / "events.csv").read_text().splitlines()[1:]]
    before, after = ({row[0] for row in rows if (int(row[2]) >= 14 * DAY) == late} for late in (False, True))
    assert f"split time: {len(before & after)} users asked" in output


def test_what_is_unknown_about_training_is_said(base: Path, tmp_path: Path, folder: Path):
    moved = tmp_path / "base.pt"
    shutil.copy(base, moved)
    output = run("evaluate", "--base", moved, "--data", folder / "events.csv", "--core", 0)
    assert "Note: What the base was trained on is unknown here, so leakage was not checked." in output
    assert "150 users asked" in output


def test_settings_that_do_not_go_together_are_refused(base: Path, folder: Path):
    assert "date must be given with split time" in refuse("evaluate", "--base", base, "--split", "time")
    assert "date must be given with split time" in refuse("evaluate", "--base", base, "--date", "1970-01-15")
    (folder / "few.csv").write_text("user,item,timestamp\na,i1,1\na,i2,2\n")
    refused = refuse("evaluate", "--base", base, "--data", folder / "few.csv", "--core", 0)
    assert "data must have the catalogue of the base, 30 items, got 2" in refused
