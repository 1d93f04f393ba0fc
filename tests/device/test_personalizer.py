from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.device import Personalizer
from ownlet.device.charges import read_charges
from ownlet.shared.adapter import load_adapter, save_adapter
from ownlet.shared.config import Plan
from ownlet.shared.errors import AdapterError, ConfigError, DataError, PrivacyError
from ownlet.shared.lora import applied
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import event_from_json, event_to_json, window_level_event

PRIVATE = Plan(steps=4, sample_rate=0.5, expected_batch=1.0, clip_norm=0.2, noise_multiplier=1.0)


def record_all(personalizer: Personalizer, numbers: list[int]) -> None:
    for time, number in enumerate(numbers):
        personalizer.record(f"item-{number}", time)


def eager_scores(tiny: Any, numbers: list[int]) -> np.ndarray:
    kept = numbers[-12:]
    history = torch.zeros(1, 12, dtype=torch.int64)
    history[0, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    with torch.no_grad(), applied(tiny.model, tiny.spec.split(torch.from_numpy(tiny.vector))):
        return tiny.model.score_last(history, torch.tensor([max(1, len(kept))]))[0].numpy()


@pytest.mark.parametrize("numbers", [[], [7], [3, 1, 4, 1, 5], list(range(1, 31))])
def test_recommendations_are_the_eager_models_best_unseen_items(
    tiny: Any, tiny_bundle: Path, tmp_path: Path, numbers: list[int]
) -> None:
    scores = eager_scores(tiny, numbers)
    scores[[0, *numbers]] = -np.inf
    best = np.argsort(-scores)[:10]
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, numbers)
        got = personalizer.recommend(10)
        assert personalizer.score(["item-2"]) == pytest.approx([eager_scores(tiny, numbers)[2]], rel=1e-4, abs=1e-5)
    assert [(r.item, r.title) for r in got] == [(f"item-{n}", f"Title {n}") for n in best]
    np.testing.assert_allclose([r.score for r in got], scores[best], rtol=1e-4, atol=1e-5)


def test_nothing_is_recommended_to_a_user_who_has_seen_everything(tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, list(range(1, 51)))
        assert personalizer.recommend(10) == []


def test_unknown_items_are_kept_and_ignored(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        Personalizer.open(tiny_bundle, tmp_path / "one") as one,
        Personalizer.open(tiny_bundle, tmp_path / "two") as two,
    ):
        record_all(one, [1, 2])
        two.record("a film of tomorrow", 0.5)
        record_all(two, [1, 2])
        assert one.recommend(5) == two.recommend(5)
        with pytest.raises(DataError, match="must be in the catalogue, got item='a film of tomorrow'"):
            two.score(["item-1", "a film of tomorrow"])


@pytest.mark.parametrize("k", [0, -1, 11])
def test_k_outside_the_bundle_is_refused(tiny_bundle: Path, tmp_path: Path, k: int) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer, pytest.raises(ConfigError, match="k must be from 1"):
        personalizer.recommend(k)


def test_training_lowers_the_users_loss_and_survives_reopening(tiny_bundle: Path, tmp_path: Path) -> None:
    habit = [5, 9, 5, 9, 5, 9]
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, habit)
        before = personalizer.score(["item-5", "item-9"])
        personalizer.train(Plan(steps=20, learning_rate=0.5))
        after = personalizer.score(["item-5", "item-9"])
        assert sum(after) > sum(before) + 0.1
    with Personalizer.open(tiny_bundle, tmp_path) as again:
        assert again.score(["item-5", "item-9"]) == after


@pytest.mark.parametrize("numbers", [[], [7]])
def test_training_on_too_few_events_changes_nothing(tiny_bundle: Path, tmp_path: Path, numbers: list[int]) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, numbers)
        personalizer.train()
        assert not personalizer.update(1.0).delta.any()


