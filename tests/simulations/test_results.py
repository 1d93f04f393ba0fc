import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.simulations.results import (
    METRIC_NAMES,
    QUALITY_LABELS,
    RunFolder,
    check_summary,
    package_versions,
    terms_of,
)

INTERVAL = {"value": 0.1, "low": 0.09, "high": 0.12}
SUMMARY = {
    "command": "demo",
    "seconds": 12.5,
    "data": {"name": "synthetic", "users": 2000, "items": 1000, "interactions": 50_000},
    "quality": {label: dict.fromkeys(METRIC_NAMES, INTERVAL) for label in QUALITY_LABELS},
    "privacy": {
        "federated_eps2": {"epsilon": 1.98, "dp_delta": 1e-5, "unit": "user", "rounds": 40, "accountant": "PLD"},
    },
    "wire": {"bytes_up_per_user_round": 4096, "bytes_down_per_user_round": 8192},
    "device": {
        "program_bytes": 1_360_000,
        "recommend": {"pte_ms": 1.0, "eager_ms": 2.0},
        "step": {"pte_ms": 2.2, "eager_ms": 3.8},
    },
}


def changed(path: str, value: object) -> dict[str, object]:
    """Return the summary with one value replaced; ``quality.base`` walks down, None deletes."""
    summary = deepcopy(SUMMARY)
    *above, last = path.split("/")
    place: dict = summary
    for key in above:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return summary


def create(root: Path, *, seed: int = 1, overwrite: bool = False, name: str | None = "a") -> RunFolder:
    return RunFolder.create(root, "demo", {"rounds": 40}, seed, name=name, overwrite=overwrite)


def test_a_new_run_records_its_settings_and_versions(tmp_path: Path):
    run = create(tmp_path)
    assert json.loads((run.path / "config.json").read_text()) == {
        "command": "demo",
        "seed": 1,
        "config": {"rounds": 40},
    }
    versions = json.loads((run.path / "versions.json").read_text())
    assert versions == package_versions()
    assert {"ownlet", "torch", "flwr", "executorch"} <= set(versions["packages"])
    assert not run.finished


def test_settings_with_infinities_are_strict_json(tmp_path: Path):
    run = RunFolder.create(tmp_path, "simulate", FederationConfig(), None)
    text = (run.path / "config.json").read_text()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    config = json.loads(text, parse_constant=refuse)["config"]
    assert config["target_epsilon"] == "inf"
    assert config["plan"]["steps"] == 3


def test_runs_without_a_name_get_different_folders(tmp_path: Path):
    paths = {create(tmp_path, name=None).path for _ in range(3)}
    assert len(paths) == 3
    assert all(path.name.split("-")[2] == "demo" for path in paths)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp", ".hidden", "a b"])
