import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state
from ownlet.shared.config import ModelConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Item
from ownlet.simulations.base_file import load_genre_head
from ownlet.simulations.base_run import BaseRunConfig, run_pretrain
from ownlet.simulations.evaluate import Cases
from ownlet.simulations.genres import GenreHead, genre_hit_rate, usual_genre_hit_rate
from ownlet.simulations.pretrain import PretrainConfig, load_base, pretrain, save_base
from ownlet.simulations.progress import Silent
from ownlet.simulations.results import RunFolder
from ownlet.simulations.setting import DataConfig, prepare

SMALL = ModelConfig(dim=16, num_layers=1, max_length=20)
ITEMS = (
    Item(number=1, id="a", genres=("Drama",)),
    Item(number=2, id="b", genres=("Drama", "Comedy")),
    Item(number=3, id="c"),
)


@pytest.fixture(scope="module")
def setting():
    return prepare(DataConfig(num_users=300, num_items=120, seed=1))


def train(setting, weight, epochs=3):
    head = GenreHead(setting.data.items, SMALL.dim) if weight else None
    recipe = PretrainConfig(max_epochs=epochs, warmup_steps=5, learning_rate=5e-3, genre_weight=weight)
    content = content_vectors(setting.data.items)
    return pretrain(setting.public, setting.validation, content, SMALL, recipe, head=head), head


def test_the_loss_is_binary_cross_entropy_per_genre_over_targets_that_have_one():
    head = GenreHead(ITEMS, 4)
    assert head.names == ("Comedy", "Drama")
    torch.nn.init.normal_(head.linear.weight, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([1, 2, 3])  # the third has no genre
    chances = torch.sigmoid(head(hidden).detach())[:2]
    truth = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    want = -(truth * chances.log() + (1 - truth) * (1 - chances).log()).mean()
    torch.testing.assert_close(head.loss(hidden, target).detach(), want)
    assert float(head.loss(hidden[2:], target[2:])) == 0.0


def test_a_catalogue_without_genres_is_refused():
    with pytest.raises(DataError, match="must have genres"):
        GenreHead(ITEMS[2:], 4)


def test_a_weight_and_a_head_come_together(setting):
    content = content_vectors(setting.data.items)
    with pytest.raises(ConfigError, match="head must be given with genre_weight"):
        pretrain(setting.public, setting.validation, content, SMALL, PretrainConfig(genre_weight=0.5))


def test_the_head_learns_what_the_history_tells_and_the_most_frequent_genre_does_not():
    """Genres take turns, so the last item says which comes next; each is as frequent as the other."""
    items = [Item(number=n, id=f"{n}", genres=("Odd",) if n % 2 else ("Even",)) for n in range(1, 21)]
    rng = np.random.default_rng(0)
    users = [2 * rng.integers(0, 10, 12) + 1 + (np.arange(12) + user) % 2 for user in range(80)]
    cases = Cases(histories=tuple(u[:-1] for u in users[60:]), targets=np.array([u[-1] for u in users[60:]]))
    head, recipe = GenreHead(items, 16), PretrainConfig(max_epochs=30, warmup_steps=5, genre_weight=1.0, batch_size=16)
    model = pretrain(
        users[:60], cases, content_vectors(items), SMALL, replace(recipe, learning_rate=1e-2, patience=30), head=head
    )
    assert usual_genre_hit_rate(head, users[:60], cases) == 0.5
    assert genre_hit_rate(model, head, cases) > 0.75


def test_the_head_teaches_the_base_and_is_none_of_it(setting, tmp_path):
    plain, _ = train(setting, 0.0)
    model, head = train(setting, 1.0)
    assert hash_state(plain.state_dict()) != hash_state(model.state_dict())
    assert set(plain.state_dict()) == set(model.state_dict())
    save_base(tmp_path / "base.pt", model, setting.data.items, head)
    again = load_genre_head(tmp_path / "base.pt")
    torch.testing.assert_close(again.linear.weight, head.linear.weight)
    assert again.names == head.names
    assert hash_state(load_base(tmp_path / "base.pt").state_dict()) == hash_state(model.state_dict())
    save_base(tmp_path / "base.pt", plain, setting.data.items)
    assert load_genre_head(tmp_path / "base.pt") is None


def test_a_run_with_a_head_reports_its_hit_rate_and_keeps_the_head(tmp_path):
    config = BaseRunConfig(
        data=DataConfig(num_users=300, num_items=120, seed=1),
        model=SMALL,
        recipe=PretrainConfig(max_epochs=1, genre_weight=0.5),
    )
    folder = RunFolder.create(tmp_path, "pretrain", config, 0, name="genre")
    run_pretrain(config, folder, Silent())
    found = json.loads((folder.path / "summary.json").read_text())["genre_hit_rate"]
    assert 0 <= found["head"] <= 1
    assert 0 < found["most_frequent"] < 1
    assert load_genre_head(folder.path / "base.pt") is not None


def test_hit_rates_count_cases_whose_target_has_a_genre():
    head = GenreHead(ITEMS, 4)
    cases = Cases(histories=(np.array([1]), np.array([2]), np.array([1])), targets=np.array([1, 2, 3]))
    assert usual_genre_hit_rate(head, [np.array([1, 2, 2])], cases) == 1.0  # Drama, of both that have any
