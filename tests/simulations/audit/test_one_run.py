import math
from pathlib import Path

import dp_accounting as dp
import numpy as np
import pytest

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.config import Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.canaries import audit_start, distinct_rows, window_canaries
from ownlet.simulations.audit.one_run import audit_one_run, audit_one_run_bundle, released_sums
from ownlet.simulations.audit.result import AuditResult
from ownlet.simulations.cohort import CohortEngine

PLAN = Plan(steps=2, clip_norm=0.5, noise_multiplier=2.0)


class Silenced(AesNoise):
    """Coins as they should be, no noise."""

    def gaussian(self, size, std):
        return np.zeros(size, np.float32)


def audit(tiny, plan=PLAN, **changes) -> AuditResult:
    engine = CohortEngine(tiny.model, tiny.spec, threads=1)
    settings = {"num_items": 50, "window_length": 5, "name": "cohort", "seed": 1} | changes
    return audit_one_run(engine, plan, **settings)


def test_a_correct_trainer_stays_below_its_claim_and_more_than_nothing_is_found(tiny) -> None:
    result = audit(tiny, noise=AesNoise.seeded("one run"))
    assert result.claim.epsilon == pytest.approx(dp.get_epsilon_gaussian(2 / math.sqrt(2), 1e-5), abs=0.01)
    assert 0.3 < result.epsilon_lower < result.claim.epsilon
    assert not result.flagged
    assert result.figures["canaries"] == len(result.scores["in"]) + len(result.scores["out"]) == 200


def test_a_trainer_without_noise_is_far_above_its_claim(tiny) -> None:
    result = audit(tiny, noise=Silenced(bytes(32)))
    assert result.epsilon_lower > 2 * result.claim.epsilon
    assert result.figures["epsilon_any_mechanism"] > result.claim.epsilon
    assert result.figures["accuracy"] == 1.0
    assert result.flagged
    assert not result.checks[0].passed


def test_a_bundle_is_audited_alone(tiny_bundle: Path) -> None:
    correct = audit_one_run_bundle(tiny_bundle, PLAN)
    assert correct.epsilon_lower < correct.claim.epsilon
    assert correct.subject == f"executorch, {tiny_bundle.name}"


def test_an_engine_that_shows_its_steps_releases_what_one_step_at_a_time_does(tiny) -> None:
    plan = Plan(steps=3, sample_rate=0.5, clip_norm=0.5, noise_multiplier=1.0, learning_rate=0.01)
    start = audit_start(tiny.spec, tiny.vector, 0)
    opacus, cohort = OpacusEngine(tiny.model, tiny.spec), CohortEngine(tiny.model, tiny.spec, threads=1)
    windows = window_canaries(cohort, start, plan, 6, num_items=50, window_length=5, seed=0).windows
    shown, chained = (
        np.stack(released_sums(engine, start, windows, plan, AesNoise.seeded(3))) for engine in (opacus, cohort)
    )
    assert shown.shape == (3, tiny.spec.num_trainable)
    np.testing.assert_allclose(shown, chained, atol=2e-4)


def test_canaries_add_c_each_and_move_every_tensor(tiny_with_a) -> None:
    spec = tiny_with_a.spec
    engine = CohortEngine(tiny_with_a.model, spec, threads=1)
    start = audit_start(spec, None, 0)
    canaries = window_canaries(engine, start, PLAN, 10, num_items=50, window_length=5, seed=0)
    np.testing.assert_allclose(np.linalg.norm(canaries.contributions, axis=1), canaries.clip_norm, rtol=1e-5)
    assert (np.abs(canaries.contributions).max(axis=0) > 0).mean() > 0.9


def test_the_clip_norm_is_lowered_until_every_canary_reaches_it(tiny) -> None:
    result = audit(tiny, Plan(steps=1, clip_norm=1e4, noise_multiplier=4.0), noise=AesNoise.seeded("loud"))
    assert result.claim.clip_norm < 5
    assert result.claim.noise_multiplier == 4.0


def test_the_most_distinct_rows_are_kept() -> None:
    rows = np.array([[1.0, 0, 0], [0.99, 0.1, 0], [0, 1.0, 0], [0, 0.9, 0.1], [0, 0, 1.0]])
    np.testing.assert_array_equal(distinct_rows(rows, 3), [0, 2, 4])
    np.testing.assert_array_equal(distinct_rows(rows, 9), np.arange(5))


def test_a_plan_without_noise_claims_nothing(tiny) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        audit(tiny, Plan(steps=1, clip_norm=0.5))


@pytest.mark.slow
def test_twenty_audits_of_a_correct_trainer_never_exceed_the_claim(tiny) -> None:
    plan = Plan(steps=10, sample_rate=0.3, clip_norm=0.5, noise_multiplier=1.2)
    bounds = [audit(tiny, plan, seed=seed).epsilon_lower for seed in range(20)]
    assert max(bounds) <= audit(tiny, plan).claim.epsilon
    assert np.mean(bounds) > 0.5
    assert math.isfinite(max(bounds))


@pytest.mark.slow
def test_half_of_the_noise_raises_the_bound_on_average(tiny) -> None:
    class Halved(AesNoise):
        def gaussian(self, size, std):
            return super().gaussian(size, std / 2)

    plan = Plan(steps=1, clip_norm=0.5, noise_multiplier=3.0)
    lower = [
        audit(tiny, plan, seed=seed, noise=noise()).epsilon_lower for seed in range(6) for noise in (AesNoise, Halved)
    ]
    assert np.mean(lower[1::2]) > np.mean(lower[::2])
