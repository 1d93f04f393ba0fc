from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ownlet.simulations.benchmarks.device_latency import measure


def test_the_measurement_reports_both_methods_in_both_forms_and_restores_the_threads(
    tiny: Any, tiny_bundle: Path
) -> None:
    before = torch.get_num_threads()
    result = measure(tiny_bundle, tiny.model, tiny.spec, repeats=3, warmup=1)
    assert result["program_bytes"] == (tiny_bundle / "program.pte").stat().st_size
    for method in ("recommend", "step"):
        assert set(result[method]) == {"pte_ms", "eager_ms"}
        assert min(result[method].values()) > 0
    assert torch.get_num_threads() == before
