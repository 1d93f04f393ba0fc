"""The benchmark of the audit ends with an error exactly where something is not as it must be."""

import json
from dataclasses import replace

import pytest

from ownlet.simulations.audit.result import AuditResult, Check, Claim
from ownlet.simulations.benchmarks.audit import SHARE, failures, plain

CLAIM = Claim(unit="window", sample_rate=1.0, noise_multiplier=4.0, clip_norm=1.0, steps=1)
FAILED = Check(name="noise", passed=False, statement="noise is short")
RIGHT = AuditResult(method="component", subject="x", claim=CLAIM, epsilon_lower=0.9 * CLAIM.epsilon, confidence=0.95)
BROKEN = replace(RIGHT, checks=(FAILED,))


def test_what_is_right_and_what_is_flagged_are_no_failures():
    assert failures([RIGHT], {"broken": BROKEN}, {"engine": RIGHT}) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(RIGHT, epsilon_lower=1.01 * CLAIM.epsilon), "must pass"),
        (replace(RIGHT, epsilon_lower=0.99 * SHARE * CLAIM.epsilon), "must reach"),
        (BROKEN, "failed checks: noise"),
    ],
)
def test_a_right_one_that_exceeds_falls_short_or_fails_is_a_failure(wrong, said):
    for found in (failures([RIGHT, wrong], {}, {}), failures([RIGHT], {}, {"engine": wrong})):
        assert len(found) == 1
        assert said in found[0]


def test_a_broken_one_that_passes_is_a_failure():
    assert failures([RIGHT], {"noise halved": RIGHT}, {}) == ["noise halved must be flagged"]


def test_the_file_holds_every_bound_and_every_flag():
    found = json.loads(json.dumps(plain([RIGHT, RIGHT], {"a": BROKEN, "b": RIGHT}, {"opacus": RIGHT})))
    both = {"epsilon_theory": CLAIM.epsilon, "epsilon_lower": RIGHT.epsilon_lower}
    assert found == {
        "correct": {**both, "epsilon_lower": [RIGHT.epsilon_lower] * 2},
        "zoo": {"a": True, "b": False},
        "engines": {"opacus": both},
    }
