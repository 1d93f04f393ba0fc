"""Runs side by side, from folders that the run folder itself has written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.shared.errors import ConfigError, DataError
from ownlet.simulations.base_run import BaseRunConfig
from ownlet.simulations.compare import Section, compare_runs, load_run, series_of, write_comparison
from ownlet.simulations.pretrain import PretrainConfig
from ownlet.simulations.results import RunFolder


def metric(value: float, width: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def make_run(root: Path, name: str, *, rate: float = 0.1, ndcg: float = 0.1, epsilon: float | None = None) -> Path:
    config = BaseRunConfig(recipe=PretrainConfig(learning_rate=rate))
    folder = RunFolder.create(root, "pretrain", config, 0, name=name)
    folder.write_metrics([{"round": at, "public_ndcg@10": ndcg * at, "epsilon": epsilon} for at in (1, 2)])
    quality = {metric_name: metric(ndcg) for metric_name in ("hr@10", "ndcg@10", "mrr@10")}
    promise = {"epsilon": epsilon, "dp_delta": 1e-5, "unit": "user", "rounds": 2, "accountant": "PLD"}
    summary: dict[str, Any] = {
        "command": "simulate",
        "seconds": 1.5,
        "data": {"name": "d", "users": 10, "items": 5, "interactions": 1200},
        "quality": {"federated": quality},
        **({} if epsilon is None else {"privacy": {"federated": promise}}),
    }
    folder.write_summary(summary)
    return folder.path


def section(sections: tuple[Section, ...], title: str) -> Section:
    return next(found for found in sections if found.title == title)


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "a"), make_run(tmp_path, "b", rate=0.2, ndcg=0.105, epsilon=1.25)
    versions = json.loads((second / "versions.json").read_text())
    versions["packages"]["torch"] = "9.9"
    (second / "versions.json").write_text(json.dumps(versions))
    sections = compare_runs([load_run(first), load_run(second)])
    assert section(sections, "Settings that differ").rows == (("recipe.learning_rate", "0.1", "0.2"),)
    assert [(row[0], row[2]) for row in section(sections, "Versions that differ").rows] == [("torch", "9.9")]
    assert section(sections, "Privacy").rows == (
        ("federated", "no promise", "ε = 1.250 at δ = 1e-05, user level, 2 rounds"),
    )
    assert ("public_ndcg@10", "0.2", "0.21") in section(sections, "Last metrics").rows


@pytest.mark.parametrize(
    ("other", "told"), [(0.105, "+0.0050 ≈"), (0.12, "+0.0200 ≈"), (0.1201, "+0.0201"), (0.07, "−0.0300")]
)
def test_intervals_that_overlap_are_marked(tmp_path: Path, other: float, told: str) -> None:
    runs = [load_run(make_run(tmp_path, "a", ndcg=0.1)), load_run(make_run(tmp_path, "b", ndcg=other))]
    if told == "+0.0200 ≈":  # touching: exactly, in spite of rounding
        runs[1].summary["quality"]["federated"]["ndcg@10"]["low"] = 0.11
        runs[0].summary["quality"]["federated"]["ndcg@10"]["high"] = 0.11
    rows = section(compare_runs(runs), "Quality").rows
    assert next(row for row in rows if row[1] == "NDCG@10")[-1] == told


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, "a"))
    sections = compare_runs([run, run])
    for title in ("Settings that differ", "Versions that differ"):
        assert section(sections, title).rows == ()
        assert section(sections, title).note == "None."
    assert section(sections, "Runs").head == ("", "a (1)", "a (2)")


def test_other_data_is_said_aloud(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, "a"))
    other = replace(run, summary={**run.summary, "data": {**run.summary["data"], "users": 11}})
    assert "cannot be compared" in section(compare_runs([run, other]), "Runs").note


def test_seeds_become_their_mean_where_all_were_measured() -> None:
    rows = [
        {"run": "federated", "seed": seed, "round": at, "public_ndcg@10": value}
        for seed, values in ((0, (0.1, None, 0.3)), (1, (0.3, 0.4, 0.5)))
        for at, value in enumerate(values)
    ]
    assert [row["public_ndcg@10"] for row in series_of(rows)["federated"]] == [0.2, None, 0.4]


def test_a_page_holds_every_table_and_the_curves_and_escapes_names(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path, "a")), load_run(make_run(tmp_path, "b", ndcg=0.2))]
    evil = replace(runs[1], name="<script>")
    page = write_comparison(tmp_path / "out" / "c.html", [runs[0], evil]).read_text()
    assert "<script>" not in page
    assert page.count("<table>") == 3
    assert page.count("<svg") == 1
    for title in ("Runs", "Quality", "Last metrics"):
        assert f"<h2>{title}</h2>" in page
    assert write_comparison(tmp_path / "c.png", runs).stat().st_size > 10_000
    with pytest.raises(ConfigError, match=r"out must end in \.html"):
        write_comparison(tmp_path / "c.txt", runs)


def test_folders_that_are_no_finished_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run must be a folder with config\.json"):
        load_run(tmp_path)
    unfinished = RunFolder.create(tmp_path, "pretrain", {}, 0, name="u").path
    with pytest.raises(DataError, match=r"run must be finished, got .*u without summary\.json"):
        load_run(unfinished)
    damaged = make_run(tmp_path, "damaged")
    (damaged / "config.json").write_text("[]")
    with pytest.raises(DataError, match="run must have the files that a command writes"):
        load_run(damaged)
    with pytest.raises(ConfigError, match="runs must be at least two"):
        compare_runs([load_run(make_run(tmp_path, "a"))])


def test_the_command_prints_the_tables_and_writes_the_page(tmp_path: Path) -> None:
    paths = [str(make_run(tmp_path, "a")), str(make_run(tmp_path, "b", rate=0.2))]
    result = CliRunner().invoke(build_app(COMMANDS), ["compare", *paths, "--out", str(tmp_path / "c.html")])
    assert result.exit_code == 0, result.output
    for part in ("recipe.learning_rate", "NDCG@10", "No run promises any.", "c.html"):
        assert part in result.output
    assert CliRunner().invoke(build_app(COMMANDS), ["compare", paths[0]]).exit_code == 2
