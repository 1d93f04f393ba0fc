import math

import pytest

from ownlet.shared.errors import ConfigError
from ownlet.simulations.audit.result import AuditResult, Check, Claim

CLAIM = Claim(unit="window", sample_rate=0.1, noise_multiplier=1.1, clip_norm=0.5, steps=100)


def test_a_claim_has_the_published_epsilon() -> None:
    assert CLAIM.epsilon == pytest.approx(5.91, abs=0.01)  # q = .1, sigma = 1.1, T = 100, delta = 1e-5


def test_a_claim_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        Claim(unit="user", sample_rate=0.1, noise_multiplier=0.0, clip_norm=1.0, steps=1)


def test_a_subject_is_flagged_by_a_bound_above_its_claim_or_by_a_failed_check() -> None:
    fine = AuditResult(method="component", subject="x", claim=CLAIM, epsilon_lower=5.0, confidence=0.95)
    assert not fine.flagged
    above = AuditResult(method="component", subject="x", claim=CLAIM, epsilon_lower=math.inf, confidence=0.95)
    assert above.flagged
    assert above.exceeds
    failed = Check(name="noise", passed=False, statement="the noise is too small")
    checked = AuditResult(
        method="component", subject="x", claim=CLAIM, epsilon_lower=0.0, confidence=0.95, checks=(failed,)
    )
    assert checked.flagged
    assert not checked.exceeds
