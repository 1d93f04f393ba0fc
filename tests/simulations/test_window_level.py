import json
import math
from pathlib import Path

import pytest

from ownlet.shared.metrics import Metric
from ownlet.simulations.benchmarks.window_level import Point, main, smallest_fleet


def point(fleet: int, low: float) -> Point:
    gain = Metric(value=low + 0.001, low=low, high=low + 0.002)
    return Point(epsilon=2.0, fleet=fleet, step=0.0, gain=gain, lengths=(1.0,))


def test_it_pays_from_the_fleet_on_after_which_no_interval_reaches_zero():
    assert smallest_fleet([point(100, 0.001), point(300, -0.001), point(1000, 0.001), point(3000, 0.002)], 2.0) == 1000
    assert smallest_fleet([point(100, 0.001), point(300, -0.001)], 2.0) is None
    assert smallest_fleet([point(100, 0.001)], math.inf) is None


@pytest.mark.slow
def test_runs_that_are_on_file_are_not_run_again(tmp_path: Path):
    options = ["--fleets", "60", "--epsilons", "none,8", "--seeds", "0", "--workers", "1", "--out", str(tmp_path)]
    main(options)
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    found = json.loads(next(tmp_path.glob("window_level_*.json")).read_text())
    assert [(one["epsilon"], one["fleet"], len(one["lengths"])) for one in found] == [("none", 60, 1), ("8", 60, 1)]
    assert all(one["gain"]["low"] <= one["gain"]["value"] <= one["gain"]["high"] for one in found)
    main([*options, "--seeds", "0"])
    assert len(parts) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == parts
