"""``ownlet domains`` as a user types it, on interactions whose next item depends on the region."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ownlet.device.train import Engine
from ownlet.shared.domains import load_domains
from ownlet.simulations import domain_run
from ownlet.simulations.domain_run import DomainRunConfig
from ownlet.simulations.domains import DomainRuns, federate_domains
from ownlet.simulations.progress import Silent
from ownlet.simulations.store import EventStore

from .test_commands import refuse, run

REGIONS = ("north", "south")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over users of two regions, in which the same items follow each other in opposite orders."""
    folder, rng = tmp_path_factory.mktemp("domains"), np.random.default_rng(0)
    lines = ["user,item,timestamp,region"]
    for user in range(120):
        item, region = int(rng.integers(20)), user % 2
        for second in range(9):
            lines.append(f"u{user},i{item},{second},{REGIONS[region]}")
            item = (item + (1, -1)[region]) % 20
    (folder / "events.csv").write_text("\n".join(lines))
    shape = ("--core", 0, "--runs", folder / "runs", "--data", folder / "events.csv")
    run(
        "pretrain", *shape, "--dim", 16, "--layers", 1, "--epochs", 3, "--learning-rate", 0.01, "--name", "base",
        "--context", "gap",
    )  # fmt: skip
    run(
        "simulate", *shape, "--base", folder / "runs" / "base" / "base.pt", "--name", "fed", "--rounds", 2,
        "--target-epsilon", 50, "--noise-multiplier", 0.5,
        "--set", "federation.plan.learning_rate=0.001",
    )  # fmt: skip
    return folder / "runs" / "fed"


@pytest.mark.slow
def test_each_domain_is_served_and_charged_beside_the_run(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "domains.safetensors"
    told = run("domains", finished, "--rounds", 2, "--target-epsilon", 40, "--min-devices", 10, "--out", out)
    assert all(re.search(rf"{region}\s+4\d\s+4\d\s+(its own|the run's)", told) for region in REGIONS)
    spent = [float(number) for number in re.findall(r"(?:at most|before:)\s+(\d+\.\d+)", told)]
    assert 0 < spent[0] <= 40
    assert spent[0] < spent[1]
    adapters = load_domains(out)
    assert set(adapters.vectors) <= set(REGIONS)
    assert adapters.version > 0


@pytest.mark.slow
def test_what_is_no_such_run_or_column_is_refused_and_leaves_no_file(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "domains.safetensors"
    assert "ownlet pretrain" in refuse("domains", finished.parent / "base", "--out", out)
    assert "got no ['town']" in refuse("domains", finished, "--by", "town", "--out", out)
    assert not out.exists()


@pytest.mark.slow
def test_a_base_that_reads_context_is_given_it(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[EventStore] = []

    def rounds(engine: Engine, devices: EventStore, *arguments: Any, **options: Any) -> DomainRuns:
        given.append(devices)
        return federate_domains(engine, devices, *arguments, **options)

    monkeypatch.setattr(domain_run, "federate_domains", rounds)
    config = DomainRunConfig(run=finished, by="period", rounds=1, target_epsilon=40, min_devices=10)
    done = domain_run.run_domains(config, tmp_path / "domains.safetensors", Silent())
    assert given[0].context is not None
    assert given[0].context.max() > 0
    assert [(row.domain, row.devices) for row in done.rows] == [("period-0", given[0].num_users)]
    assert done.late is not None
    assert done.late.value == 0  # there is no period before
