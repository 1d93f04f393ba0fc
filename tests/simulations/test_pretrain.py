import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import AdapterConfig, ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Interactions, Item
from ownlet.shared.lora import attach_adapter
from ownlet.shared.metrics import ndcg
from ownlet.shared.splits import seconds_of
from ownlet.simulations.baselines import most_popular
from ownlet.simulations.evaluate import all_positions, cases_at, is_publishable, model_ranks, positions, scorer_ranks
from ownlet.simulations.pretrain import PretrainConfig, load_base, load_catalogue, pretrain, save_base
from ownlet.simulations.setting import DataConfig, divide, prepare

SMALL = ModelConfig(dim=16, num_layers=1, max_length=20)


@pytest.fixture(scope="module")
def setting():
    return prepare(DataConfig(num_users=300, num_items=120, seed=1))


def train(setting, tmp_path=None, epochs=4, **changes):
    recipe = PretrainConfig(**({"max_epochs": epochs, "warmup_steps": 5, "learning_rate": 5e-3} | changes))
    seen = []
    checkpoint = tmp_path / "c.ckpt" if tmp_path else None
    content = content_vectors(setting.data.items)
    model = pretrain(
        setting.public, setting.validation, content, SMALL, recipe, checkpoint=checkpoint, on_epoch=seen.append
    )
    return model, seen


def test_the_base_learns_more_than_popularity(setting):
    model, epochs = train(setting, epochs=25)
    popular = scorer_ranks(most_popular(setting.public, setting.data.num_items), setting.test)
    assert ndcg(model_ranks(model, setting.test), 10).mean() > 1.2 * ndcg(popular, 10).mean()
    assert epochs[-1].loss < epochs[0].loss
    assert not model.training


def test_an_interrupted_training_ends_like_an_uninterrupted_one(setting, tmp_path):
    class InterruptedError(Exception):
        pass

    whole, _ = train(setting)
    calls = []

    def stop(epoch):
        calls.append(epoch.number)
        if epoch.number == 2:
            raise InterruptedError

    recipe = PretrainConfig(max_epochs=4, warmup_steps=5, learning_rate=5e-3)
    content = content_vectors(setting.data.items)
    arguments = (setting.public, setting.validation, content, SMALL, recipe)
    with pytest.raises(InterruptedError):
        pretrain(*arguments, checkpoint=tmp_path / "c", on_epoch=stop)
    resumed = pretrain(*arguments, checkpoint=tmp_path / "c", on_epoch=lambda e: calls.append(e.number))
    assert calls == [1, 2, 1, 2, 3, 4]
    assert hash_state(resumed.state_dict()) == hash_state(whole.state_dict())


def test_a_checkpoint_of_other_settings_is_refused(setting, tmp_path):
    train(setting, tmp_path, epochs=1)
    with pytest.raises(ConfigError, match="same settings"):
        train(setting, tmp_path, epochs=1, weight_decay=0.5)


def test_early_stopping_returns_the_best_epoch(setting):
    model, epochs = train(setting, epochs=40, patience=2, learning_rate=3e-2)
    assert len(epochs) < 40
    best = max(epoch.ndcg for epoch in epochs)
    assert ndcg(model_ranks(model, setting.validation), 10).mean() == pytest.approx(best)
    assert not any(epoch.best for epoch in epochs[-2:])


def test_histories_that_teach_nothing_are_refused(setting):
    content = content_vectors(setting.data.items)
    with pytest.raises(DataError, match="two events"):
        pretrain([np.array([3])], setting.validation, content, SMALL, PretrainConfig())


def test_a_saved_base_is_the_same_base_with_its_catalogue(setting, tmp_path):
    model, _ = train(setting, epochs=1)
    save_base(tmp_path / "base.pt", model, setting.data.items)
    assert hash_state(load_base(tmp_path / "base.pt").state_dict()) == hash_state(model.state_dict())
    assert load_catalogue(tmp_path / "base.pt") == setting.data.items


def test_a_saved_base_knows_how_frequent_its_items_are(setting, tmp_path):
    model, _ = train(setting, epochs=1)
    counts = np.bincount(np.concatenate(setting.public), minlength=setting.data.num_items + 1)
    save_base(tmp_path / "base.pt", model, setting.data.items)
    np.testing.assert_array_equal(load_base(tmp_path / "base.pt").frequencies.numpy(), counts)


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "in-batch", "hard"])
@pytest.mark.parametrize("objective", ["softmax", "bpr", "bce", "listnet", "lambda"])
def test_every_objective_lowers_its_loss_and_draws_the_same_again(setting, objective, negatives):
    settings = {"objective": objective, "negatives": negatives, "num_negatives": 8, "epochs": 2}
    model, epochs = train(setting, **settings)
    again, _ = train(setting, **settings)
    if objective == "lambda":  # whose weights change with the ranking, so its value says little
        assert epochs[1].ndcg > epochs[0].ndcg
    else:
        assert epochs[1].loss < epochs[0].loss
    assert hash_state(model.state_dict()) == hash_state(again.state_dict())


