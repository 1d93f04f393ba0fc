"""Recommending in two stages: the candidates of the first, ordered by the second, alike in every engine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ownlet.device import Personalizer
from ownlet.device.engines import open_engine
from ownlet.device.stages import rank_candidates
from ownlet.device.train import LocalEngine
from ownlet.shared.lora import applied
from ownlet.shared.manifest import read_manifest
from ownlet.shared.ranking import RankingHead

HISTORY = np.array([3, 1, 4, 1, 5, 9])


@pytest.fixture(scope="module", params=["executorch", "opacus"])
def engine(request: pytest.FixtureRequest, tiny: Any, ranked_bundle: Path) -> LocalEngine:
    return open_engine(request.param, ranked_bundle, read_manifest(ranked_bundle), tiny.spec)


def two_stages(tiny: Any, head: RankingHead, allowed: list[int]) -> tuple[list[int], list[float]]:
    """Recommend in eager PyTorch, step by step: the 12 best of the allowed items, then the head's order of these."""
    row = torch.zeros(1, 12, dtype=torch.int64)
    row[0, : len(HISTORY)] = torch.from_numpy(HISTORY)
    length = torch.tensor([len(HISTORY)])
    with torch.no_grad(), applied(tiny.model, tiny.spec.split(torch.from_numpy(tiny.vector))):
        scores = tiny.model.score_last(row, length)[0]
        candidates = sorted(allowed, key=lambda item: -float(scores[item]))[:12]
        ranked = head.rank(tiny.model, torch.tensor([candidates]), row, length)[0] if candidates else torch.zeros(0)
    pairs = sorted(zip(candidates, ranked.tolist(), strict=True), key=lambda pair: -pair[1])
    return [item for item, _ in pairs], [score for _, score in pairs]


@pytest.mark.parametrize(
    "allowed",
    [[*range(1, 51)], [i for i in range(1, 51) if i not in HISTORY], [2, 8, 17, 40], [50], []],
    ids=["all", "unseen", "fewer than the head takes", "one", "none"],
)
def test_every_engine_orders_the_candidates_as_the_head_does(
    tiny: Any, tiny_head: RankingHead, engine: LocalEngine, allowed: list[int]
) -> None:
    barred = np.ones(51, np.bool_)
    barred[allowed] = False
    items, scores = engine.recommend(tiny.vector, HISTORY, barred)
    want_items, want_scores = two_stages(tiny, tiny_head, allowed)
    assert items.tolist() == want_items
    np.testing.assert_allclose(scores, want_scores, rtol=1e-4, atol=1e-4)


def test_the_second_stage_changes_the_order(tiny: Any, engine: LocalEngine) -> None:
    items, _ = engine.recommend(tiny.vector, HISTORY, np.zeros(51, np.bool_))
    first = np.argsort(-engine.score(tiny.vector, HISTORY)[1:], kind="stable")[:12] + 1
    assert set(items) == set(first)
    assert items.tolist() != first.tolist()


def test_a_device_recommends_in_two_stages_also_among_few_candidates(
    tiny: Any, tiny_head: RankingHead, ranked_bundle: Path, tmp_path: Path
) -> None:
    with Personalizer.open(ranked_bundle, tmp_path / "state") as personalizer:
        for second, number in enumerate(HISTORY):
            personalizer.record(f"item-{number}", timestamp=float(second))
        unseen = [item for item in range(1, 51) if item not in HISTORY]
        want, scores = two_stages(tiny, tiny_head, unseen)
        found = personalizer.recommend(5)
        assert [one.item for one in found] == [f"item-{item}" for item in want[:5]]
        np.testing.assert_allclose([one.score for one in found], scores[:5], rtol=1e-4, atol=1e-4)
        few = personalizer.recommend(12, candidates=["item-8", "item-2", "item-3"])  # item-3 has been seen
        assert [one.item for one in few] == [f"item-{item}" for item in two_stages(tiny, tiny_head, [2, 8])[0]]
        assert personalizer.recommend(5, candidates=["item-3"]) == []


def test_of_equal_scores_the_first_stage_decides() -> None:
    items, scores = rank_candidates(np.array([5, 2, 9]), 4, lambda candidates: np.zeros(candidates.shape, np.float32))
    assert (items.tolist(), scores.tolist()) == ([5, 2, 9], [0, 0, 0])


def test_candidates_behind_the_last_are_left_out_and_padding_is_never_recommended() -> None:
    asked = []

    def rank(candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        asked.append(candidates.tolist())
        return np.arange(3, dtype=np.float32)[None]

    assert rank_candidates(np.array([5, 2, 9, 7]), 3, rank)[0].tolist() == [9, 2, 5]
    assert rank_candidates(np.array([5, 2]), 3, rank)[0].tolist() == [2, 5]
    assert asked == [[[5, 2, 9]], [[5, 2, 0]]]
