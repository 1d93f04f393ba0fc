"""The ranking head: its features from their definitions, its file, and what it does untrained."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.ranking import RankingConfig, RankingHead, load_ranking, popularity_of, save_ranking


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("events", [[4], [2, 9, 4]], ids=len)
def test_features_are_what_their_definitions_say(events: list[int]) -> None:
    rng = np.random.default_rng(0)
    items, hidden = (rng.normal(size=shape).astype(np.float32) for shape in ((12, 5), (1, 5)))
    items[0] = 0
    popularity = popularity_of(torch.arange(12))
    head = RankingHead(RankingConfig(decay=0.5), popularity, "base")
    history, candidates = torch.tensor([[*events, 0, 0]]), torch.tensor([[3, 7, 11]])
    got = head.features(torch.from_numpy(hidden), history, candidates, torch.from_numpy(items))[0].numpy()
    weights = [0.5 ** (len(events) - 1 - place) for place in range(len(events))]
    for row, candidate in zip(got, (3, 7, 11), strict=True):
        alike = [cosine(items[candidate], items[event]) for event in events]
        mean = sum(w * a for w, a in zip(weights, alike, strict=True)) / sum(weights)
        user = cosine(items[candidate], hidden[0])
        want = [items[candidate] @ hidden[0], popularity[candidate], user, alike[-1], max(alike), mean]
        np.testing.assert_allclose(row, want, rtol=1e-5)


def test_an_empty_history_is_like_nothing() -> None:
    head = RankingHead(RankingConfig(), popularity_of(torch.arange(12)), "base")
    features = head.features(
        torch.ones(1, 5), torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[1]]), torch.ones(12, 5)
    )
    assert features[0, 0, 3:].tolist() == [0.0, -1.0, 0.0]


def test_an_untrained_head_keeps_the_order_of_the_first_stage() -> None:
    head = RankingHead(RankingConfig(), popularity_of(torch.arange(12)), "base")
    features = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(features), features[..., 0])


def test_popularity_is_standardised_over_items_and_a_later_item_has_no_events() -> None:
    popularity = popularity_of(torch.tensor([99, 0, 1, 3]))
    logs = np.log([1, 2, 4])
    np.testing.assert_allclose(popularity[1:-1], (logs - logs.mean()) / logs.std(), rtol=1e-6)
    assert popularity[-1] == popularity[1]
    assert torch.isfinite(popularity_of(torch.tensor([0, 5, 5]))).all()  # items that are equally popular


def test_a_head_reads_back_as_it_was_written(tiny_head: RankingHead, tmp_path: Path) -> None:
    save_ranking(tmp_path / "ranking.safetensors", tiny_head)
    back = load_ranking(tmp_path / "ranking.safetensors", base_hash=tiny_head.base_hash)
    assert (back.config, back.training) == (tiny_head.config, False)
    features = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(back(features), tiny_head(features), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["missing", "truncated", "another format"])
def test_a_damaged_file_is_refused(tiny_head: RankingHead, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "ranking.safetensors"
    save_ranking(path, tiny_head)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content.replace(b"ownlet-ranking-1", b"ownlet-ranking-9"))
    with pytest.raises(BundleError, match="ranking head must"):
        load_ranking(path)


@pytest.mark.parametrize("wrong", [{"num_candidates": 0}, {"width": 0}, {"decay": 0.0}, {"decay": math.nan}])
def test_shapes_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RankingConfig(**wrong)
