"""What a run folder tells about training."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ownlet.shared.errors import ConfigError, DataError
from ownlet.simulations.base_file import save_base
from ownlet.simulations.base_run import BaseRunConfig
from ownlet.simulations.federated_run import FederatedRunConfig
from ownlet.simulations.provenance import (
    adapter_training,
    base_training,
    check_catalogue,
    check_unseen,
    known_users,
    recorded_data,
)
from ownlet.simulations.results import RunFolder
from ownlet.simulations.setting import DataConfig, load_interactions, prepare

SMALL = DataConfig(num_users=120, num_items=200, seed=3)


def base_of(tmp_path: Path, config: BaseRunConfig) -> Path:
    return RunFolder.create(tmp_path, "pretrain", config, 0, name="run").path / "base.pt"


@pytest.mark.parametrize("date", [None, "2024-05-01"])
def test_a_base_of_public_users_was_trained_on_what_prepare_gave_it(tmp_path: Path, date: str | None):
    config = DataConfig(num_users=120, num_items=200, seed=3, public_before=date)
    setting = prepare(config)
    found = base_training(base_of(tmp_path, BaseRunConfig(data=config)), setting.data, config)
    assert found is not None
    trained = [history.tolist() for history in found.histories if len(history)]
    assert trained == [history.tolist() for history in setting.public if len(history)]
    asked = [
        setting.data.histories[user][:-1].tolist() for user in found.askable if len(setting.data.histories[user]) > 1
    ]
    assert asked == [history.tolist() for history in setting.devices]


def test_a_base_of_everybody_was_trained_on_all_but_the_last_two_events(tmp_path: Path):
    data = load_interactions(SMALL)
    found = base_training(base_of(tmp_path, BaseRunConfig(data=SMALL, users="all")), data, SMALL)
    assert found is not None
    for trained, history in zip(found.histories, data.histories, strict=True):
        assert trained.tolist() == (history[:-2] if len(history) >= 3 else history).tolist()


def test_an_adapter_was_trained_on_all_but_the_last_event_of_every_device(tmp_path: Path):
    setting = prepare(SMALL)
    config = FederatedRunConfig(base=tmp_path / "base.pt", data=SMALL)
    file = RunFolder.create(tmp_path, "simulate", config, 0, name="run").path / "adapter.safetensors"
    found = adapter_training(file, setting.data, SMALL)
    assert found is not None
    trained = [history.tolist() for history in found.histories if len(history)]
    assert trained == [history.tolist() for history in setting.devices]


def test_settings_are_read_back_as_they_were(tmp_path: Path):
    config = DataConfig(
        path=Path("log.csv"), columns=(("user", "who"), ("item", "what"), ("timestamp", "when")), core=3
    )
    assert recorded_data(base_of(tmp_path, BaseRunConfig(data=config))) == config


def test_nothing_is_known_without_a_run_folder_or_of_other_data_or_of_a_store(tmp_path: Path):
    data = load_interactions(SMALL)
    assert recorded_data(tmp_path / "base.pt") is None
    assert base_training(tmp_path / "base.pt", data, SMALL) is None
    base = base_of(tmp_path, BaseRunConfig(data=SMALL))
    for other in (DataConfig(num_users=120, num_items=200, seed=4), DataConfig(path=Path("x.csv")), DataConfig(core=0)):
        assert base_training(base, data, other) is None
    stored = FederatedRunConfig(base=base, data=SMALL, store=tmp_path / "store")
    file = RunFolder.create(tmp_path, "simulate", stored, 0, name="stored").path / "adapter.safetensors"
    assert adapter_training(file, data, SMALL) is None


def test_a_damaged_folder_is_an_error(tmp_path: Path):
    for text in ("{", "{}", '{"config": {"data": {"path": null, "columns": [], "colour": 1}}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(DataError, match=r"config\.json must be that of a run"):
            recorded_data(tmp_path / "base.pt")


def test_the_path_may_be_written_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = ["user,item,timestamp"] + [f"u{u},i{(u + n) % 7},{n}" for u in range(20) for n in range(5)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    absolute, relative = (DataConfig(path=path, core=0) for path in (tmp_path / "log.csv", Path("log.csv")))
    monkeypatch.chdir(tmp_path)
    found = base_training(base_of(tmp_path, BaseRunConfig(data=absolute)), load_interactions(relative), relative)
    assert found is not None
    assert np.sum([len(history) for history in found.histories]) > 0


@pytest.mark.parametrize(
    ("users", "changed", "told"),
    [
        ("public", {}, None),
        ("public", {"public_before": "2024-05-01"}, "^devices must .* with public_before None and not 2024-05-01"),
        ("public", {"public_fraction": 0.4}, "^held-out public users must .* with public_fraction 0.3 and not 0.4"),
        ("public", {"held_out_fraction": 0.5}, "^held-out public users must .* held_out_fraction 0.2 and not 0.5"),
        ("all", {}, "^devices must be new to the base, got 84 of 84 that it has learned from: .* with all users"),
    ],
)
def test_devices_and_judges_must_be_new_to_the_base(tmp_path: Path, users, changed, told):
    base, config = base_of(tmp_path, BaseRunConfig(data=SMALL, users=users)), replace(SMALL, **changed)
    with nullcontext() if told is None else pytest.raises(ConfigError, match=told):
        check_unseen(base, prepare(config), config)


def test_where_nothing_tells_what_a_base_has_learned_from_that_is_said(tmp_path: Path, caplog):
    check_unseen(tmp_path / "base.pt", prepare(SMALL), SMALL)
    assert "base.pt was trained on is unknown here" in caplog.text


def test_item_numbers_must_mean_the_same_items(tmp_path: Path, tiny):
    save_base(tmp_path / "base.pt", tiny.model, tiny.items)
    check_catalogue(tmp_path / "base.pt", tiny.model.num_items, tiny.items)
    swapped = (tiny.items[1], tiny.items[0], *tiny.items[2:])
    with pytest.raises(ConfigError, match=f"whose item 1 is {tiny.items[0].id}, got {tiny.items[1].id}"):
        check_catalogue(tmp_path / "base.pt", tiny.model.num_items, swapped)
    with pytest.raises(ConfigError, match=f"{tiny.model.num_items} items, got {tiny.model.num_items - 1} items"):
        check_catalogue(tmp_path / "base.pt", tiny.model.num_items, tiny.items[1:])


@pytest.mark.parametrize("users", ["public", "all"])
def test_users_whom_a_base_knows_are_those_who_are_not_devices(tmp_path: Path, users):
    path = tmp_path / "log.csv"
    lines = [f"u{user},i{(user + at) % 9},{at}" for user in range(40) for at in range(6)]
    path.write_text("\n".join(["user,item,timestamp", *lines]))
    config = DataConfig(path=path)
    base, setting = base_of(tmp_path, BaseRunConfig(data=config, users=users)), prepare(config)
    devices = {setting.data.user_ids[user] for user in setting.device_users}
    found = known_users(base, path)
    assert found == set(setting.data.user_ids) - (devices if users == "public" else set())


def test_of_another_file_nobody_is_known_and_that_is_said(tmp_path: Path, caplog):
    base = base_of(tmp_path, BaseRunConfig(data=DataConfig(path=tmp_path / "log.csv")))
    assert known_users(base, tmp_path / "other.csv") == frozenset()
    assert "users of" in caplog.text
