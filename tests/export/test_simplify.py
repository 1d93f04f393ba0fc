"""The traced and rewritten graphs compute what the functions compute."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from ownlet.export.lower import lower, trace
from ownlet.export.programs import FrozenBase, ProgramShape, build_methods
from ownlet.export.verify import _random_arguments
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import ConfigError


@pytest.mark.parametrize("backend", ["xnnpack", "portable"])
@pytest.mark.parametrize("train_a", [False, True])
@pytest.mark.parametrize("name", ["score", "recommend", "step", "loss"])
def test_every_rewritten_graph_equals_its_function(
    request: pytest.FixtureRequest, train_a: bool, name: str, backend: Any
) -> None:
    tiny = request.getfixturevalue("tiny_with_a" if train_a else "tiny")
    base = FrozenBase.of(tiny.model)
    shape = ProgramShape(windows=WindowConfig(window_length=6), batch=3, top_k=10)
    method = next(m for m in build_methods(base, tiny.spec, shape) if m.name == name)
    arguments = _random_arguments(method, base, tiny.spec, torch.Generator().manual_seed(1), trial=2)
    for got, want in zip(trace(method, backend)(*arguments), method.function(*arguments), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_step_for_xnnpack_holds_nothing_that_would_break_its_delegate(tiny: Any) -> None:
    base = FrozenBase.of(tiny.model)
    shape = ProgramShape(windows=WindowConfig(window_length=6), top_k=10)
    step = next(m for m in build_methods(base, tiny.spec, shape) if m.name == "step")
    calls = Counter(str(n.target) for n in trace(step, "xnnpack").graph.nodes if n.op == "call_function")
    for name in ("detach", "clone", "mm", "addmm", "native_layer_norm", "native_layer_norm_backward"):
        assert calls[f"aten.{name}.default"] == 0


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="backend must be xnnpack or portable"):
        lower([], "vulkan")  # type: ignore[arg-type]