def test_a_name_that_is_not_a_plain_file_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="name must be a plain file name"):
        create(tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_not_overwritten_unless_asked_and_then_moved_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    create(tmp_path).write_summary(SUMMARY)
    with pytest.raises(ConfigError, match=r"taken by a finished run.*got name='a'"):
        create(tmp_path)
    again = create(tmp_path, overwrite=True)
    assert not again.finished
    (old,) = (path for path in tmp_path.iterdir() if path != again.path)
    assert RunFolder(path=old).read_summary() == SUMMARY
    assert old.name in caplog.text


def test_an_unfinished_run_is_continued_with_equal_settings_only(tmp_path: Path):
    (create(tmp_path).path / "checkpoint").write_text("round 7")
    assert (create(tmp_path).path / "checkpoint").read_text() == "round 7"
    with pytest.raises(ConfigError, match="not an unfinished run with these settings"):
        create(tmp_path, seed=2)
    assert not (create(tmp_path, seed=2, overwrite=True).path / "checkpoint").exists()


def test_a_folder_of_someone_else_is_not_taken_over(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="must not be taken"):
        create(tmp_path)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["thesis.txt"]


def test_metrics_come_back_as_they_were_with_null_for_what_a_round_lacks(tmp_path: Path):
    rows = [{"round": 1, "epsilon": 0.5}, {"round": 2, "ndcg": np.float64(0.25), "epsilon": math.inf}]
    frame = pl.read_parquet(create(tmp_path).write_metrics(rows))
    assert frame.to_dicts() == [
        {"round": 1, "epsilon": 0.5, "ndcg": None},
        {"round": 2, "epsilon": math.inf, "ndcg": 0.25},
    ]


def test_metrics_of_no_round_are_an_empty_table(tmp_path: Path):
    assert pl.read_parquet(create(tmp_path).write_metrics([])).height == 0


def test_a_summary_comes_back_as_it_was(tmp_path: Path):
    run = create(tmp_path)
    run.write_summary(SUMMARY)
    assert run.finished
    assert run.read_summary() == SUMMARY


def test_a_summary_may_hold_numpy_numbers_and_leave_optional_parts_out(tmp_path: Path):
    small = {"command": "pretrain", "seconds": np.float32(2.0), "data": {**SUMMARY["data"], "users": np.int64(7)}}
    run = create(tmp_path)
    run.write_summary(small)
    assert run.read_summary() == {"command": "pretrain", "seconds": 2.0, "data": {**SUMMARY["data"], "users": 7}}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("extra", 1, "summary must have only the keys .*unknown=.'extra'"),
        ("command", None, "summary must have every required key, got missing=.'command'"),
        ("command", "", "summary command must be text"),
        ("seconds", math.nan, "summary seconds must be a finite number"),
        ("seconds", -1.0, "not negative"),
        ("data/users", 1.5, "summary data users must be a count"),
        ("data/users", True, "summary data users must be a count"),
        ("data/users", -1, "summary data users must be a count"),
        ("quality/oracle", {}, "summary quality must have only the keys"),
        ("quality/base/hr@20", INTERVAL, "summary quality base must have only the keys"),
        ("quality/base/mrr@10", None, "missing=.'mrr@10'"),
        ("quality/base/hr@10", 0.1, "summary quality base hr@10 must be an object"),
        ("quality/base/hr@10", {"value": 0.2, "low": 0.0, "high": 0.1}, "quality base hr@10 must have low <= value"),
        ("privacy/federated_eps2/epsilon", math.inf, "epsilon must be a finite number"),
        ("wire/bytes_up_per_user_round", "4096", "must be a count"),
        ("device/step/pte_ms", None, "summary device step must have every required key"),
    ],
)
def test_a_summary_that_breaks_the_schema_is_refused_and_nothing_is_written(
    tmp_path: Path, path: str, value: object, message: str
):
    run = create(tmp_path)
    with pytest.raises(ConfigError, match=message):
        run.write_summary(changed(path, value))
    assert not run.finished


def test_reading_the_summary_of_an_unfinished_run_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="must be readable JSON"):
        create(tmp_path).read_summary()


def test_the_example_in_the_documentation_fits_the_schema():
    text = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    example = text.split("```json\n")[1].split("```")[0]
    assert check_summary(json.loads(example))["command"] == "demo"


def test_the_terms_of_a_federated_run_come_back_without_its_seed(tmp_path: Path):
    terms = FederationConfig(rounds=3, unit="none", clip_norm=math.inf, seed=7)
    run = RunFolder.create(tmp_path, "simulate", {"federation": terms, "engine": "cohort"}, seed=7, name="run")
    assert terms_of(run.path) == replace(terms, seed=None)
    assert terms_of(tmp_path) is None
    assert terms_of(RunFolder.create(tmp_path, "pretrain", {"epochs": 3}, seed=7, name="base").path) is None
    broken = RunFolder.create(tmp_path, "simulate", {"federation": {"rounds": 3}}, seed=7, name="broken")
    with pytest.raises(ConfigError, match="config must be that of a federated run, got 'plan'"):
        terms_of(broken.path)


def test_a_run_under_secure_aggregation_also_states_what_the_server_could_learn() -> None:
    check_summary(changed("privacy/federated_eps2/server_epsilon", 9.0))
    with pytest.raises(ConfigError, match="server_epsilon must be a finite number"):
        check_summary(changed("privacy/federated_eps2/server_epsilon", math.inf))
