from dataclasses import replace

import pytest
import torch
from torch import nn

from ownlet.shared.adapter import hash_state
from ownlet.shared.errors import AdapterError, ConfigError
from ownlet.shared.lora import LoRALinear, applied, attach, attach_spec


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def attached(**changes):
    model = small_model()
    settings = {"target_modules": ("0", "2"), "rank": 2, "alpha": 6.0, "base_hash": "h"} | changes
    return model, attach(model, **settings)


def test_output_is_that_of_the_merged_weight():
    model, spec = attached()
    vector = torch.randn(spec.size)
    x = torch.randn(5, 6)
    weights = spec.split(vector)
    with applied(model, weights):
        got = model(x)
    merged = small_model()  # an independent way: W + (alpha / r) B A in a plain layer
    with torch.no_grad():
        for name, (a, b) in weights.items():
            merged.get_submodule(name).weight += 6.0 / 2 * b @ a
    torch.testing.assert_close(got, merged(x))


def test_one_adapter_per_example_equals_one_forward_per_example():
    model, spec = attached()
    vectors = torch.randn(5, spec.size)
    for x in (torch.randn(5, 6), torch.randn(5, 3, 6)):
        with applied(model, spec.split(vectors)):
            together = model(x)
        for i in range(5):
            with applied(model, spec.split(vectors[i])):
                torch.testing.assert_close(together[i : i + 1], model(x[i : i + 1]))


def test_attach_keeps_parameter_names_and_values_and_freezes():
    plain, (model, _) = small_model(), attached()
    assert hash_state(plain.state_dict()) == hash_state(model.state_dict())
    assert not any(p.requires_grad for p in model.parameters())


def test_adapter_is_gone_after_the_block_even_when_it_raises():
    model, spec = attached()
    x = torch.randn(2, 6)
    before = model(x)
    with pytest.raises(RuntimeError, match="mat1"), applied(model, spec.split(torch.randn(spec.size))):
        model(torch.randn(2, 5))
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [{"target_modules": ("nothing",)}, {"rank": 0}, {"rank": 5}, {"alpha": 0.0}],
)
def test_attach_refuses_what_does_not_fit(change):
    with pytest.raises(ConfigError):
        attached(**change)


def test_applying_to_a_layer_that_was_not_attached_is_refused():
    model = small_model()
    with pytest.raises(ConfigError, match="attached"), applied(model, {"0": (torch.zeros(2, 6), torch.zeros(8, 2))}):
        pass


def test_the_layers_of_an_existing_adapter_attach_and_others_are_refused():
    _, spec = attached(target_modules=("0",))
    model = small_model()
    attach_spec(model, spec)
    assert isinstance(model[0], LoRALinear)
    assert not isinstance(model[2], LoRALinear)
    wider = replace(spec, layers=(replace(spec.layers[0], out_features=99),))
    with pytest.raises(AdapterError, match="must fit the layers of the base"):
        attach_spec(small_model(), wider)


def test_inputs_with_more_axes_take_one_adapter_per_example_too():
    model, spec = attached()
    vectors, x = torch.randn(5, spec.size), torch.randn(5, 3, 2, 6)
    with applied(model, spec.split(vectors)):
        together = model(x)
    for i in range(5):
        with applied(model, spec.split(vectors[i])):
            torch.testing.assert_close(together[i], model(x[i]), rtol=1e-4, atol=1e-4)


class Twice(nn.Module):
    """One layer in two places of the model, one of them nested."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.later = nn.Sequential(nn.Tanh(), self.first)

    def forward(self, x):
        return self.later(self.first(x))


@pytest.mark.parametrize("target", ["first", "later.1", "1"])
def test_a_layer_in_two_places_carries_one_adapter_in_both(target):
    torch.manual_seed(0)
    model = Twice()
    plain = nn.Linear(6, 6)
    plain.load_state_dict(model.first.state_dict())
    spec = attach(model, target_modules=(target,), rank=2, alpha=6.0, base_hash="h")
    assert [layer.name for layer in spec.layers] == ["first"]
    vector, x = torch.randn(spec.size), torch.randn(5, 6)
    ((a, b),) = spec.split(vector).values()
    with torch.no_grad():
        plain.weight += 6.0 / 2 * b @ a
    with applied(model, spec.split(vector)):
        torch.testing.assert_close(model(x), plain(torch.tanh(plain(x))))


def test_an_attached_layer_is_in_the_mode_of_the_layer_that_it_replaces():
    model = small_model().eval()
    attach(model, target_modules=("0",), rank=2, alpha=1.0, base_hash="h")
    assert not any(module.training for module in model.modules())
