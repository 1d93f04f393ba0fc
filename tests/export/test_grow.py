"""New items reach a device without a new program."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.device.executorch_engine import ExecutorchEngine
from ownlet.export.grow import grow_catalogue, vectors_of
from ownlet.shared.config import Plan, WindowConfig
from ownlet.shared.content import content_vectors
from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.interactions import Item
from ownlet.shared.item_table import open_item_table
from ownlet.shared.manifest import read_manifest
from ownlet.shared.noise import AesNoise
from ownlet.shared.windows import cut_windows


def new_items(first: int, count: int) -> tuple[Item, ...]:
    return tuple(Item(number=n, id=f"new-{n}", title=f"New {n}") for n in range(first, first + count))


def vectors(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 0.3, (count, 16)).astype(np.float32)


def test_a_grown_bundle_has_the_same_program_and_adapter_and_recommends_new_items(
    tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    manifest = grow_catalogue(tiny_bundle, tmp_path / "grown", new_items(51, 900), vectors(900))
    assert read_manifest(tmp_path / "grown") == manifest
    assert (manifest.num_items, manifest.base_hash) == (950, tiny.spec.base_hash)
    for name in ("program.pte", "adapter.safetensors"):
        assert (tmp_path / "grown" / name).read_bytes() == (tiny_bundle / name).read_bytes()
    table = open_item_table(tmp_path / "grown" / "items.safetensors")
    np.testing.assert_array_equal(table[:, 50:], vectors(900).T)
    old, new = ExecutorchEngine.open(tiny_bundle), ExecutorchEngine.open(tmp_path / "grown")
    history = np.array([3, 1, 4], np.int64)
    np.testing.assert_allclose(
        new.score(tiny.vector, history)[:51], old.score(tiny.vector, history), rtol=1e-5, atol=1e-6
    )
    assert (new.recommend(tiny.vector, history)[0] > 50).any()


def test_a_grown_bundle_trains_on_new_items(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    grow_catalogue(tiny_bundle, tmp_path / "grown", new_items(51, 9), vectors(9))
    engine = ExecutorchEngine.open(tmp_path / "grown")
    windows = cut_windows(np.arange(40, 60, dtype=np.int64), WindowConfig(window_length=6))
    plan = Plan(steps=5, learning_rate=0.3, expected_batch=2.0)
    before = engine.loss(tiny.vector, windows).mean()
    (trained,) = engine.train(tiny.vector, [windows], plan, [AesNoise.seeded(0)])
    assert engine.loss(trained, windows).mean() < before


def test_a_bundle_may_grow_twice_and_in_its_own_place(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    grow_catalogue(folder, folder, new_items(51, 5), vectors(5))
    manifest = grow_catalogue(folder, folder, new_items(56, 1), vectors(1, seed=1))
    assert manifest.num_items == 56
    assert (folder / "items.jsonl").read_text().splitlines()[-1] == '{"item": 56, "id": "new-56", "title": "New 56"}'
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_does_not_fit_is_refused_and_nothing_is_left(tiny_bundle: Path, tmp_path: Path) -> None:
    wrong: list[tuple[Any, Any, str]] = [
        (new_items(52, 2), vectors(2), "numbered from 1 in order"),
        (new_items(51, 2), vectors(3), r"vectors must have shape \(2, 16\)"),
        ((), vectors(0), "vectors must have shape"),
        (new_items(51, 1001), vectors(1001), "items must be at most 1050, the program's capacity"),
        (new_items(51, 1), np.full((1, 16), np.nan, np.float32), "items must be finite"),
        ((Item(number=51, id="item-1"),), vectors(1), "ids that differ"),
    ]
    for items, given, rule in wrong:
        with pytest.raises(ConfigError, match=rule):
            grow_catalogue(tiny_bundle, tmp_path / "grown", items, given)
    with pytest.raises(BundleError, match="manifest must be readable"):
        grow_catalogue(tmp_path / "none", tmp_path / "grown", new_items(51, 1), vectors(1))
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_new_items_are_their_projected_content(tiny: Any) -> None:
    items = (Item(number=1, id="a", title="Red Moon (1994)"), Item(number=2, id="b"))
    found = vectors_of(tiny.model, items)
    weight = tiny.model.content_projection.weight.detach().numpy()
    np.testing.assert_allclose(found, content_vectors(items, 6)[1:] @ weight.T, rtol=1e-5, atol=1e-7)
    assert np.abs(found[0]).max() > 0
    assert not found[1].any()  # nothing is known of it


def test_a_new_item_that_is_like_a_trained_one_gets_its_id_embedding(tiny: Any) -> None:
    model = copy.deepcopy(tiny.model)
    model.frequencies = torch.zeros(51, dtype=torch.int64)
    model.frequencies[[3, 7, 9]] = torch.tensor([1, 5, 2])
    content = model.content[[7, 8]].numpy()  # one like a trained item, one like an item that was not trained
    items = (Item(number=51, id="a"), Item(number=52, id="b"))
    found = vectors_of(model, items, content, neighbours=1)
    with torch.no_grad():
        known = model.item_vectors()
        projected = model.content_projection(model.content)
    np.testing.assert_allclose(found[0], known[7].numpy(), atol=1e-6)
    cosine = torch.nn.functional.normalize(model.content[[3, 7, 9]], dim=1) @ model.content[8]
    nearest = [3, 7, 9][int(cosine.argmax())]
    want = projected[8] + model.item_embedding.weight[nearest]
    np.testing.assert_allclose(found[1], want.detach().numpy(), atol=1e-6)
    mean = model.item_embedding.weight[[3, 7, 9]].mean(0)
    all_three = vectors_of(model, items, content)
    np.testing.assert_allclose(all_three[1], (projected[8] + mean).detach().numpy(), atol=1e-6)
    nothing_known = vectors_of(model, items, np.zeros((2, 6), np.float32))
    assert not nothing_known.any()
    with pytest.raises(ConfigError, match="content must be 2 by 6"):
        vectors_of(model, items, content[:, :3])
