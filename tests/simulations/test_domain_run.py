"""The rounds of domains are of the run's kind, with noise of their own, or are refused before they begin."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from ownlet.shared.config import AdapterConfig, FederationConfig, MethodName, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.shared.secure_config import SecureConfig
from ownlet.simulations.domain_run import DomainRunConfig, domain_terms

ASKED = DomainRunConfig(run=Path("run"), by="region", rounds=4, target_epsilon=3.0, seed=7)
BEFORE = FederationConfig(rounds=30, cohort_rate=0.2, noise_multiplier=1.0, patience=3, target_epsilon=8.0)
FROZEN = AdapterConfig(method="lora-frozen-a")


def test_the_noise_is_what_the_domains_rounds_take_for_their_own_target() -> None:
    terms = domain_terms(ASKED, BEFORE, FROZEN)
    assert (terms.rounds, terms.patience, terms.target_epsilon, terms.seed) == (4, 0, 3.0, 7)
    spent = epsilon(user_level_event(0.2, terms.noise_multiplier, 4), terms.dp_delta)
    assert 2.9 < spent <= 3.0


def test_a_run_without_noise_has_domains_without_noise() -> None:
    plain = domain_terms(replace(ASKED, target_epsilon=math.inf), replace(BEFORE, unit="none"), FROZEN)
    assert (plain.unit, plain.noise_multiplier) == ("none", BEFORE.noise_multiplier)
    assert math.isinf(plain.target_epsilon)


@pytest.mark.parametrize(
    ("method", "svd_every", "alternate"), [("lora-frozen-a", 0, False), ("fedsvd", 1, False), ("rolora", 0, True)]
)
def test_rounds_do_what_the_runs_method_asks_of_the_server(method: MethodName, svd_every: int, alternate: bool) -> None:
    terms = domain_terms(ASKED, BEFORE, AdapterConfig(method=method))
    assert (terms.svd_every, terms.alternate) == (svd_every, alternate)


def test_how_often_the_run_turned_a_is_kept() -> None:
    assert domain_terms(ASKED, replace(BEFORE, svd_every=5), AdapterConfig(method="fedsvd")).svd_every == 5


def test_a_run_with_secure_aggregation_is_refused() -> None:
    secure = replace(BEFORE, secure=SecureConfig(enabled=True))
    with pytest.raises(ConfigError, match="run must be one without secure aggregation: a domain is one node"):
        domain_terms(ASKED, secure, FROZEN)


def test_a_run_with_local_privacy_or_turns_is_refused() -> None:
    window = replace(BEFORE, unit="window", noise_multiplier=0.0, plan=Plan(noise_multiplier=1.0, clip_norm=0.1))
    with pytest.raises(ConfigError, match="run must have Poisson cohorts and noise of the server"):
        domain_terms(ASKED, window, FROZEN)
    with pytest.raises(ConfigError, match="target_epsilon must be finite"):
        domain_terms(replace(ASKED, target_epsilon=math.inf), BEFORE, FROZEN)
