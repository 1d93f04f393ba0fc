"""Golden vectors: the program reproduces them, ExecuTorch's own checker agrees, and the device arrives at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.export.golden import BUNDLED_FILE, GOLDEN_FILE, write_golden
from ownlet.shared.adapter import load_adapter
from ownlet.shared.config import Plan
from ownlet.shared.errors import AdapterError
from ownlet.shared.manifest import read_manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.program import Program
from ownlet.shared.tensors import unpack
from ownlet.shared.windows import cut_windows


@pytest.fixture(scope="module")
def golden(tiny: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write_golden(tiny_bundle, folder, tiny.model)
    return folder


@pytest.fixture(scope="module")
def vectors(golden: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    return unpack((golden / GOLDEN_FILE).read_bytes())


def test_the_program_computes_every_case(tiny_bundle: Path, vectors: Any) -> None:
    tensors, words = vectors
    program, manifest = Program(tiny_bundle / "program.pte"), read_manifest(tiny_bundle)
    assert words["program_sha256"] == manifest.files["program.pte"].sha256
    for method in manifest.methods:
        for case in range(4):
            given = [tensors[f"{method.name}/{case}/in/{entry.name}"] for entry in method.arguments]
            results = program.run(method.name, *given)
            for entry, got in zip(method.results, results, strict=True):
                want = tensors[f"{method.name}/{case}/out/{entry.name}"]
                atol = float(words["atol"]) * max(1.0, float(np.abs(want).max()))
                np.testing.assert_allclose(got, want, rtol=float(words["rtol"]), atol=atol)


def test_executorch_itself_accepts_the_bundled_program_and_sees_a_wrong_number(golden: Path, vectors: Any) -> None:
    from executorch.extension.pybindings import _portable_lib

    content = (golden / BUNDLED_FILE).read_bytes()
    names = {name.split("/")[0] for name in vectors[0] if "/in/" in name}
    module = _portable_lib._load_bundled_program_from_buffer(content, 0)
    for name in names:
        for case in range(4):
            module.verify_result_with_bundled_expected_output(name, case, 1e-4, 1e-4)
    scores = vectors[0]["score/1/out/scores"]
    wrong = content.replace(scores.tobytes(), (scores + np.float32(0.5)).tobytes())
    assert wrong != content
    module = _portable_lib._load_bundled_program_from_buffer(wrong, 0)
    with pytest.raises(RuntimeError, match="verification failed"):
        module.verify_result_with_bundled_expected_output("score", 1, 1e-4, 1e-4)


def test_coins_and_normals_are_those_of_the_key(vectors: Any) -> None:
    tensors, words = vectors
    source, numbers = AesNoise(tensors["noise/key"].tobytes()), json.loads(words["noise"])
    mask = source.poisson_mask(len(tensors["noise/mask"]), numbers["rate"])
    np.testing.assert_array_equal(mask, tensors["noise/mask"].astype(bool))
    normals = tensors["noise/gaussian"]
    np.testing.assert_array_equal(source.gaussian(len(normals), numbers["std"]), normals)
    assert 0 < mask.sum() < len(mask)


def test_a_whole_training_on_the_device_arrives_at_the_golden_vector(tiny_bundle: Path, vectors: Any) -> None:
    tensors, words = vectors
    engine, plan = ExecutorchEngine.open(tiny_bundle), Plan(**json.loads(words["plan"]))
    _, start, _ = load_adapter(tiny_bundle / "adapter.safetensors")
    windows = cut_windows(tensors["training/events"], read_manifest(tiny_bundle).windows)
    (trained,) = engine.train(start, [windows], plan, [AesNoise(tensors["noise/key"].tobytes())])
    np.testing.assert_allclose(trained, tensors["training/vector"], rtol=1e-4, atol=1e-6)
    assert np.abs(trained - start).max() > 0.01


def test_vectors_of_another_base_are_not_written(tiny_with_a: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    import copy

    import torch

    other = copy.deepcopy(tiny_with_a.model)
    with torch.no_grad():
        other.item_embedding.weight[1] += 1
    with pytest.raises(AdapterError, match="must belong to base"):
        write_golden(tiny_bundle, tmp_path / "golden", other)
    assert not (tmp_path / "golden").exists()
