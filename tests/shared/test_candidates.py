"""Negatives come from the distribution that they claim, and from the user's own source alone."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ownlet.shared.candidates import CandidateSampler
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.windows import cut_windows

WINDOWS = cut_windows(np.arange(1, 31), WindowConfig(window_length=6))
ALL = np.ones(len(WINDOWS), np.bool_)


def test_popular_items_are_drawn_in_proportion_to_their_frequency_plus_one():
    frequencies = np.array([99, 0, 9, 29, 59])
    sampler = CandidateSampler(ObjectiveConfig(num_negatives=20_000, negatives="popularity"), 4, frequencies)
    drawn = sampler.draw(AesNoise.seeded(0), WINDOWS[:1], ALL[:1])
    counts = np.bincount(drawn[0], minlength=5)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 20_000, np.array([1, 10, 30, 60]) / 101, atol=5 * 0.5 / math.sqrt(20_000))


def test_the_correction_is_minus_the_log_of_the_expected_count():
    frequencies = np.array([0, 0, 9, 29, 60])
    plan = ObjectiveConfig(num_negatives=3, negatives="popularity")
    got = CandidateSampler(plan, 4, frequencies).candidates(np.array([[1, 2, 4]]))
    np.testing.assert_allclose(got.correction[0], -np.log(3 * np.array([1, 10, 61]) / 102), rtol=1e-6)
    plain = CandidateSampler(ObjectiveConfig(num_negatives=3), 4).candidates(np.array([[1, 2, 4]]))
    np.testing.assert_allclose(plain.correction[0], math.log(4 / 3), rtol=1e-6)
    for objective in ("bpr", "bce", "listnet", "lambda"):  # which are not estimates of a sum over the catalogue
        other = CandidateSampler(replace(plan, objective=objective), 4, frequencies).candidates(np.array([[1, 2, 4]]))
        assert not other.correction.any()


def test_in_batch_negatives_are_targets_of_the_windows_in_the_step():
    chosen = np.array([False, True, False, True, False])
    sampler = CandidateSampler(ObjectiveConfig(objective="bpr", num_negatives=400, negatives="in-batch"), 30)
    drawn = sampler.draw(AesNoise.seeded(0), WINDOWS, chosen)
    assert drawn.shape == (5, 400)
    assert set(drawn.ravel().tolist()) == {*range(8, 13), *range(20, 25)}  # the first event is the target of none
    nobody = sampler.draw(AesNoise.seeded(0), WINDOWS, ~ALL)
    np.testing.assert_array_equal(nobody, np.ones((5, 400)))


def test_hard_negatives_are_drawn_as_uniform_ones_but_more_of_them():
    hard = CandidateSampler(ObjectiveConfig(num_negatives=2, negatives="hard", hard_pool=5), 30)
    uniform = CandidateSampler(ObjectiveConfig(num_negatives=10), 30)
    draws = [sampler.draw(AesNoise.seeded(0), WINDOWS, ALL) for sampler in (hard, uniform)]
    np.testing.assert_array_equal(*draws)


def test_more_negatives_than_items_are_drawn_with_repetition():
    drawn = CandidateSampler(ObjectiveConfig(num_negatives=40), 3).draw(AesNoise.seeded(0), WINDOWS, ALL)
    assert set(drawn.ravel().tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("objective", "negatives"), [("softmax", "popularity"), ("bpr", "popularity"), ("softmax", "in-batch")]
)
def test_a_base_that_does_not_know_its_items_frequencies_is_refused(objective, negatives):
    config = ObjectiveConfig(objective=objective, num_negatives=2, negatives=negatives)
    with pytest.raises(ConfigError, match="where the base does not know how frequent items are"):
        CandidateSampler(config, 30)
    with pytest.raises(ConfigError, match="frequencies must be of every item, got frequencies=30"):
        CandidateSampler(config, 30, np.ones(30, np.int64))


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"objective": "hinge"}, "objective must be one of"),
        ({"negatives": "near", "num_negatives": 1}, "negatives must be one of"),
        ({"num_negatives": -1}, "num_negatives must not be negative"),
        ({"objective": "bpr"}, "num_negatives must be at least 1 but for the full softmax"),
        ({"negatives": "popularity"}, "num_negatives must be at least 1 but for the full softmax"),
        ({"negatives": "hard", "num_negatives": 1, "hard_pool": 0}, "hard_pool must be at least 1"),
        ({"objective": "bce", "num_negatives": 1, "calibration": 1.5}, "calibration must be in"),
        ({"objective": "bpr", "num_negatives": 1, "calibration": 0.5}, "calibration must be 0 but for bce"),
    ],
)
def test_settings_that_break_a_rule_are_named(settings, rule):
    with pytest.raises(ConfigError, match=rule):
        ObjectiveConfig(**settings)


def test_in_batch_negatives_are_refused_where_windows_are_clipped_one_by_one():
    Plan(num_negatives=4, negatives="in-batch")
    with pytest.raises(ConfigError, match=r"a window's gradient would depend on the others, got clip_norm=1\.0"):
        Plan(num_negatives=4, negatives="in-batch", clip_norm=1.0)
