import math

import numpy as np
import pytest

from ownlet.server.drift import DropDetector, DropState, look
from ownlet.shared.errors import ConfigError

DETECTOR = DropDetector(baseline=0.4, drop=0.1, false_alarm_every=500.0)


def alarm_time(mean: float, rng: np.random.Generator, most: int = 10_000) -> int:
    state = DropState()
    while not state.alarm and state.values < most:
        state = look(DETECTOR, state, (rng.random(250) < mean).astype(float).tolist())
    return state.alarm_at or most


def test_false_alarms_are_at_least_as_rare_as_promised():
    rng = np.random.default_rng(0)
    times = [alarm_time(0.4, rng) for _ in range(40)]
    assert np.mean(times) - 2 * np.std(times) / math.sqrt(40) > 500


def test_a_fall_is_found_about_as_fast_as_promised():
    rng = np.random.default_rng(1)
    times = [alarm_time(0.3, rng) for _ in range(40)]
    assert np.mean(times) == pytest.approx(DETECTOR.expected_delay, rel=0.25)


def test_looking_in_between_changes_nothing_and_an_alarm_stays():
    values = [0.0] * 200
    whole, state = look(DETECTOR, DropState(), values), DropState()
    for value in values:
        state = look(DETECTOR, state, [value])
    assert state == whole
    assert whole.alarm
    assert look(DETECTOR, whole, [1.0] * 500).alarm_at == whole.alarm_at


def test_the_evidence_of_one_value_is_its_e_value():
    """By hand: k = d / s^2 = .4, L(0) = exp(.4 * .4 - .4^2 * .25 / 2)."""
    assert look(DETECTOR, DropState(), [0.0]).log_evidence == pytest.approx(0.4 * 0.4 - 0.4**2 * 0.25 / 2)


@pytest.mark.parametrize(
    "change", [{"drop": 0.0}, {"scale": math.inf}, {"false_alarm_every": 1.0}, {"baseline": math.nan}]
)
def test_settings_that_cannot_be_are_refused(change: dict[str, float]):
    with pytest.raises(ConfigError, match="must be"):
        DropDetector(**{"baseline": 0.4, "drop": 0.1, **change})  # type: ignore[arg-type]


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match="watched value must be finite"):
        look(DETECTOR, DropState(), [math.nan])
