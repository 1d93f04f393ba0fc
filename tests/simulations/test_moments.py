"""From a data set's times and columns to a base that reads them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state
from ownlet.shared.base import load_base_weights, save_base_weights
from ownlet.shared.config import ModelConfig, WindowConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.context import ContextField
from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import Interactions, Item
from ownlet.shared.metrics import ndcg
from ownlet.simulations.base_run import BaseRunConfig, run_pretrain
from ownlet.simulations.evaluate import Cases, model_ranks
from ownlet.simulations.federated_run import FederatedRunConfig, run_federated
from ownlet.simulations.moments import ContextRequest, event_context, fields_of
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain, save_base
from ownlet.simulations.progress import Silent
from ownlet.simulations.results import RunFolder
from ownlet.simulations.setting import DataConfig, keep_columns, prepare
from ownlet.simulations.store import EventStore

DAY = 86_400
HOUR = ContextField(name="hour", kind="hour")
GAP = ContextField(name="gap", kind="gap")


def data_of(*users, **columns):
    """Users as lists of (item, time)."""
    return Interactions(
        name="test",
        items=tuple(Item(number=number, id=str(number)) for number in range(1, 10)),
        user_ids=tuple(map(str, range(len(users)))),
        offsets=np.concatenate([[0], np.cumsum([len(user) for user in users])]),
        events=np.array([item for user in users for item, _ in user], np.int64),
        times=np.array([time for user in users for _, time in user], np.int64),
        context={name: np.array(column) for name, column in columns.items()},
    )


DATA = data_of(
    [(1, 0), (2, 3), (3, 10 * DAY)], [], [(4, 3600), (5, 7200)], device=["phone", "", "tv", "tablet", "phone"]
)
EVERYBODY = np.ones(5, np.bool_)


def test_every_event_has_its_moment_and_a_users_first_gap_is_unknown():
    moments = event_context(DATA, [GAP, HOUR])
    gap, hour = (rows.tolist() for rows in np.concatenate(moments).T)
    assert [len(rows) for rows in moments] == [3, 0, 2]
    assert gap == [0, 3, (10 * DAY - 3 + 1).bit_length(), 0, (3601).bit_length()]
    assert hour == [32 + 1, 32 + 1, 32 + 1, 32 + 2, 32 + 3]
    assert event_context(DATA, []) is None


def test_a_vocabulary_is_of_public_events_the_most_frequent_first():
    request = ContextRequest(fields=("screen=device", "period"), period_days=4)
    screen, period = fields_of(request, DATA, EVERYBODY)
    assert (screen.name, screen.values) == ("screen", ("phone", "tablet", "tv"))
    assert (period.origin_seconds, period.period_seconds, period.num_periods) == (0, 4 * DAY, 3)
    private = np.array([True, True, False, True, True])
    screen, period = fields_of(replace(request, max_values=1), DATA, private)
    assert (screen.values, period.num_periods) == (("phone",), 1)
    codes = np.concatenate(event_context(DATA, [screen], {"screen": "device"}))[:, 0]
    assert codes.tolist() == [1, 0, 0, 0, 1]


def test_a_column_that_the_data_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"must be a column of the data, got 'size' of \['device'\]"):
        fields_of(ContextRequest(fields=("size=size",)), DATA, EVERYBODY)
    with pytest.raises(ConfigError, match="must have a column for context 'size'"):
        event_context(DATA, [ContextField(name="size", kind="column", values=("L",))])
    with pytest.raises(ConfigError, match="where the data has no times"):
        fields_of(ContextRequest(fields=("gap",)), replace(DATA, has_times=False), EVERYBODY)
    with pytest.raises(ConfigError, match="context must be of gap"):
        ContextRequest(fields=("mood",))


def test_further_columns_are_kept_beside_the_usual_ones():
    plain, mapped = DataConfig(path=Path("x.csv")), DataConfig(path=Path("x.csv"), columns=(("user", "u"),))
    usual = (("user", "user"), ("item", "item"), ("timestamp", "timestamp"))
    assert keep_columns(plain, [("device", "dev")]).columns == (*usual, ("device", "dev"))
    assert keep_columns(mapped, [("device", "dev")]).columns == (("user", "u"), ("device", "dev"))
    assert keep_columns(plain, []) == plain


@pytest.mark.parametrize("public_before", [None, "2024-06-01"])
def test_a_setting_has_the_moment_of_every_position(public_before):
    config = DataConfig(num_users=200, num_items=120, public_before=public_before)
    region = ContextField(name="region", kind="column", values=("0", "1", "2"))
    fields = (GAP, HOUR, region)
    plain, setting = prepare(config), prepare(config, fields)
    whole = dict(zip(map(tuple, setting.data.histories), event_context(setting.data, fields), strict=True))
    for group, moments in (
        (setting.public, setting.public_context),
        (setting.held_out, setting.held_out_context),
        (setting.devices, setting.device_context),
    ):
        assert [len(history) for history in group] == [len(rows) for rows in moments]
    for cases in (setting.test, setting.validation, setting.judging):
        assert [len(history) for history in cases.histories] == [len(rows) for rows in cases.context]
    for history, target, rows in zip(setting.test.histories, setting.test.targets, setting.test.context, strict=True):
        np.testing.assert_array_equal(rows, whole[(*history, target)][1:])  # the last is the target's own moment
    rows_of = event_context(setting.data, fields)
    for rows, event in zip(setting.judging.context, setting.judging_events, strict=True):
        user = setting.data.users[event]
        np.testing.assert_array_equal(rows[-1], rows_of[user][event - setting.data.offsets[user]])
    assert all((a == b).all() for a, b in zip(plain.public, setting.public, strict=True))
    assert plain.public_context is plain.test.context is None


def test_a_store_cuts_windows_with_their_moments():
    store = EventStore.of([np.array([1, 2, 3]), np.array([4, 5])], [np.array([[1], [2], [3]]), np.array([[4], [5]])])
    windows = store.all_windows(WindowConfig(window_length=3)).windows
    assert windows.context[..., 0].tolist() == [[2, 3, 0], [5, 0, 0]]


@pytest.fixture(scope="module")
def clockwork():
    """At even hours the next item is the one after, at odd hours the one before: only the hour can tell."""
    rng = np.random.default_rng(0)
    users, times = [], []
    for _ in range(120):
        item, time, history = int(rng.integers(1, 13)), int(rng.integers(0, 9 * DAY)), []
        moments = []
        for _ in range(12):
            time += int(rng.integers(1800, 20_000))
            item = 1 + (item - 1 + (1 if time // 3600 % 2 == 0 else -1)) % 12
            history.append(item)
            moments.append([1 + time // 3600 % 24])
        users.append(np.array(history))
        times.append(np.array(moments))
    return users, times


def test_a_base_that_reads_the_hour_knows_what_only_the_hour_tells(clockwork):
    users, moments = clockwork
    cases = Cases(
        histories=tuple(u[:1] for u in users[80:]),
        targets=np.array([u[1] for u in users[80:]]),
        context=tuple(m[1:2] for m in moments[80:]),
    )
    content = content_vectors([Item(number=n, id=str(n)) for n in range(1, 13)])
    recipe = PretrainConfig(max_epochs=25, warmup_steps=5, learning_rate=1e-2, batch_size=8)
    shape = ModelConfig(dim=16, num_layers=1, max_length=12, dropout=0.0)
    reader = replace(shape, context=(HOUR,))
    model = pretrain(users[:80], cases, content, reader, recipe, context=moments[:80])
    told, untold = ((model_ranks(model, asked) == 1).mean() for asked in (cases, replace(cases, context=None)))
    assert told > 0.9
    assert untold < 0.75  # two items are equally likely


def test_context_and_a_base_that_reads_it_come_together(clockwork):
    users, moments = clockwork
    cases = Cases(histories=tuple(u[:1] for u in users), targets=np.array([u[1] for u in users]))
    content = content_vectors([Item(number=n, id=str(n)) for n in range(1, 13)])
    shape = ModelConfig(dim=8, num_layers=1)
    for config, context in ((shape, moments), (replace(shape, context=(HOUR,)), None)):
        with pytest.raises(ConfigError, match="context must be given where the base reads any"):
            pretrain(users, cases, content, config, PretrainConfig(), context=context)


def test_a_base_keeps_its_fields_in_both_kinds_of_file(tmp_path):
    device = ContextField(name="device", kind="column", values=("phone", "tablet"))
    model = base_with(device, HOUR)
    save_base(tmp_path / "base.pt", model)
    save_base_weights(tmp_path / "base.safetensors", model)
    for loaded in (load_base(tmp_path / "base.pt"), load_base_weights(tmp_path / "base.safetensors")):
        assert loaded.config == model.config
        assert hash_state(loaded.state_dict()) == hash_state(model.state_dict())


def base_with(*fields):
    from ownlet.shared.model import SASRec

    model = SASRec(ModelConfig(dim=8, num_layers=1, context=fields), torch.zeros(5, 4)).eval()
    with torch.no_grad():
        model.context_embedding[1:].normal_()
    return model


def test_pretrain_writes_a_base_that_a_federated_run_takes_up_and_a_store_cannot_serve(tmp_path):
    data = DataConfig(num_users=150, num_items=120)
    config = BaseRunConfig(
        data=data,
        model=ModelConfig(dim=8, num_layers=1, max_length=20),
        context=ContextRequest(fields=("gap", "weekday", "region=region")),
        recipe=PretrainConfig(max_epochs=2),
    )
    folder = RunFolder.create(tmp_path, "pretrain", config, 0)
    quality = run_pretrain(config, folder, Silent())
    base = folder.path / "base.pt"
    model, setting = load_base(base), prepare(data, load_base(base).config.context)
    assert [field.name for field in model.config.context] == ["gap", "weekday", "region"]
    assert ndcg(model_ranks(model, setting.test), 10).mean() == pytest.approx(quality["base"]["ndcg@10"].value)
    run = FederatedRunConfig(base=base, data=data)
    run = replace(run, federation=replace(run.federation, rounds=1, unit="none", noise_multiplier=0.0, seed=0))
    run_federated(run, RunFolder.create(tmp_path, "simulate", run, 0), Silent())
    with pytest.raises(ConfigError, match="must read no context where users come from a store"):
        run_federated(replace(run, store=tmp_path), RunFolder.create(tmp_path, "simulate", run, 1), Silent())


def test_leave_one_out_evaluates_with_the_moments_of_its_own_questions(tmp_path):
    config = BaseRunConfig(
        data=DataConfig(num_users=80, num_items=120),
        users="all",
        model=ModelConfig(dim=8, num_layers=1, max_length=20),
        context=ContextRequest(fields=("hour",)),
        recipe=PretrainConfig(max_epochs=1),
    )
    folder = RunFolder.create(tmp_path, "pretrain", config, 0)
    quality = run_pretrain(config, folder, Silent())
    model = load_base(folder.path / "base.pt")
    data = prepare(config.data).data
    moments = event_context(data, model.config.context)
    cases = Cases(
        histories=tuple(h[:-1] for h in data.histories),
        targets=np.array([h[-1] for h in data.histories]),
        context=tuple(rows[1:] for rows in moments),
    )
    assert ndcg(model_ranks(model, cases), 10).mean() == pytest.approx(quality["base"]["ndcg@10"].value)
