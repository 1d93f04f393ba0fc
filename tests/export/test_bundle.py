"""A bundle is whole and verified, or it is not there."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.export import bundle as bundle_module
from ownlet.export.bundle import write_bundle
from ownlet.export.frozen import FrozenBase
from ownlet.export.programs import Method, ProgramShape, build_methods
from ownlet.export.verify import verify_program
from ownlet.shared.adapter import hash_state, load_adapter
from ownlet.shared.base import load_base_weights
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.interactions import Item
from ownlet.shared.manifest import FORMAT_VERSION, read_manifest

WINDOWS = WindowConfig(window_length=6)
HASHED = ["adapter.safetensors", "items.jsonl", "items.safetensors", "program.pte"]
FILES = sorted([*HASHED, "manifest.json"])


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copied"))


def methods_of(tiny: Any) -> tuple[FrozenBase, tuple[Method, ...]]:
    base = FrozenBase.of(tiny.model)
    return base, build_methods(base, tiny.spec, ProgramShape(windows=WINDOWS, batches=(1, 2), capacity=1050))


def test_a_bundle_holds_what_its_manifest_says(tiny: Any, tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert sorted(path.name for path in tiny_bundle.iterdir()) == FILES
    assert (manifest.base_hash, manifest.adapter_version) == (tiny.spec.base_hash, 3)
    assert (manifest.num_items, manifest.max_length, manifest.capacity, manifest.top_k) == (50, 12, 1050, 10)
    assert (manifest.windows, manifest.batches, manifest.federation) == (WINDOWS, (1, 2), None)
    assert {m.name for m in manifest.methods} == {"score", "step_1", "step_2", "loss"}
    assert [(a.name, a.shape, a.dtype) for a in manifest.method("step_2").arguments] == [
        ("vector", (tiny.spec.size,), "float32"),
        ("items", (16, -1), "float32"),
        ("history", (2, 6), "int64"),
        ("target", (2, 6), "int64"),
        ("valid", (2, 6), "float32"),
        ("noise", (tiny.spec.num_trainable,), "float32"),
        ("clip", (), "float32"),
        ("rate", (), "float32"),
    ]
    assert [(r.name, r.shape) for r in manifest.method("score").results] == [("scores", (1, -1))]
    with pytest.raises(BundleError, match="must have method 'recommend'"):
        manifest.method("recommend")
    _, vector, _ = load_adapter(tiny_bundle / "adapter.safetensors", base_hash=manifest.base_hash)
    np.testing.assert_array_equal(vector, tiny.vector)
    first = json.loads((tiny_bundle / "items.jsonl").read_text().splitlines()[0])
    assert first == {"item": 1, "id": "item-1", "title": "Title 1"}


@pytest.mark.parametrize("name", HASHED)
def test_a_flipped_bit_is_refused_by_file_name(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} must match its SHA-256"):
        read_manifest(copied)


@pytest.mark.parametrize("name", HASHED)
def test_a_truncated_or_missing_file_is_refused_by_name(copied: Path, name: str) -> None:
    (copied / name).write_bytes((copied / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name} must have \d+ bytes"):
        read_manifest(copied)
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"bundle must hold {name}"):
        read_manifest(copied)


def test_an_altered_newer_broken_or_missing_manifest_is_refused(copied: Path) -> None:
    path = copied / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "top_k": 11}))
    with pytest.raises(BundleError, match="must match its own hash"):
        read_manifest(copied)
    path.write_text(json.dumps({**raw, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(BundleError, match=f"format must be {FORMAT_VERSION}, got format_version=3"):
        read_manifest(copied)
    path.write_text("[]")
    with pytest.raises(BundleError, match="readable JSON"):
        read_manifest(copied)
    path.unlink()
    with pytest.raises(BundleError, match="readable JSON"):
        read_manifest(copied)


def test_a_bundle_that_does_not_agree_is_never_left_and_the_old_one_stays(
    tiny: Any, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (copied / "program.pte").read_bytes()
    weight = tiny.model.blocks[0].output.weight
    other = weight.detach().clone()
    monkeypatch.setattr(
        bundle_module, "lower", lambda methods, backend, capacity: program
    )  # a program of other weights
    arguments: dict[str, Any] = {"version": 4, "items": tiny.items, "windows": WINDOWS, "batches": (1, 2)}
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    with torch.no_grad():
        weight.mul_(1.1)
    try:
        from dataclasses import replace

        spec = replace(tiny.spec, base_hash=hash_state(tiny.model.state_dict()))
        for target in (copied, copied.parent / "fresh"):
            with pytest.raises(BundleError, match="must agree with eager"):
                write_bundle(target, tiny.model, spec, tiny.vector, **arguments)
    finally:
        with torch.no_grad():
            weight.copy_(other)
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before
    assert [path.name for path in copied.parent.iterdir()] == ["copied"]


def test_a_verified_bundle_replaces_an_old_one(tiny: Any, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = (copied / "program.pte").read_bytes()
    monkeypatch.setattr(bundle_module, "lower", lambda methods, backend, capacity: program)  # without the wait
    federation = FederationConfig(rounds=7, unit="none", clip_norm=math.inf, plan=Plan(steps=2))
    manifest = write_bundle(
        copied,
        tiny.model,
        tiny.spec,
        tiny.vector,
        version=4,
        items=tiny.items,
        windows=WINDOWS,
        batches=(1, 2),
        federation=federation,
        with_base=True,
    )
    assert read_manifest(copied) == manifest
    assert manifest.federation == federation  # its infinite numbers too
    assert "Infinity" not in (copied / "manifest.json").read_text()  # which other languages' readers refuse
    assert hash_state(load_base_weights(copied / "base.safetensors").state_dict()) == manifest.base_hash
    assert manifest.adapter_version == 4
    assert [path.name for path in copied.parent.iterdir()] == ["copied"]


def test_a_base_other_than_the_adapters_is_refused(tiny: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    spec = replace(tiny.spec, base_hash="0" * 64)
    with pytest.raises(BundleError, match="base must be 000000000000"):
        write_bundle(tmp_path / "b", tiny.model, spec, tiny.vector, version=1, items=tiny.items, windows=WINDOWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "ids, rule",
    [(["a"], "must be 50"), (["a"] * 50, "must have ids that differ"), ([f"i{n}" for n in range(49)], "must be 50")],
)
def test_items_that_do_not_fit_are_refused(tiny: Any, tmp_path: Path, ids: list[str], rule: str) -> None:
    items = tuple(Item(number=n, id=name) for n, name in enumerate(ids, start=1))
    with pytest.raises(ConfigError, match=rule):
        write_bundle(tmp_path / "b", tiny.model, tiny.spec, tiny.vector, version=1, items=items, windows=WINDOWS)
    backwards = tiny.items[::-1]
    with pytest.raises(ConfigError, match="in order"):
        write_bundle(tmp_path / "b", tiny.model, tiny.spec, tiny.vector, version=1, items=backwards, windows=WINDOWS)


def test_verify_accepts_the_program_and_names_the_method_that_disagrees(tiny: Any, tiny_bundle: Path) -> None:
    base, methods = methods_of(tiny)
    verify_program(tiny_bundle / "program.pte", methods, base, tiny.spec, seed=5)

    from dataclasses import replace

    for name in ("score", "step_1", "step_2", "loss"):
        wrong = tuple(
            replace(m, reference=lambda *a, f=m.reference: tuple(r + 0.01 for r in f(*a))) if m.name == name else m
            for m in methods
        )
        with pytest.raises(BundleError, match=f"method {name} must agree with eager"):
            verify_program(tiny_bundle / "program.pte", wrong, base, tiny.spec)


def test_a_frozen_base_has_the_very_numbers_of_the_base(tiny: Any) -> None:
    base, _ = methods_of(tiny)
    history = torch.tensor([[3, 1, 4], [1, 5, 0]])
    with torch.no_grad():
        assert torch.equal(base(history), tiny.model(history))
        assert torch.equal(base.item_vectors(), tiny.model.item_vectors())
    assert type(tiny.model) is not FrozenBase


def test_larger_steps_are_left_out_where_their_scores_would_take_too_much_memory() -> None:
    assert bundle_module._fitting_batches(20, 6_000) == (1, 4, 16)
    assert bundle_module._fitting_batches(20, 200_000) == (1, 4)
    assert bundle_module._fitting_batches(20, 2_000_000) == (1,)


@pytest.mark.parametrize(
    "shape, rule",
    [
        (ProgramShape(windows=WindowConfig(window_length=13), capacity=50), "row_length must be at most max_length 12"),
        (ProgramShape(windows=WINDOWS, capacity=49), "capacity must be at least num_items 50"),
    ],
)
def test_a_shape_that_does_not_fit_the_base_is_refused(tiny: Any, shape: ProgramShape, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        build_methods(FrozenBase.of(tiny.model), tiny.spec, shape)


@pytest.mark.parametrize("batches", [(), (4, 1), (1, 1), (0, 4)])
def test_batches_that_do_not_rise_are_refused(batches: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="batches must be rising numbers, at least 1"):
        ProgramShape(windows=WINDOWS, batches=batches, capacity=50)


def test_a_bundle_with_an_int8_table_is_verified_as_devices_will_read_it_and_may_grow(
    tiny: Any, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ownlet.device.executorch_engine import ExecutorchEngine
    from ownlet.export.grow import grow_catalogue

    program = (copied / "program.pte").read_bytes()
    monkeypatch.setattr(bundle_module, "lower", lambda methods, backend, capacity: program)  # without the wait
    arguments: dict[str, Any] = {"version": 3, "items": tiny.items, "windows": WINDOWS, "batches": (1, 2)}
    manifest = write_bundle(
        tmp_path / "small", tiny.model, tiny.spec, tiny.vector, capacity=1050, quantize="int8", **arguments
    )
    assert manifest.quantize == "int8"
    history = np.array([3, 1, 4], np.int64)
    small, full = (ExecutorchEngine.open(folder).score(tiny.vector, history) for folder in (tmp_path / "small", copied))
    assert 0 < np.abs(small - full).max() < 0.05 * np.abs(full).max()
    vectors = np.ones((1, 16), np.float32)
    grown = grow_catalogue(tmp_path / "small", tmp_path / "grown", [Item(number=51, id="new")], vectors)
    assert (grown.num_items, grown.quantize) == (51, "int8")
