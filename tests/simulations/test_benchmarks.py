"""The benchmarks measure what they say; how fast anything is, no test asks."""

import json

import numpy as np
import pytest

from ownlet.simulations.benchmarks import byzantine, secure_sum, users_per_second
from ownlet.simulations.benchmarks.cohort_flower import measure_cohort
from ownlet.simulations.benchmarks.growth import AXES, exponent
from ownlet.simulations.benchmarks.matmul_limit import measure_limit
from ownlet.simulations.benchmarks.workload import DP_PLAN, Workload

SMALL = Workload(num_items=40, dim=16, rank=2, windows_per_user=2, window_length=5)


def test_the_exponent_of_a_power_is_that_power():
    sizes = [10, 100, 1000]
    assert exponent(sizes, [3.0 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    assert exponent(sizes, [7.0, 7.0, 7.0]) == pytest.approx(0.0)


def test_a_written_workload_has_the_users_it_was_asked_for(tmp_path):
    store = SMALL.store(tmp_path / "store", 7)
    assert store.num_users == 7
    assert np.diff(store.offsets).tolist() == [10] * 7
    assert store.windows(np.arange(7), SMALL.windows).counts.tolist() == [2] * 7


def test_the_limit_counts_the_products_of_the_step():
    found = measure_limit(3, repeats=3, workload=SMALL)
    positions, d = 3 * 2 * 4, 16
    per_position = 2 * 40 * d + (4 + 8) * d * d  # scores both ways, the linear layers of one block forward: at least
    assert found.flops > DP_PLAN.steps * positions * 2 * per_position
    assert found.flops < 12 * DP_PLAN.steps * positions * 2 * per_position
    assert 0 < found.fraction < 1
    assert found.step_flops_per_second == pytest.approx(found.fraction * found.matmul_flops_per_second)


def test_a_measurement_in_a_process_of_its_own_tells_rounds_and_memory():
    speed = measure_cohort(6, 3, population=20, unit="user", workload=SMALL)
    assert len(speed.round_seconds) == 3
    assert speed.users_per_second > 0
    assert speed.peak_rss_bytes > 50 * 2**20


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_axes_rise(axis):
    assert list(axis.sizes) == sorted(axis.sizes)
    assert len(axis.sizes) >= 3


def test_the_file_has_the_promised_keys(tmp_path, monkeypatch):
    names = ("flower_opacus", "opacus_loop", "cohort", "pfl")
    monkeypatch.setattr(
        users_per_second, "measure", lambda cohort, repeats, threads, told: {name: [1.0, 3.0, 2.0] for name in names}
    )
    monkeypatch.setattr(users_per_second, "measure_limit", lambda: measure_limit(3, repeats=3, workload=SMALL))
    users_per_second.main(["--cohorts", "20", "--cohort", "20", "--out", str(tmp_path / "bench" / "cohort.json")])
    found = json.loads((tmp_path / "bench" / "cohort.json").read_text())
    assert set(found) == {"users_per_second", "cohort_size", "matmul_fraction", "peak_rss_bytes"}
    assert found["users_per_second"] == dict.fromkeys(names, 2.0)
    assert found["cohort_size"] == 20


def test_secure_aggregation_is_measured_on_right_sums_and_costs_bytes_per_neighbour():
    open_round, secure, dropped = (
        secure_sum.measure(5, 40, secure=on, dropped=lost) for on, lost in ((False, 0), (True, 0), (True, 1))
    )
    assert (open_round.neighbours, secure.neighbours) == (0, 4)
    assert secure.up_bytes > 3 * 40 + 4 * (82 + 2 * 16 + 33) > open_round.up_bytes - 4 * 40
    assert dropped.up_bytes < secure.up_bytes
    assert secure.down_bytes > open_round.down_bytes + 5 * 32


def test_a_folder_in_place_of_a_file_is_refused_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        byzantine.main(["--out", str(tmp_path)])
    assert f"--out: must be a file, got the folder {tmp_path}" in capsys.readouterr().err