def test_an_update_is_clipped_and_names_base_version_and_event(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        record_all(personalizer, [5, 9, 5, 9, 5, 9, 1, 2, 3])
        personalizer.train(PRIVATE, AesNoise.seeded(1))
        update = personalizer.update(clip_norm=0.01)
        free = personalizer.update(clip_norm=math.inf)
    assert np.linalg.norm(update.delta) == pytest.approx(0.01, rel=1e-5)
    np.testing.assert_allclose(update.delta / 0.01, free.delta / np.linalg.norm(free.delta), rtol=1e-4, atol=1e-6)
    assert (update.base_hash, update.adapter_version) == (tiny.spec.base_hash, 3)
    assert update.event == event_to_json(window_level_event(PRIVATE, 1))


def test_two_trainings_are_both_in_the_updates_event(tiny_bundle: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
            personalizer.train(PRIVATE)
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        event = event_from_json(personalizer.update(1.0).event)
        assert len(event.events) == 2  # type: ignore[attr-defined]
        personalizer.train()
        with pytest.raises(PrivacyError, match="both kinds"):
            personalizer.update(1.0)


class _CrashingNoise:
    """Stops in the middle of a training, after looking at what is on disk."""

    def __init__(self, charges: Path) -> None:
        self.charges, self.seen = charges, -1

    def poisson_mask(self, size: int, rate: float) -> np.ndarray:
        self.seen = len(read_charges(self.charges))
        raise KeyboardInterrupt

    def gaussian(self, size: int, std: float) -> np.ndarray:
        raise AssertionError("never reached")


def test_a_training_is_charged_before_it_runs_and_a_crash_keeps_charge_and_adapter(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    noise = _CrashingNoise(tmp_path / "charges.jsonl")
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        with pytest.raises(KeyboardInterrupt):
            personalizer.train(PRIVATE, noise)
        assert noise.seen == 1
        assert not personalizer.update(1.0).delta.any()
    assert [c.event for c in read_charges(tmp_path / "charges.jsonl")] == [
        event_to_json(window_level_event(PRIVATE, 1))
    ]


def test_a_damaged_charge_stops_an_update(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "charges.jsonl").write_text('{"base_hash": "x"')
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer, pytest.raises(PrivacyError, match="line 1"):
        personalizer.update(1.0)


def test_a_personal_adapter_of_another_version_is_set_aside(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter.safetensors", tiny.spec, tiny.vector + np.float32(1), version=2)
    with Personalizer.open(tiny_bundle, tmp_path) as personalizer:
        assert not personalizer.update(1.0).delta.any()


def test_a_damaged_personal_adapter_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(AdapterError, match="readable safetensors"):
        Personalizer.open(tiny_bundle, tmp_path)


def test_a_bundle_whose_adapter_is_of_another_base_is_refused(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from ownlet.shared.manifest import describe_file, read_manifest, write_manifest

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    _, vector, version = load_adapter(bundle / "adapter.safetensors")
    save_adapter(bundle / "adapter.safetensors", replace(tiny.spec, base_hash="0" * 64), vector, version=version)
    manifest = read_manifest(tiny_bundle)
    files = {**manifest.files, "adapter.safetensors": describe_file(bundle / "adapter.safetensors")}
    write_manifest(bundle, replace(manifest, files=files))
    with pytest.raises(AdapterError, match="must belong to base"):
        Personalizer.open(bundle, tmp_path / "state")


def test_a_fresh_process_with_the_bundle_alone_imports_no_server_package(tiny_bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "from ownlet.device import Personalizer\n"
        f"with Personalizer.open({str(tiny_bundle)!r}, {str(tmp_path)!r}) as p:\n"
        "    p.record('item-1', 1.0)\n"
        "    p.record('item-2', 2.0)\n"
        "    p.train()\n"
        "    names = [r.item for r in p.recommend(3)]\n"
        "heavy = [m for m in ('flwr', 'ray', 'polars', 'opacus', 'matplotlib') if m in sys.modules]\n"
        "print(json.dumps([names, heavy]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    names, heavy = json.loads(done.stdout.splitlines()[-1])
    assert len(names) == 3
    assert heavy == []
