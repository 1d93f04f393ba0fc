"""``ownlet domains`` as a user types it, on interactions whose next item depends on the region."""

import re
from pathlib import Path

import numpy as np
import pytest

from ownlet.shared.domains import load_domains

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
    run("pretrain", *shape, "--dim", 16, "--layers", 1, "--epochs", 3, "--learning-rate", 0.01, "--name", "base")
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
