from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ownlet.simulations.benchmarks.device_latency import measure, measure_memory


def test_the_measurement_reports_every_form_and_restores_the_threads(tiny: Any, tiny_bundle: Path) -> None:
    before = torch.get_num_threads()
    result = measure(tiny_bundle, tiny.model, tiny.spec, repeats=3, warmup=1)
    assert result["program_bytes"] == (tiny_bundle / "program.pte").stat().st_size
    assert result["bundle_bytes"] == sum(path.stat().st_size for path in tiny_bundle.iterdir())
    assert set(result["step"]) == {"pte_ms", "eager_ms", "opacus_ms"}
    for method in ("recommend", "step_call"):
        assert set(result[method]) == {"pte_ms", "eager_ms"}
    assert min(time for method in ("recommend", "step", "step_call") for time in result[method].values()) > 0
    assert torch.get_num_threads() == before


def test_peak_memory_is_that_of_a_process_of_its_own(tiny_bundle: Path) -> None:
    assert measure_memory(tiny_bundle, "pte")["peak_mib"] > 20


@pytest.mark.slow
def test_the_benchmark_writes_what_is_promised(tmp_path: Path) -> None:
    import json

    from ownlet.simulations.benchmarks.device_latency import main

    main(["--out", str(tmp_path / "device.json"), "--sizes", "60,90", "--repeats", "2"])
    found = json.loads((tmp_path / "device.json").read_text())
    assert set(found["step"]) == {"pte_ms", "eager_ms", "opacus_ms"}
    assert set(found["recommend"]) == set(found["program_bytes"]) == set(found["peak_mib"]) == {"60", "90"}
    assert found["export_seconds"] > 0
