"""The methods, and the graphs traced from them, compute what the shared code computes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from ownlet.export.frozen import FrozenBase
from ownlet.export.lower import lower, trace
from ownlet.export.programs import Method, ProgramShape, build_methods
from ownlet.export.verify import random_arguments
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import ConfigError

NAMES = ("score", "step_1", "step_3", "loss")


def method_of(tiny: Any, name: str) -> tuple[FrozenBase, Method]:
    base = FrozenBase.of(tiny.model)
    shape = ProgramShape(windows=WindowConfig(window_length=6), batches=(1, 3), capacity=100)
    return base, next(m for m in build_methods(base, tiny.spec, shape) if m.name == name)


@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_and_its_graph_equal_the_reference(
    request: pytest.FixtureRequest, train_a: bool, name: str
) -> None:
    tiny = request.getfixturevalue("tiny_with_a" if train_a else "tiny")
    base, method = method_of(tiny, name)
    graph, generator = trace(method), torch.Generator().manual_seed(1)
    for trial in range(4):
        arguments = random_arguments(method, base, tiny.spec, generator, trial)
        want = method.reference(*arguments)
        for function in (method.function, graph):
            for got, wanted in zip(function(*arguments), want, strict=True):
                torch.testing.assert_close(got, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_the_blocks_before_the_last_are_whole_in_score(tiny: Any) -> None:
    from ownlet.shared.adapter import hash_state, initial_adapter
    from ownlet.shared.config import AdapterConfig, ModelConfig
    from ownlet.shared.lora import attach_adapter
    from ownlet.shared.model import SASRec

    with torch.random.fork_rng():
        torch.manual_seed(3)
        content = torch.cat([torch.zeros(1, 6), torch.randn(20, 6)])
        model = SASRec(ModelConfig(dim=16, num_layers=3, max_length=9), content).eval()
    with torch.no_grad():
        model.item_embedding.weight[1:].normal_(std=0.3)
        for parameter in model.blocks.parameters():
            parameter.add_(0.05)  # biases and norms other than 0 and 1
    spec = attach_adapter(model, AdapterConfig(target_modules=("key", "output", "up"), rank=2))
    assert spec.base_hash == hash_state(model.state_dict())
    base = FrozenBase.of(model)
    shape = ProgramShape(windows=WindowConfig(window_length=6), batches=(2,), capacity=100)
    generator = torch.Generator().manual_seed(1)
    for method in build_methods(base, spec, shape):
        arguments = random_arguments(method, base, spec, generator, trial=2)
        assert initial_adapter(spec, 0).shape == arguments[0].shape
        for got, wanted in zip(method.function(*arguments), method.reference(*arguments), strict=True):
            torch.testing.assert_close(got, wanted.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["score", "step_3"])
def test_a_traced_graph_holds_no_copies_and_computes_no_constants(tiny: Any, name: str) -> None:
    graph = trace(method_of(tiny, name)[1]).graph
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_function")
    assert not [
        call for call in calls if call.split(".")[1] in ("detach", "clone", "contiguous", "arange", "full", "ones")
    ]
    assert calls["aten.mm.default"] == 1  # the product that scores, with the item table as it lies


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend must be xnnpack or portable"):
        lower([], "vulkan", capacity=10)  # type: ignore[arg-type]
