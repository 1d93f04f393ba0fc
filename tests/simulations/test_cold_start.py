import numpy as np
import pytest

from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.simulations.baselines import most_popular
from ownlet.simulations.cold_start import KNOWN_EVENTS, cold_setting, measure, model_scorer
from ownlet.simulations.evaluate import model_ranks
from ownlet.simulations.population import make_population
from ownlet.simulations.pretrain import PretrainConfig, pretrain


@pytest.fixture(scope="module")
def data():
    return make_population(300, 120, 1).interactions


@pytest.fixture(scope="module")
def setting(data):
    return cold_setting(data, fraction=0.2, seed=0)


def test_cold_items_teach_nothing_and_are_asked_for(setting, data):
    assert setting.cold.sum() == 24
    assert not setting.cold[0]
    for history in (*setting.train, *setting.held_out):
        assert not setting.cold[history].any()
    assert not setting.cold[setting.validation.targets].any()
    assert setting.cold[setting.cases["cold among all"].targets].all()
    assert not setting.cold[setting.cases["warm"].targets].any()
    assert len(setting.train) + len(setting.held_out) == round(0.3 * data.num_users)
    assert not (setting.trained & setting.cold).any()


def test_nobody_who_is_asked_has_trained(setting, data):
    histories = [history[~setting.cold[history]] for history in data.histories]
    devices = {h.tobytes() for h in histories} - {h.tobytes() for h in (*setting.train, *setting.held_out)}
    warm = setting.cases["warm"]
    asked = {np.append(h, t).tobytes() for h, t in zip(warm.histories, warm.targets, strict=True)}
    assert asked == devices


def test_cold_users_are_the_same_users_with_the_same_answer_however_much_is_known(setting):
    most = setting.cases["known 10"]
    for known in KNOWN_EVENTS:
        cases = setting.cases[f"known {known}"]
        np.testing.assert_array_equal(cases.targets, most.targets)
        for history, whole in zip(cases.histories, most.histories, strict=True):
            np.testing.assert_array_equal(history, whole[-known:])


def test_an_answer_is_ranked_among_the_candidates_alone(setting):
    num_items = len(setting.cold) - 1

    def by_number(histories):  # the item with the lowest number is the best
        return np.tile(-np.arange(num_items + 1, dtype=np.float32), (len(histories), 1))

    found, cases = measure(by_number, setting), setting.cases["cold among all"]
    cold = np.flatnonzero(setting.cold)
    for rank, alone, target, history in zip(
        found["cold among all"], found["cold among cold"], cases.targets, cases.histories, strict=True
    ):
        assert rank == target - (np.unique(history) < target).sum()
        assert alone == 1 + np.searchsorted(cold, target)
    popular = measure(most_popular(setting.train, num_items), setting)
    assert (popular["cold among cold"] == 24).all()  # no cold item has a past: all are alike, and ties count against


def test_a_base_is_asked_as_everywhere_else(setting, data):
    recipe = PretrainConfig(max_epochs=1, warmup_steps=2)
    content = content_vectors(data.items)
    model = pretrain(setting.train, setting.validation, content, ModelConfig(dim=8, num_layers=1), recipe)
    found = measure(model_scorer(model), setting)
    for name, cases in setting.cases.items():
        np.testing.assert_array_equal(found[name], model_ranks(model, cases))
