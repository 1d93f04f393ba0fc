"""``ownlet grow``: new items for a bundle, from a file."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device import Personalizer
from ownlet.simulations.pretrain import save_base


@pytest.fixture
def base(tiny: Any, tmp_path: Path) -> Path:
    save_base(tmp_path / "base.pt", tiny.model, tiny.items)
    return tmp_path / "base.pt"


def grow(base: Path, bundle: Path, lines: list[str]) -> Any:
    items = base.parent / "items.jsonl"
    items.write_text("\n".join(lines))
    options = ["--bundle", bundle, "--base", base, "--items", items, "--out", base.parent / "grown"]
    return CliRunner().invoke(build_app(COMMANDS), ["grow", *map(str, options)])


def test_an_event_that_was_unknown_counts_once_the_bundle_has_grown(base: Path, tiny_bundle: Path) -> None:
    state = base.parent / "state"
    with Personalizer.open(tiny_bundle, state) as personalizer:
        personalizer.record("tomorrow", 1.0)
        assert personalizer.status().unknown_events == 1
    told = {"id": "tomorrow", "title": "Tomorrow", "genres": ["Drama"]}
    done = grow(base, tiny_bundle, [json.dumps(told), '{"id": "the day after"}', ""])
    assert done.exit_code == 0, done.output
    assert "52 items of at most" in done.output
    with Personalizer.open(base.parent / "grown", state) as personalizer:
        assert (personalizer.status().events, personalizer.status().unknown_events) == (1, 0)
        assert len(personalizer.score(["tomorrow", "the day after"])) == 2


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (["{"], "line 1"),
        (['{"id": "a"}', '{"title": "b"}'], "line 2"),
        (['{"id": "a", "genres": "Drama"}'], "line 1"),
        (['{"id": "item-1"}'], "differ from each other"),
        ([], "vectors must have shape"),
    ],
)
def test_items_that_are_none_are_refused_by_line(base: Path, tiny_bundle: Path, lines: list[str], rule: str) -> None:
    done = grow(base, tiny_bundle, lines)
    assert done.exit_code == 2
    assert rule in done.output
    assert not (base.parent / "grown").exists()


def test_another_base_is_refused(tiny: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny.model)
    with torch.no_grad():
        other.item_embedding.weight[1] += 1
    save_base(tmp_path / "base.pt", other, tiny.items)
    done = grow(tmp_path / "base.pt", tiny_bundle, ['{"id": "a"}'])
    assert done.exit_code == 2
    assert "base must be" in done.output
