"""The component audit passes what is right, and says which part of it is wrong where something is."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError, PrivacyError
from ownlet.shared.server_config import AdaptiveClip, Robust, ServerOptimizer
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.audit.bundle import audit_bundle
from ownlet.simulations.audit.component import Trials, audit_component, audit_engine
from ownlet.simulations.audit.engine_mechanism import EngineMechanism, canary_windows, claim_of_plan
from ownlet.simulations.audit.mechanism import LOUD
from ownlet.simulations.audit.result import Claim
from ownlet.simulations.audit.sensitivity import measure_contributions
from ownlet.simulations.audit.user_level import UserLevelMechanism, audit_user_level, claim_of_federation
from ownlet.simulations.audit.zoo import ZOO, Trainer, audit_zoo, zoo_base
from ownlet.simulations.cohort import CohortEngine

PLAN = Plan(steps=20, sample_rate=0.25, expected_batch=6.0, clip_norm=2.0, noise_multiplier=1.1)
FEW = Trials(units=24, noise=12, sampling=100)
SERVER = FederationConfig(
    rounds=20, cohort_rate=0.25, clip_norm=0.3, noise_multiplier=1.1, windows=WindowConfig(window_length=6)
)
FAILED_FIRST = {
    "noise omitted": "noise",
    "noise halved": "noise",
    "noise on B only": "noise",
    "noise not scaled by C": "noise",
    "one seed for all steps": "independence",
    "clip after averaging": "sensitivity",
    "per-layer clipping with flat noise": "sensitivity",
    "fixed batches accounted as Poisson": "batch-sizes",
    "wrong q": "sampling-rate",
    "empty batches skipped": "empty-batch",
    "denominators from n": "additivity",
    "a released tensor unseen by the optimiser": "noise",
    "32-bit noise seed": "replay",
}


@functools.cache
def audited(name):
    return audit_zoo([name], PLAN, trials=FEW)[name]


def failed(result):
    return {check.name for check in result.checks if not check.passed}


def test_the_right_trainer_passes_below_its_claim():
    result = audited("correct")
    assert failed(result) == set()
    assert 0.5 * result.claim.epsilon < result.epsilon_lower <= result.claim.epsilon
    assert result.figures["sensitivity"] == pytest.approx(PLAN.clip_norm, rel=1e-4)


def test_the_zoo_has_the_thirteen():
    assert len(ZOO) == 13
    assert set(ZOO) == set(FAILED_FIRST)


@pytest.mark.parametrize("name", ZOO)
def test_each_broken_trainer_is_flagged_by_the_check_that_it_breaks(name):
    result = audited(name)
    assert result.flagged
    assert FAILED_FIRST[name] in failed(result)


@pytest.mark.parametrize("name", ["noise omitted", "noise on B only", "one seed for all steps"])
def test_noise_that_is_absent_or_can_be_taken_away_leaves_no_bound(name):
    assert audited(name).epsilon_lower == np.inf


@pytest.mark.parametrize(
    "name", ["noise halved", "noise not scaled by C", "per-layer clipping with flat noise", "wrong q"]
)
def test_too_little_noise_and_too_frequent_sampling_exceed_the_claim(name):
    result = audited(name)
    assert result.exceeds


@pytest.mark.parametrize("name", ["fixed batches accounted as Poisson", "denominators from n", "32-bit noise seed"])
def test_no_bound_is_made_of_differences_that_are_not_the_units_doing(name):
    assert "steady" in failed(audited(name))
    assert audited(name).epsilon_lower == 0


def test_every_matrix_of_the_adapter_is_a_tensor_of_the_release_and_every_canary_is_loud():
    model, spec, vector = zoo_base()
    windows = canary_windows(12, 50, 6)
    mechanism = EngineMechanism(Trainer(model, spec), windows, PLAN, claim_of_plan(PLAN), name="x", vector=vector)
    covered = np.zeros(spec.size, int)
    for part in mechanism.tensors.values():
        covered[part] += 1
    assert covered.tolist() == [1] * spec.size
    assert len(mechanism.tensors) == 2 * len(spec.layers)
    assert np.linalg.norm(mechanism.raw_norms(), axis=1).min() >= LOUD * mechanism.claim.clip_norm * (1 - 1e-6)


def test_a_plan_without_noise_claims_nothing_and_is_refused():
    model, spec, _ = zoo_base()
    plan = Plan(steps=1, clip_norm=1.0)
    with pytest.raises(ConfigError, match="noise_multiplier"):
        audit_engine(Trainer(model, spec), plan, num_items=50, window_length=6, name="x")


def test_an_engine_that_learns_nothing_cannot_be_audited():
    class Idle(Trainer):
        def gradients(self, vector, windows):
            return np.zeros((len(windows), self.spec.num_trainable))

    model, spec, vector = zoo_base()
    with pytest.raises(PrivacyError, match="canaries must have gradients"):
        audit_engine(Idle(model, spec), PLAN, num_items=50, window_length=6, name="idle", vector=vector)


def test_participations_multiply_the_steps_of_a_claim():
    assert claim_of_plan(PLAN, participations=3).steps == 60


def test_everybody_in_every_batch_is_a_rate_of_one_and_nobody_tests_its_spread():
    plan = Plan(steps=1, sample_rate=1.0, expected_batch=6.0, clip_norm=2.0, noise_multiplier=2.0)
    result = audit_zoo(["correct"], plan, trials=FEW)["correct"]
    assert failed(result) == set()
    assert "batch-sizes" not in {check.name for check in result.checks}
    assert 0.8 * result.claim.epsilon < result.epsilon_lower <= result.claim.epsilon


def test_the_claim_is_of_the_units_that_it_names():
    config = FederationConfig(rounds=7, cohort_rate=0.3, clip_norm=0.4, noise_multiplier=2.0, dp_delta=1e-6)
    wanted = Claim(unit="user", sample_rate=0.3, noise_multiplier=2.0, clip_norm=0.4, steps=7, dp_delta=1e-6)
    assert claim_of_federation(config) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", [OpacusEngine, CohortEngine])
def test_the_real_engines_pass(tiny, kind):
    engine = kind(tiny.model, tiny.spec)
    result = audit_engine(engine, PLAN, num_items=50, window_length=6, name="engine", trials=FEW)
    assert failed(result) == set()
    assert 0 < result.epsilon_lower <= result.claim.epsilon


@pytest.mark.slow
def test_a_bundle_alone_can_be_audited(tiny_bundle):
    result = audit_bundle(tiny_bundle, PLAN, trials=FEW)
    assert failed(result) == set()
    assert 0 < result.epsilon_lower <= result.claim.epsilon


def test_a_bundle_without_a_plan_of_its_own_needs_one(tiny_bundle):
    with pytest.raises(ConfigError, match="plan that adds noise"):
        audit_bundle(tiny_bundle)


@pytest.mark.slow
def test_the_server_passes_and_whole_rounds_are_what_is_audited(tiny):
    result = audit_user_level(CohortEngine(tiny.model, tiny.spec), SERVER, num_items=50, trials=FEW)
    assert failed(result) == set()
    assert "whole-rounds" in {check.name for check in result.checks}
    assert 0 < result.epsilon_lower <= result.claim.epsilon


@pytest.mark.parametrize(
    "changed",
    [
        {"wire": WireConfig(name="int8", error_feedback=True)},
        {"wire": WireConfig(name="float16")},
        {"wire": WireConfig(name="sparse")},
        {"robust": Robust(name="norm-bound")},
        {"ranks": (2, 1)},
        {"server_optimizer": ServerOptimizer(name="fedadam"), "server_learning_rate": 0.01},
        {"adaptive_clip": AdaptiveClip(quantile=0.5)},
    ],
)
def test_whole_rounds_are_what_is_audited_whatever_else_the_run_had(tiny, changed):
    config = replace(SERVER, **changed)
    mechanism = UserLevelMechanism(
        CohortEngine(tiny.model, tiny.spec), config, num_users=12, num_items=50, name="server"
    )
    assert mechanism.check_rounds().passed
    contributions = measure_contributions(mechanism)
    assert 0.9 * config.clip_norm < contributions.sensitivity <= config.clip_norm * (1 + 1e-5)


@pytest.mark.slow
def test_a_server_that_forgets_its_noise_is_flagged(tiny):
    class Forgetful(UserLevelMechanism):
        def release(self, present, source, batch="all"):
            class Quiet:
                def gaussian(self, size, std):
                    return np.zeros(size, np.float32)

            return super().release(present, Quiet(), batch)

    engine = CohortEngine(tiny.model, tiny.spec)
    mechanism = Forgetful(engine, SERVER, num_users=24, num_items=50, name="forgetful")
    result = audit_component(mechanism, trials=FEW)
    assert {"noise", "replay"} <= failed(result)
    assert result.epsilon_lower == np.inf


@pytest.mark.slow
def test_twenty_audits_of_the_right_trainer_stay_between_85_percent_of_the_claim_and_the_claim():
    plan = Plan(steps=100, sample_rate=0.1, expected_batch=6.0, clip_norm=2.0, noise_multiplier=1.1)
    results = [audit_zoo(["correct"], plan)["correct"] for _ in range(20)]
    assert results[0].claim.epsilon == pytest.approx(5.91, abs=0.01)
    assert [check for result in results for check in result.checks if not check.passed] == []
    assert not any(result.flagged for result in results)
    assert min(result.epsilon_lower for result in results) >= 0.85 * results[0].claim.epsilon
