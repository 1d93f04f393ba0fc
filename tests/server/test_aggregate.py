"""Expectations: closed forms of the average, and the chi-squared law of the noise."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from ownlet.server.aggregate import noised_average
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise

CONFIG = FederationConfig(cohort_rate=0.25, clip_norm=0.5, noise_multiplier=2.0, server_momentum=0.9)


def test_noise_on_the_sum_has_standard_deviation_sigma_times_clip_norm() -> None:
    n, num_users = 20_000, 40
    average = noised_average(np.zeros(n), CONFIG, num_users, AesNoise.seeded("chi"))
    on_sum = average * CONFIG.cohort_rate * num_users
    statistic = float(np.sum((on_sum / (2.0 * 0.5)) ** 2))
    assert chi2.ppf(1e-5, n) < statistic < chi2.ppf(1 - 1e-5, n)


def test_the_denominator_is_public_and_does_not_depend_on_who_answered() -> None:
    config = replace(CONFIG, noise_multiplier=0.0)
    for admitted in (0, 1, 2):
        average = noised_average(np.full(4, float(admitted)), config, 40, AesNoise())
        np.testing.assert_allclose(average, np.full(4, admitted / 10.0))


@pytest.mark.parametrize("unit", ["window", "none"])
def test_the_server_adds_noise_only_where_the_user_is_the_unit(unit: str) -> None:
    from ownlet.shared.config import Plan

    plan = Plan(clip_norm=1.0, noise_multiplier=1.0)
    config = FederationConfig(unit=unit, noise_multiplier=2.0, plan=plan)  # type: ignore[arg-type]
    assert not noised_average(np.zeros(100), config, 10, AesNoise()).any()


def test_a_population_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_users must be at least 1"):
        noised_average(np.zeros(3), CONFIG, 0, AesNoise())
