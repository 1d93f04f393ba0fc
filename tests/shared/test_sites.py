"""Forms of an adapter: B = 0 changes nothing, and each form is what its formula says, example by example."""

import math

import pytest
import torch

from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import AdapterConfig, ModelConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.lora import applied, attach, attach_adapter
from ownlet.shared.methods import METHODS
from ownlet.shared.model import SASRec


def base() -> SASRec:
    torch.manual_seed(0)
    return SASRec(ModelConfig(dim=16, num_layers=1, max_length=8), torch.randn(21, 4)).eval()


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_whose_b_is_zero_changes_nothing(method):
    plain, model = base(), base()
    spec = attach_adapter(model, AdapterConfig(method=method, rank=4))
    history = torch.randint(1, 21, (3, 8))
    vector = torch.from_numpy(initial_adapter(spec, 0))
    assert spec.base_hash == hash_state(plain.state_dict()) == hash_state(model.state_dict())
    with applied(model, spec.split(vector)):
        torch.testing.assert_close(model(history), plain(history), rtol=0, atol=0)
    vector[spec.size_a :] = 0.3 * torch.randn(spec.size - spec.size_a)
    with applied(model, spec.split(vector)):
        assert (model(history) - plain(history)).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["lora", "bottleneck", "prefix"])
def test_one_adapter_per_example_equals_one_forward_per_example(form):
    model = base()
    targets = ("prefix",) if form == "prefix" else ("query", "down")
    spec = attach(model, target_modules=targets, rank=3, alpha=6.0, base_hash="h", form=form)
    vectors, history = torch.randn(5, spec.size), torch.randint(1, 21, (5, 6))
    with applied(model, spec.split(vectors)):
        together = model(history)
    for i in range(5):
        with applied(model, spec.split(vectors[i])):
            torch.testing.assert_close(together[i : i + 1], model(history[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_a_bottleneck_is_a_small_network_behind_the_layer():
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5))
    model = torch.nn.Sequential(torch.nn.Linear(6, 5))
    model.load_state_dict(layer.state_dict())
    spec = attach(model, target_modules=("0",), rank=2, alpha=3.0, base_hash="h", form="bottleneck")
    vector, x = torch.randn(spec.size), torch.randn(4, 6)
    a, b = spec.split(vector)["0"]
    assert a.shape == (2, 5)
    with applied(model, spec.split(vector)):
        got = model(x)
    y = layer(x)
    small = torch.nn.Sequential(torch.nn.Linear(5, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 5, bias=False))
    with torch.no_grad():
        small[0].weight.copy_(a)
        small[2].weight.copy_(b)
    torch.testing.assert_close(got, y + 3.0 / 2 * small(y))


def test_a_prefix_is_attention_over_learned_keys_and_values():
    model = base()
    site = attach(model, target_modules=("prefix",), rank=5, alpha=10.0, base_hash="h", form="prefix")
    a, b = torch.randn(5, 16), torch.randn(16, 5)
    query, mixed = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    with applied(model, {site.layers[0].name: (a, b)}):
        got = model.blocks[0].prefix(mixed, query)
    keys = a.view(5, 2, 8).transpose(0, 1).expand(2, 2, 5, 8)
    values = b.T.reshape(5, 2, 8).transpose(0, 1).expand(2, 2, 5, 8)
    attended = torch.nn.functional.scaled_dot_product_attention(query, keys * math.sqrt(8), values)
    torch.testing.assert_close(got, mixed + 2.0 * attended)


def test_a_model_without_a_place_for_a_prefix_is_told_so_and_left_alone():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with pytest.raises(ConfigError, match="can carry the form prefix"):
        attach(model, target_modules=("0",), rank=1, alpha=1.0, base_hash="h", form="prefix")
    assert model[0].weight.requires_grad


@pytest.mark.parametrize("change", [{"method": "unheard-of"}, {"rank": 0}, {"alpha": 0.0}, {"alpha": math.inf}])
def test_settings_of_an_adapter_are_checked(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        AdapterConfig(**change)
