"""Expectations: closed forms of the average, of momentum, and the chi-squared law of the noise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from ownlet.server.aggregate import noised_average, server_step, sum_of
from ownlet.shared.adapter import AdapterSpec, LayerShape
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise

CONFIG = FederationConfig(cohort_rate=0.25, clip_norm=0.5, noise_multiplier=2.0, server_momentum=0.9)
SPEC = AdapterSpec(layers=(LayerShape(name="x", in_features=2, out_features=3),), rank=1, alpha=1.0, base_hash="b")


def test_noise_on_the_sum_has_standard_deviation_sigma_times_clip_norm() -> None:
    n, num_users = 20_000, 40
    average = noised_average(np.zeros(n), CONFIG, num_users, AesNoise.seeded("chi"))
    on_sum = average * CONFIG.cohort_rate * num_users
    statistic = float(np.sum((on_sum / (2.0 * 0.5)) ** 2))
    assert chi2.ppf(1e-5, n) < statistic < chi2.ppf(1 - 1e-5, n)


def test_the_denominator_is_public_and_does_not_depend_on_who_answered() -> None:
    config = replace(CONFIG, noise_multiplier=0.0)
    for admitted in ({}, {1: np.ones(4, np.float32)}, {1: np.ones(4, np.float32), 9: np.ones(4, np.float32)}):
        average = noised_average(sum_of(admitted, 4), config, 40, AesNoise())
        np.testing.assert_allclose(average, np.full(4, len(admitted) / 10.0))


@pytest.mark.parametrize("unit", ["window", "none"])
def test_the_server_adds_noise_only_where_the_user_is_the_unit(unit: str) -> None:
    from ownlet.shared.config import Plan

    plan = Plan(clip_norm=1.0, noise_multiplier=1.0)
    config = FederationConfig(unit=unit, noise_multiplier=2.0, plan=plan)  # type: ignore[arg-type]
    assert not noised_average(np.zeros(100), config, 10, AesNoise()).any()


def test_momentum_is_that_of_fedavgm() -> None:
    vector, momentum = np.zeros(SPEC.size, np.float32), np.zeros(SPEC.num_trainable)
    config = replace(CONFIG, server_learning_rate=0.5, server_momentum=0.8)
    ones = np.ones(SPEC.num_trainable)
    for number in (1, 2, 3):
        vector, momentum = server_step(SPEC, vector, momentum, ones, config, number)
    # momentum 1, 1.8, 2.44; the adapter moves by half their sum
    np.testing.assert_allclose(momentum, 2.44 * ones)
    np.testing.assert_allclose(vector[SPEC.trainable], 2.62 * ones, rtol=1e-6)
    assert not vector[: SPEC.size_a].any()  # the frozen A never moves


def test_the_schedule_scales_the_step_and_not_the_momentum() -> None:
    config = replace(CONFIG, rounds=6, schedule="linear", warmup_rounds=2, server_momentum=0.0)
    vector, momentum = np.zeros(SPEC.size, np.float32), np.zeros(SPEC.num_trainable)
    factors = []
    for number in range(1, 7):
        moved, momentum = server_step(SPEC, vector, momentum, np.ones(SPEC.num_trainable), config, number)
        factors.append(float(moved[-1] - vector[-1]))
        vector = moved
        np.testing.assert_array_equal(momentum, 1.0)
    np.testing.assert_allclose(factors, [1 / 2, 1, 1, 3 / 4, 1 / 2, 1 / 4], rtol=1e-6)


def test_the_order_of_replies_does_not_change_a_bit() -> None:
    rng = np.random.default_rng(0)
    sums = {node: (rng.normal(size=50) * 10.0 ** (4 * node - 16)).astype(np.float32) for node in range(9)}
    backwards = dict(reversed(list(sums.items())))
    assert np.array_equal(sum_of(sums, 50), sum_of(backwards, 50))


def test_a_population_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_users must be at least 1"):
        noised_average(np.zeros(3), CONFIG, 0, AesNoise())
