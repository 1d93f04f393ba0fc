"""Forms in which a delta travels: length, rounding, and the bound on what is decoded."""

import math

import numpy as np
import pytest

from ownlet.shared.coding import coded_bytes, decode, encode, places_of_round, sent_numbers, thin
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.noise import AesNoise, SimulatedNoise
from ownlet.shared.secure_config import SecureConfig
from ownlet.shared.server_config import NoisePlan
from ownlet.shared.wire_config import WireConfig

INT8, FLOAT16, SPARSE = (WireConfig(name=name) for name in ("int8", "float16", "sparse"))  # type: ignore[arg-type]
CODED = pytest.mark.parametrize("wire", [INT8, FLOAT16], ids=lambda wire: wire.name)


class Fixed:
    """The same coin for every number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self, size: int) -> np.ndarray:
        return np.full(size, self.value)


def _delta(size: int = 200, seed: int = 0, norm: float = 0.3) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return drawn * np.float32(norm / np.linalg.norm(drawn))


def test_whole_multiples_of_the_scale_travel_as_they_are_whatever_the_coins() -> None:
    whole = np.array([127, -127, 0, 1, -3, 64], np.float32) * np.float32(2.0**-10)
    for coin in (0.0, 0.3, 0.999):
        data = encode(whole, INT8, math.inf, Fixed(coin))
        np.testing.assert_array_equal(decode(data, INT8, math.inf), whole)
        assert data[4:].view(np.int8).tolist() == [127, -127, 0, 1, -3, 64]


def test_a_number_between_two_steps_goes_up_as_often_as_it_is_far_along() -> None:
    scale = 2.0**-10
    delta = np.array([127, 40.25, -7.75], np.float32) * np.float32(scale)
    for coin, expected in ((0.0, [127, 40, -8]), (0.5, [127, 40, -8]), (0.8, [127, 41, -7]), (0.74, [127, 40, -8])):
        found = decode(encode(delta, INT8, math.inf, Fixed(coin)), INT8, math.inf) / scale
        assert found.tolist() == expected


@pytest.mark.parametrize("coins", [AesNoise.seeded("coins"), SimulatedNoise(1, 2, 3)], ids=["aes", "simulated"])
def test_the_mean_of_many_codes_is_the_delta(coins) -> None:
    delta, times = _delta(50), 2000
    found = [decode(encode(delta, INT8, math.inf, coins), INT8, math.inf) for _ in range(times)]
    step = np.abs(delta).max() / 127
    # each error is within one step and has variance f (1 - f) step² <= step² / 4; 5.5 deviations of the mean of 2,000
    assert np.abs(np.mean(found, axis=0, dtype=np.float64) - delta).max() < 5.5 * step / 2 / math.sqrt(times)
    assert np.abs(found - delta).max() <= step * (1 + 1e-5)
    assert np.var(found, axis=0).max() > 0.15 * step**2  # coins were thrown


def test_float16_is_relative_to_the_largest_number() -> None:
    delta = _delta() * np.float32(1e-6)  # far below the normal numbers of a plain float16
    found = decode(encode(delta, FLOAT16, math.inf, Fixed(0)), FLOAT16, math.inf)
    np.testing.assert_allclose(found, delta, rtol=2**-11 * 1.01, atol=np.abs(delta).max() * 2**-24)


@CODED
def test_what_is_decoded_is_never_longer_than_the_bound(wire: WireConfig) -> None:
    for seed in range(50):
        delta = _delta(norm=0.3, seed=seed)
        for coin in (0.0, 0.5, 1 - 2**-53):
            unbounded = decode(encode(delta, wire, math.inf, Fixed(coin)), wire, math.inf)
            bounded = decode(encode(delta, wire, 0.3, Fixed(coin)), wire, 0.3)
            assert np.linalg.norm(bounded.astype(np.float64)) <= 0.3
            np.testing.assert_allclose(bounded, unbounded, rtol=0.02)
    assert np.linalg.norm(decode(encode(delta, INT8, math.inf, Fixed(1 - 2**-53)), INT8, math.inf)) > 0  # not vacuous


def test_rounding_alone_would_go_beyond_the_bound() -> None:
    delta = np.full(200, 0.3 / math.sqrt(200), np.float32)
    delta[:100] *= np.float32(0.9999)
    long = encode(np.abs(delta), INT8, math.inf, Fixed(0.9))
    assert np.linalg.norm(decode(long, INT8, math.inf)) > np.linalg.norm(delta)


@CODED
def test_zero_and_nothing_travel(wire: WireConfig) -> None:
    for size in (0, 3):
        data = encode(np.zeros(size, np.float32), wire, 0.3, AesNoise())
        assert decode(data, wire, 0.3).tolist() == [0.0] * size
        assert len(data) == coded_bytes(wire, size)


def test_lengths_are_public_numbers() -> None:
    assert [coded_bytes(WireConfig(name=name), 7168) for name in ("float32", "float16", "int8", "sparse")] == [
        4 * 7168,
        4 + 2 * 7168,
        4 + 7168,
        4 * 7168 // 8,
    ]
    assert sent_numbers(WireConfig(name="sparse", keep=1e-9), 10) == 1


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0, 0.301])
@CODED
def test_a_scale_out_of_range_is_refused(wire: WireConfig, scale: float) -> None:
    data = encode(_delta(), wire, 0.3, AesNoise()).copy()
    data[:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    with pytest.raises(FederationError, match="scale"):
        decode(data, wire, 0.3)


def test_numbers_that_no_device_writes_are_refused() -> None:
    data = encode(_delta(), INT8, 0.3, AesNoise()).copy()
    data[4] = 128  # -128
    with pytest.raises(FederationError, match="within 127"):
        decode(data, INT8, 0.3)
    for value in (math.nan, math.inf, 1.01, -2.0):
        data = encode(_delta(), FLOAT16, 0.3, AesNoise()).copy()
        data[4:6] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        with pytest.raises(FederationError, match="within 1"):
            decode(data, FLOAT16, 0.3)
    for length in (0, 3, 5):
        with pytest.raises(FederationError, match="must be a scale"):
            decode(np.zeros(length, np.uint8), FLOAT16, 0.3)


def test_places_are_the_same_for_all_and_others_in_every_round() -> None:
    wire, size, rounds = WireConfig(name="sparse", keep=0.25), 100, 400
    drawn = [places_of_round(wire, number, size) for number in range(1, rounds + 1)]
    np.testing.assert_array_equal(drawn[6], places_of_round(wire, 7, size))
    assert all(len(np.unique(places)) == 25 for places in drawn)
    assert not np.array_equal(drawn[0], drawn[1])
    how_often = np.bincount(np.concatenate(drawn), minlength=size)
    assert np.abs(how_often - rounds / 4).max() < 5.5 * math.sqrt(rounds * 0.25 * 0.75)
    np.testing.assert_array_equal(places_of_round(INT8, 1, 5), np.arange(5))


def test_what_is_left_of_a_delta_has_its_mean_over_rounds_and_is_clipped() -> None:
    wire, deltas = WireConfig(name="sparse", keep=0.5), np.stack([_delta(10), 2 * _delta(10, seed=1)])
    for number in range(20):
        places = places_of_round(wire, number, 10)
        free, bound = thin(deltas, places, math.inf, 2.0), thin(deltas, places, 0.3, 2.0)
        np.testing.assert_array_equal(free[:, places], 2 * deltas[:, places])
        assert np.count_nonzero(free) == 2 * 5
        assert (np.linalg.norm(bound, axis=1) <= 0.3 * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"wire": INT8, "secure": SecureConfig(enabled=True)}, "must be float32 under secure aggregation"),
        ({"wire": WireConfig(name="int8", error_feedback=True), "svd_every": 2}, "svd_every turns"),
        ({"wire": SPARSE, "noise_plan": NoisePlan(name="blt", min_separation=2)}, "every number of every round"),
    ],
)
def test_what_does_not_go_together_is_refused(given, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        FederationConfig(**given)
    with pytest.raises(ConfigError, match="float32 travels"):
        WireConfig(error_feedback=True)
