"""The benchmark of slow devices: its trace, its strategies, and how it reads a curve."""

from pathlib import Path

import numpy as np
import pytest

from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError
from ownlet.simulations.benchmarks.stragglers import Curve, hours_to, made_trace, read_trace, strategies, trace_bytes


def test_a_made_trace_is_heavy_tailed_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    seconds = made_trace(20_000, 0)
    assert np.median(seconds) == pytest.approx(60, rel=0.1)
    assert np.quantile(seconds, 0.84) / np.median(seconds) == pytest.approx(np.e, rel=0.15)  # one sigma, and the tail
    assert seconds.max() > 100 * np.median(seconds)
    np.testing.assert_array_equal(made_trace(20_000, 0), seconds)
    path = tmp_path / "trace.csv"
    path.write_bytes(trace_bytes(seconds[:50]))
    np.testing.assert_allclose(read_trace(path), seconds[:50], atol=1e-3)


@pytest.mark.parametrize("rows", ["", "0,-1\n", "0,nan\n", "0,inf\n"])
def test_a_trace_without_positive_times_is_refused(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("user,seconds\n" + rows)
    with pytest.raises(ConfigError, match="positive seconds"):
        read_trace(path)


def test_strategies_ask_for_equally_many_updates() -> None:
    config = FederationConfig(rounds=10, cohort_rate=0.05, noise_multiplier=0.0)
    compared = strategies(config, 2000, 60.0)
    assert compared["FedBuff"].rounds * compared["FedBuff"].buffer.size == 10 * 0.05 * 2000
    assert compared["deadline"].deadline_seconds == 120.0
    assert compared["first N"].asked_rate == pytest.approx(0.05 * 4 / 3)


def test_the_time_to_a_quality_is_that_of_the_first_look_that_has_it() -> None:
    curve = Curve(hours=(0.0, 1.0, 2.0), quality=(0.1, 0.3, 0.2), updates=1, late=0)
    assert (hours_to(curve, 0.1), hours_to(curve, 0.2), hours_to(curve, 0.31)) == (0.0, 1.0, None)
