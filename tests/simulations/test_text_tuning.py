import math

import numpy as np
import pytest
import torch
from torch import nn

from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.lora import applied, attach
from ownlet.simulations.text_encoder import load_text_encoder
from ownlet.simulations.text_tuning import TextTuning, _contrast, _dropped, target_modules_of, tune_encoder

TEXTS = ("alien horror", "red moon", "robot drama", "wedding romance", "space crew", "love sci fi")
# every item is followed by its partner: 1-2, 3-4, 5-6
HISTORIES = [np.array([1, 2]), np.array([3, 4]), np.array([5, 6])] * 40


def test_the_loss_of_two_pairs_has_a_closed_form():
    vectors = torch.eye(2)
    items = torch.tensor([[1, 2], [3, 4]])
    even = torch.full((5,), math.log(0.2))
    loss = _contrast(vectors, vectors, items, even, 0.5)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-6)
    popular = torch.tensor([0.0, 0.0, math.log(0.9), 0.0, math.log(0.1)])  # item 2 is drawn nine times as often as 4
    first = math.log(1 + math.exp(-2) * 0.9 / 0.1)
    second = math.log(1 + math.exp(-2) * 0.1 / 0.9)
    assert float(_contrast(vectors, vectors, items, popular, 0.5)) == pytest.approx((first + second) / 2, rel=1e-5)


def test_an_item_is_no_negative_of_itself():
    vectors = torch.eye(2)
    even = torch.zeros(5)
    for items in ([[1, 2], [3, 2]], [[1, 2], [2, 1]]):  # the other pair's second item is the own second, or the first
        assert float(_contrast(vectors, vectors, torch.tensor(items), even, 1.0)) == pytest.approx(0.0, abs=1e-7)


def test_dropping_columns_of_a_is_dropping_inputs_of_the_low_rank_term():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    spec = attach(model, target_modules=["0"], rank=2, alpha=4.0, base_hash="", train_a=True)
    a, b, x = torch.randn(2, 6), torch.randn(4, 2), torch.randn(3, 5, 6)
    dropped = _dropped({"0": (a, b)}, 3, 0.5, np.random.default_rng(0))
    kept = (dropped["0"][0] != 0).float()[:, :1]  # (3, 1, 6)
    assert 0 < kept.mean() < 1
    with applied(model, dropped):
        found = model(x)
    torch.testing.assert_close(found, model(x) + spec.alpha / spec.rank * ((x * kept / 0.5) @ a.T) @ b.T)


def test_tuning_brings_items_that_follow_each_other_together_and_leaves_the_encoder_alone(tiny_encoder):
    encoder = load_text_encoder(str(tiny_encoder))
    before = hash_state(encoder.model.state_dict())
    epochs = []
    config = TextTuning(rank=4, alpha=8.0, epochs=3, batch_size=12, learning_rate=1e-2, temperature=0.5)
    tuned = tune_encoder(encoder, TEXTS, HISTORIES, HISTORIES[:30], config, on_epoch=epochs.append)
    assert hash_state(encoder.model.state_dict()) == before == tuned.spec.base_hash
    assert epochs[-1].validation_loss < 0.8 * epochs[0].loss
    assert [layer.name.rpartition(".")[2] for layer in tuned.spec.layers] == ["q_lin", "v_lin"] * 2
    again = tune_encoder(load_text_encoder(str(tiny_encoder)), TEXTS, HISTORIES, HISTORIES[:30], config)
    np.testing.assert_array_equal(again.vector, tuned.vector)


def test_an_adapter_that_is_worse_than_none_is_not_kept(tiny_encoder):
    encoder = load_text_encoder(str(tiny_encoder))
    config = TextTuning(rank=2, epochs=1, batch_size=60, learning_rate=1e3)
    scrambled = [np.array([1, 4]), np.array([3, 6]), np.array([5, 2])] * 10
    tuned = tune_encoder(encoder, TEXTS, HISTORIES, scrambled, config)
    np.testing.assert_array_equal(tuned.vector, initial_adapter(tuned.spec, 0))


def test_what_cannot_be_tuned_is_refused(tiny_encoder):
    encoder = load_text_encoder(str(tiny_encoder))
    with pytest.raises(DataError, match="two pairs"):
        tune_encoder(encoder, ("", *TEXTS[1:]), [np.array([1, 2])] * 9, HISTORIES, TextTuning())
    with pytest.raises(ConfigError, match="target_modules"):
        tune_encoder(encoder, TEXTS, HISTORIES, HISTORIES, TextTuning(target_modules=("classifier",)))
    for wrong in ({"batch_size": 1}, {"dropout": 1.0}, {"temperature": 0.0}, {"rank": 0}):
        with pytest.raises(ConfigError):
            TextTuning(**wrong)


def test_query_and_value_are_found_under_the_names_of_the_architecture(tiny_encoder):
    from transformers import BertConfig, BertModel

    assert target_modules_of(load_text_encoder(str(tiny_encoder)).model) == ("q_lin", "v_lin")
    bert = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2))
    assert target_modules_of(bert) == ("query", "value")
    with pytest.raises(ConfigError, match="target_modules must be named"):
        target_modules_of(nn.Sequential(nn.Linear(2, 2)))
