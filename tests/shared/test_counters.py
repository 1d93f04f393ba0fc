import json
import math

import numpy as np
import pytest

from ownlet.shared.counters import CountReport, CountTerms, chance_of_one, gain, parse_report
from ownlet.shared.errors import ConfigError, DataError, PrivacyError
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import (
    compose_events,
    epsilon,
    event_from_json,
    event_to_json,
    randomized_response_event,
    user_level_event,
)

TERMS = CountTerms(count="first", impressions=10, epsilon=1.2)
REPORT = CountReport(count="first", arm="b", version=3, bit=1, id="0f" * 16)


def test_no_two_contents_of_a_device_can_be_told_apart_beyond_epsilon():
    chances = [chance_of_one(hits, TERMS) for hits in range(11)]
    for one in chances:
        for other in chances:
            assert one / other <= math.exp(1.2) * (1 + 1e-12)
            assert (1 - one) / (1 - other) <= math.exp(1.2) * (1 + 1e-12)
    assert chances[-1] / chances[0] == pytest.approx(math.exp(1.2))  # and that is tight


def test_the_mean_bit_tells_the_hit_rate():
    for hits in (0, 3, 10, 25):
        share = min(hits, 10) / 10
        assert (chance_of_one(hits, TERMS) - 0.5) / gain(1.2) + 0.5 == pytest.approx(share)
    bits = AesNoise.seeded("bits").poisson_mask(40_000, chance_of_one(3, TERMS))
    assert float(np.mean(bits)) == pytest.approx(chance_of_one(3, TERMS), abs=4 * 0.5 / 200)


def test_epsilon_of_a_flipped_bit_is_its_own_and_adds_to_the_rest():
    bit, noised = randomized_response_event(0.7), user_level_event(1.0, 4.0, 3)
    assert epsilon(bit, 1e-6) == pytest.approx(0.7)
    assert epsilon(compose_events(bit, noised, bit), 1e-6) == pytest.approx(1.4 + epsilon(noised, 1e-6))
    assert event_from_json(event_to_json(compose_events(bit, noised))) == compose_events(bit, noised)
    assert epsilon(event_from_json('{"kind":"randomized_response","noise_parameter":0.0}'), 1e-6) == math.inf
    with pytest.raises(PrivacyError, match=r"noise_parameter must be in \[0, 1\]"):
        event_from_json('{"kind":"randomized_response","noise_parameter":1.5}')


def test_a_report_survives_the_trip_and_names_no_device():
    assert parse_report(REPORT.to_json()) == REPORT
    assert set(json.loads(REPORT.to_json())) == {"format", "count", "arm", "version", "bit", "id"}


@pytest.mark.parametrize(
    "change",
    [
        {"bit": 2},
        {"bit": True},
        {"bit": 0.5},
        {"arm": "c"},
        {"version": -1},
        {"version": "3"},
        {"id": "x"},
        {"count": "a/b"},
        {"format": "other"},
        {"more": 1},
    ],
)
def test_what_no_device_writes_is_refused(change: dict[str, object]):
    with pytest.raises(DataError, match="count report must be one that a device wrote"):
        parse_report(json.dumps({**json.loads(REPORT.to_json()), **change}))


@pytest.mark.parametrize("line", ["", "[]", "null", "{}", "[" * 100_000])
def test_lines_that_are_no_reports_are_refused(line: str):
    with pytest.raises(DataError, match="count report must be one that a device wrote"):
        parse_report(line)


@pytest.mark.parametrize("change", [{"count": ""}, {"impressions": 0}, {"epsilon": 0.0}, {"epsilon": math.inf}])
def test_terms_that_cannot_be_are_refused(change: dict[str, object]):
    with pytest.raises(ConfigError, match="must be"):
        CountTerms(**{"count": "x", **change})  # type: ignore[arg-type]
