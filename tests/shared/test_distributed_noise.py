"""Expectation: independent Gaussians add up by variance."""

import math

import numpy as np
import pytest

from ownlet.shared.distributed_noise import distributed_event, realised_noise_multiplier, share_noise_multiplier
from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import epsilon, user_level_event

DELTA = 1e-6


def test_the_fewest_shares_that_are_accepted_give_the_noise_that_was_promised() -> None:
    share = share_noise_multiplier(3.0, least_shares=80, num_colluding=16)
    assert realised_noise_multiplier(share, 80, 16) == pytest.approx(3.0)
    assert realised_noise_multiplier(share, 100, 16) > 3.0 > realised_noise_multiplier(share, 79, 16)


def test_what_is_charged_is_the_noise_that_arrived() -> None:
    share = share_noise_multiplier(4.0, least_shares=100)
    spent = [epsilon(distributed_event(share, arrived), DELTA) for arrived in (200, 100, 50, 10)]
    assert spent == sorted(spent)
    assert spent[1] == pytest.approx(epsilon(user_level_event(1.0, 4.0, 1), DELTA), abs=1e-9)
    assert spent[2] == pytest.approx(epsilon(user_level_event(1.0, 4.0 / math.sqrt(2), 1), DELTA), abs=1e-9)
    assert epsilon(distributed_event(share, 100, cohort_rate=0.1), DELTA) < spent[1]


def test_without_an_honest_share_nothing_is_private() -> None:
    assert epsilon(distributed_event(1.0, 0), DELTA) == math.inf
    assert epsilon(distributed_event(1.0, 5, num_colluding=5), DELTA) == math.inf
    assert epsilon(distributed_event(1.0, 5, num_colluding=9), DELTA) == math.inf


def test_shares_add_up_to_the_realised_noise() -> None:
    shares = np.random.default_rng(0).normal(scale=0.5, size=(40, 20_000))
    assert shares.sum(axis=0).std() == pytest.approx(realised_noise_multiplier(0.5, 40), rel=0.02)


@pytest.mark.parametrize(("sigma", "least", "colluding"), [(-1.0, 5, 0), (math.inf, 5, 0), (1.0, 0, 0), (1.0, 5, 5)])
def test_numbers_out_of_range_are_refused(sigma: float, least: int, colluding: int) -> None:
    with pytest.raises(ConfigError, match="must"):
        share_noise_multiplier(sigma, least, colluding)
    with pytest.raises(ConfigError, match="must"):
        realised_noise_multiplier(1.0, -1)
