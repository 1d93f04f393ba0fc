"""A domain's adapter is activated at serving: on a real bundle, with real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.device import Personalizer
from ownlet.shared.adapter import save_adapter
from ownlet.shared.config import Plan
from ownlet.shared.domains import DomainAdapters, save_domains
from ownlet.shared.errors import AdapterError
from ownlet.shared.lora import applied


def domains_of(tiny: Any, version: int = 4) -> DomainAdapters:
    vectors = {}
    for seed, name in enumerate(("north", "south")):
        vectors[name] = tiny.vector.copy()
        drawn = np.random.default_rng(seed).normal(0, 0.2, tiny.spec.num_trainable)
        vectors[name][tiny.spec.trainable] = drawn.astype(np.float32)
    return DomainAdapters(spec=tiny.spec, default=tiny.vector, vectors=vectors, version=version)


def served(tiny: Any, vector: Any) -> list[str]:
    with torch.no_grad(), applied(tiny.model, tiny.spec.split(torch.from_numpy(vector))):
        scores = tiny.model.score_last(torch.tensor([[1, 2, 3]]), torch.tensor([3]))[0].numpy()
    scores[[0, 1, 2, 3]] = -np.inf
    return [f"item-{n}" for n in np.argsort(-scores)[:10]]


def answers(personalizer: Personalizer) -> list[str]:
    return [one.item for one in personalizer.recommend(10)]


def test_the_activated_domain_serves_and_an_unknown_one_is_the_default(
    tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    domains, file = domains_of(tiny), tmp_path / "domains"
    save_domains(file, domains)
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        for second, number in enumerate((1, 2, 3)):
            personalizer.record(f"item-{number}", second)
        assert personalizer.status().domain is None
        for name in ("north", "south", "north"):
            assert personalizer.activate(file, name) == name
            assert personalizer.status().domain == name
            assert answers(personalizer) == served(tiny, domains.vectors[name])
        assert len({tuple(served(tiny, domains.choose(name))) for name in ("north", "south", None)}) == 3
    with Personalizer.open(tiny_bundle, tmp_path / "state") as again:  # it is on disk
        assert (again.status().domain, again.status().shared_version) == ("north", 4)
        for name in ("mars", None):
            assert again.activate(file, name) is None
            assert answers(again) == served(tiny, domains.default)
        again.activate(file, "south")
        save_adapter(tmp_path / "newer", tiny.spec, tiny.vector, version=5)
        again.adopt(tmp_path / "newer")
        assert (again.status().domain, again.status().shared_version) == (None, 5)


def test_activating_what_serves_already_writes_nothing(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    save_domains(tmp_path / "domains", domains_of(tiny))
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        personalizer.activate(tmp_path / "domains", "north")
        before = sorted(path.name for path in (tmp_path / "state" / "shared").iterdir())
        personalizer.activate(tmp_path / "domains", "north")
        assert sorted(path.name for path in (tmp_path / "state" / "shared").iterdir()) == before


def test_the_personal_adapter_is_judged_on_the_domains_adapter(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    near = tiny.vector.copy()
    near[tiny.spec.trainable] += np.float32(0.001)
    other_a = tiny.vector.copy()
    other_a[: tiny.spec.size_a] *= -1
    vectors = {"near": near, "other": other_a}
    save_domains(tmp_path / "d", replace(domains_of(tiny), vectors=vectors))
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        for second, number in enumerate([5, 9] * 8):
            personalizer.record(f"item-{number}", second)
        assert personalizer.train(Plan(steps=20, learning_rate=0.5)).version == 1
        personalizer.activate(tmp_path / "d", "near")
        assert personalizer.status().personal_version == 2  # the same one, on top of the domain's
        personalizer.activate(tmp_path / "d", "other")
        assert personalizer.status().personal_version is None  # its frozen part is another one
        personalizer.activate(tmp_path / "d", "near")
        personalizer.rollback(2)
        assert personalizer.status().personal_version is not None


def test_domain_adapters_that_do_not_fit_are_refused_and_nothing_changes(
    tiny: Any, tiny_bundle: Path, tmp_path: Path
) -> None:
    domains = domains_of(tiny)
    save_domains(tmp_path / "old", replace(domains, version=2))
    save_domains(tmp_path / "other", replace(domains, spec=replace(tiny.spec, base_hash="0" * 64)))
    save_domains(tmp_path / "alpha", replace(domains, spec=replace(tiny.spec, alpha=1.0)))
    (tmp_path / "torn").write_bytes((tmp_path / "old").read_bytes()[:-7])
    with Personalizer.open(tiny_bundle, tmp_path / "state") as personalizer:
        for name, rule in (
            ("old", "must not be older than version 3, got 2"),
            ("other", "must belong to base"),
            ("alpha", "must have the layers, rank, alpha"),
            ("torn", "must be readable safetensors"),
            ("absent", "must be readable safetensors"),
        ):
            with pytest.raises(AdapterError, match=rule):
                personalizer.activate(tmp_path / name, "north")
        assert (personalizer.status().shared_version, personalizer.status().domain) == (3, None)