def test_an_interrupted_training_draws_the_negatives_that_it_would_have_drawn(setting, tmp_path):
    settings = {"objective": "bce", "num_negatives": 4, "max_epochs": 2, "warmup_steps": 5}
    whole, _ = train(setting, **settings)

    def stop(epoch):
        raise KeyboardInterrupt

    arguments = (setting.public, setting.validation, content_vectors(setting.data.items), SMALL)
    recipe = PretrainConfig(**settings, learning_rate=5e-3)
    with pytest.raises(KeyboardInterrupt):
        pretrain(*arguments, recipe, checkpoint=tmp_path / "c", on_epoch=stop)
    resumed = pretrain(*arguments, recipe, checkpoint=tmp_path / "c")
    assert hash_state(resumed.state_dict()) == hash_state(whole.state_dict())


def test_a_file_that_is_not_a_base_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    torch.save({"other": 1}, tmp_path / "other")
    for name in ("absent", "text", "other"):
        with pytest.raises(DataError, match="base must"):
            load_base(tmp_path / name)


def test_no_held_out_or_device_user_trains_the_base(setting):
    groups = [len(setting.public), len(setting.held_out), len(setting.devices)]
    assert sum(groups) == setting.data.num_users
    everyone = {h.tobytes() for h in setting.data.histories}
    used = [h.tobytes() for h in (*setting.public, *setting.held_out)]
    used += [np.append(h, t).tobytes() for h, t in zip(setting.devices, setting.test.targets, strict=True)]
    assert set(used) == everyone
    assert groups[0] + groups[1] == round(0.3 * setting.data.num_users)


def test_with_a_date_the_base_sees_nothing_of_later():
    config = DataConfig(num_users=300, num_items=120, seed=1, public_before="2024-04-30")
    setting = prepare(config)
    moment = seconds_of("2024-04-30")
    data = setting.data
    before = [h[t < moment] for h, t in zip(data.histories, data.timestamps, strict=True)]
    late = sum(t[0] >= moment for t in data.timestamps)
    assert 0 < len(setting.devices) <= late
    allowed = {h.tobytes() for h in before if len(h)}
    assert {h.tobytes() for h in (*setting.public, *setting.held_out)} == allowed
    asked = setting.judging_events  # adapters are judged by what held-out public users did later, and by all of it
    assert (data.times[asked] >= moment).all()
    later = (data.times >= moment) & np.isin(data.users, setting.held_out_users)
    assert 0 < len(asked) == later.sum()
    np.testing.assert_array_equal(setting.judging.targets, data.events[asked])
    for history, event in zip(setting.judging.histories, asked, strict=True):
        np.testing.assert_array_equal(history, data.events[data.offsets[data.users[event]] : event])


def test_adapters_are_judged_as_bases_are_where_no_date_divides_or_nothing_came_later(setting):
    times = np.repeat(np.where(np.arange(20) < 15, 0, 90_000), 3) + np.tile(np.arange(3), 20)
    data = Interactions(
        name="test",
        items=tuple(Item(number=number, id=str(number)) for number in range(1, 4)),
        user_ids=tuple(map(str, range(20))),
        offsets=np.arange(0, 61, 3),
        events=np.tile([1, 2, 3], 20),
        times=times,
    )
    quiet = divide(data, DataConfig(public_before="1970-01-02"))
    assert (len(quiet.devices), len(quiet.public) + len(quiet.held_out)) == (5, 15)
    for one in (setting, quiet):
        np.testing.assert_array_equal(one.judging.targets, one.validation.targets)
        assert [h.tolist() for h in one.judging.histories] == [h.tolist() for h in one.validation.histories]


def test_every_event_but_the_first_is_a_position():
    cases = all_positions([np.array([4, 5, 6]), np.array([7])])
    assert [list(h) for h in cases.histories] == [[4], [4, 5]]
    assert list(cases.targets) == [5, 6]
    assert [list(h) for h in all_positions([np.array([4, 5, 6])], last=1).histories] == [[4, 5]]
    known = cases_at([np.array([4, 5, 6]), np.array([7, 8]), np.array([9])], positions([3, 2, 1], known=[2, 0, 1]))
    assert [list(h) for h in known.histories] == [[4, 5], [7]]


def test_ranks_do_not_depend_on_batching_and_need_eval_mode(setting):
    model, _ = train(setting, epochs=1)
    np.testing.assert_array_equal(model_ranks(model, setting.test), model_ranks(model, setting.test, batch_size=7))
    model.train()
    with pytest.raises(ConfigError, match="eval"):
        model_ranks(model, setting.test)


def test_an_adapter_is_publishable_only_if_it_is_not_below_the_base(setting):
    model, _ = train(setting, epochs=20)
    spec = attach_adapter(model, AdapterConfig(rank=2))
    start = initial_adapter(spec, 0)
    assert is_publishable(model, spec, start, setting.validation)  # it changes nothing
    harmful = start.copy()
    harmful[spec.trainable] = 3.0 * np.random.default_rng(0).standard_normal(spec.num_trainable).astype(np.float32)
    assert not is_publishable(model, spec, harmful, setting.validation)


def test_a_group_without_users_is_refused():
    with pytest.raises(DataError, match="held-out public"):
        prepare(DataConfig(num_users=20, num_items=120, core=0, held_out_fraction=0.01))
    with pytest.raises(ConfigError, match="public_fraction must be in"):
        DataConfig(public_fraction=0.0)
