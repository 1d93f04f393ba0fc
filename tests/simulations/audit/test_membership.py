import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError
from ownlet.simulations.audit.membership import (
    audit_membership,
    audit_membership_run,
    membership_result,
    user_scores,
)
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.federated_run import FederatedRunConfig, load_parts
from ownlet.simulations.pretrain import PretrainConfig, pretrain, save_base
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig, prepare
from ownlet.simulations.store import EventStore

WINDOWS = WindowConfig(window_length=6)
CONFIG = FederationConfig(
    rounds=2, cohort_rate=0.5, noise_multiplier=2.0, plan=Plan(steps=1, learning_rate=0.3), windows=WINDOWS
)


def users(count: int) -> EventStore:
    rng = np.random.default_rng(0)
    return EventStore.of([rng.integers(1, 51, 8) for _ in range(count)])


def test_scores_without_a_difference_give_half_the_area_and_no_epsilon() -> None:
    rng = np.random.default_rng(1)
    result = membership_result("x", rng.normal(size=400), rng.normal(size=400), CONFIG)
    assert result.figures["auc"] == pytest.approx(0.5, abs=0.06)
    assert result.epsilon_lower == 0.0
    assert not result.flagged
    assert "sanity figure" in result.checks[0].statement


def test_the_area_of_two_normals_has_the_closed_form() -> None:
    rng = np.random.default_rng(2)
    result = membership_result("x", rng.normal(1, 1, 40_000), rng.normal(0, 1, 40_000), CONFIG)
    assert result.figures["auc"] == pytest.approx(0.5 * (1 + math.erf(0.5)), abs=0.006)  # P(N(1, 2) > 0)
    at_one_percent = 0.5 * math.erfc((2.3263 - 1) / math.sqrt(2))
    assert result.figures["tpr_at_fpr_0.01"] == pytest.approx(at_one_percent, abs=0.03)
    assert result.figures["tpr_at_fpr_0.01_low"] < result.figures["tpr_at_fpr_0.01"]
    assert 0 < result.epsilon_lower < 4.38  # one Gaussian of sigma 1


def test_scores_that_tell_everybody_apart_break_a_claim() -> None:
    result = membership_result("x", 10 + np.arange(400.0), -np.arange(400.0), CONFIG)
    assert result.figures["tpr_at_fpr_0.001"] == 1.0
    assert result.epsilon_lower > result.claim.epsilon
    assert result.flagged


def test_a_users_score_is_the_fall_of_the_mean_loss_by_another_engine(tiny) -> None:
    stack = users(5).windows(np.arange(5), WindowConfig(window_length=4))
    start = initial_adapter(tiny.spec, 1)
    engine = OpacusEngine(tiny.model, tiny.spec)
    expected = [(engine.loss(start, own) - engine.loss(tiny.vector, own)).mean() for own in stack]
    np.testing.assert_allclose(user_scores(tiny.model, tiny.spec, start, tiny.vector, stack), expected, atol=1e-5)


def test_users_left_out_by_coins_look_like_members_under_noise(tiny) -> None:
    engine = CohortEngine(tiny.model, tiny.spec, threads=1)
    result = audit_membership(tiny.model, engine, users(200), CONFIG, noise_seed=3)
    assert result.figures["members"] + result.figures["non_members"] == 200
    assert result.epsilon_lower <= result.claim.epsilon
    assert (result.claim.unit, result.claim.sample_rate, result.claim.steps) == ("user", 0.5, 2)


def test_members_stand_out_where_the_claim_hides_nothing(tiny) -> None:
    """Hardly any noise, no clip to speak of and strong training: the attack must work where it can."""
    bare = replace(CONFIG, rounds=8, cohort_rate=1.0, clip_norm=50.0, noise_multiplier=1e-3, server_momentum=0.0)
    bare = replace(bare, plan=Plan(steps=4, learning_rate=2.0))
    engine = CohortEngine(tiny.model, tiny.spec, threads=1)
    store = users(16)
    rng = np.random.default_rng([0, 4])
    chosen = rng.permutation(16)
    members = chosen[rng.random(16) < 0.5]
    inside = EventStore.of([store.history(int(user)) for user in members])
    start = initial_adapter(tiny.spec, 0)
    vector = simulate(engine, inside, start, replace(bare, seed=1, unit="none")).vector
    gains = user_scores(tiny.model, tiny.spec, start, vector, store.windows(np.arange(16), WINDOWS))
    is_member = np.isin(np.arange(16), members)
    assert gains[is_member].mean() > gains[~is_member].mean() + 0.1


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="two"):
        membership_result("x", np.zeros(1), np.zeros(5), CONFIG)


@pytest.mark.slow
def test_a_finished_run_is_judged_by_users_that_it_never_asked_or_run_again(tiny, tmp_path: Path) -> None:
    data = DataConfig(num_users=600, num_items=120)
    setting = prepare(data)
    model = pretrain(
        setting.public,
        setting.validation,
        content_vectors(setting.data.items),
        ModelConfig(dim=16, num_layers=1),
        PretrainConfig(max_epochs=1),
    )
    save_base(tmp_path / "base.pt", model, setting.data.items)
    config = FederatedRunConfig(base=tmp_path / "base.pt", data=data, federation=replace(CONFIG, seed=0))
    fleet, _, spec = load_parts(config)
    vector = initial_adapter(spec, 0)
    rarely = (np.arange(fleet.num_users) % 2).astype(np.int64)  # half of them were asked
    judged = audit_membership_run(config, vector, rarely)
    assert judged.subject.endswith("never asked")
    assert judged.figures["auc"] == 0.5  # an adapter that changes nothing tells nothing
    again = audit_membership_run(config, vector, np.ones(fleet.num_users, np.int64))
    assert again.subject.endswith("run again")
    assert again.epsilon_lower <= again.claim.epsilon
