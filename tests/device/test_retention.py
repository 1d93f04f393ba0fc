import numpy as np
import pytest

from ownlet.device.retention import Retention, expired
from ownlet.shared.errors import ConfigError

DAY = 86_400.0


@pytest.mark.parametrize("max_events", [0, -1, 1.5, True, "9"])
def test_a_number_of_events_must_be_a_positive_integer(max_events: int) -> None:
    with pytest.raises(ConfigError, match="max_events must be"):
        Retention(max_events=max_events)


@pytest.mark.parametrize("age", [0.0, -1.0, float("inf"), float("nan"), "9", True])
def test_an_age_must_be_positive_and_finite(age: float) -> None:
    with pytest.raises(ConfigError, match="max_age_seconds must be"):
        Retention(max_age_seconds=age)


@pytest.mark.parametrize("max_events, between", [(1, 1), (100, 10), (100_000, 1000), (None, 1000)])
def test_pruning_leaves_at_most_a_tenth_too_much(max_events: int | None, between: int) -> None:
    assert Retention(max_events=max_events).records_between == between


def test_events_older_than_the_age_expire() -> None:
    timestamps = np.arange(100.0) * DAY
    np.testing.assert_array_equal(expired(timestamps, 90 * DAY, 30 * DAY), timestamps < 60 * DAY)


def test_the_device_clock_is_not_trusted_beyond_the_tenth_newest_event() -> None:
    timestamps = np.arange(100.0) * DAY
    np.testing.assert_array_equal(expired(timestamps, 1e12, 30 * DAY), timestamps < 60 * DAY)


def test_nine_events_from_the_future_expire_nothing_and_ten_do() -> None:
    timestamps = np.concatenate([np.arange(50.0) * DAY, np.full(9, 1e12)])
    assert not expired(timestamps, 1e12, 60 * DAY).any()
    assert expired(np.append(timestamps, 1e12), 1e12, 60 * DAY).sum() == 50


def test_a_clock_that_goes_back_expires_nothing() -> None:
    assert not expired(np.arange(100.0) * DAY, 10 * DAY, 30 * DAY).any()


@pytest.mark.parametrize("size", [0, 1, 9])
def test_fewer_than_ten_events_never_expire(size: int) -> None:
    assert not expired(np.zeros(size), 1e12, 1.0).any()


def test_order_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        timestamps, now, age = rng.uniform(0, 100, 40), rng.uniform(0, 150), rng.uniform(1, 100)
        reference = min(now, sorted(timestamps)[-10])
        np.testing.assert_array_equal(expired(timestamps, now, age), [t < reference - age for t in timestamps])
