"""Training and measuring a ranking head, on bases whose right order is known."""

from typing import Any

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state
from ownlet.shared.config import ModelConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.metrics import ndcg
from ownlet.shared.model import SASRec
from ownlet.shared.ranking import RankingConfig, RankingHead, popularity_of
from ownlet.simulations.evaluate import Cases, model_ranks
from ownlet.simulations.ranking import TrainRankingConfig, count_items, retrieve, train_ranking, two_stage_ranks

COUNTS = torch.arange(51)


def cases_of(tiny: Any, count: int, seed: int = 0) -> Cases:
    rng = np.random.default_rng(seed)
    histories = tuple(rng.permutation(np.arange(1, 51))[: rng.integers(1, 15)] for _ in range(count))
    targets = [rng.choice(np.setdiff1d(np.arange(1, 51), history)) for history in histories]
    return Cases(histories=histories, targets=np.array(targets))


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_first_stage_finds_the_best_unseen_items_and_ranks_as_the_model_does(tiny: Any, with_adapter: bool) -> None:
    cases = cases_of(tiny, 20)
    spec, vector = (tiny.spec, tiny.vector) if with_adapter else (None, None)
    found = retrieve(tiny.model, cases, 40, spec=spec, vector=vector, batch_size=7)
    np.testing.assert_array_equal(found.ranks, model_ranks(tiny.model, cases, spec=spec, vectors=vector))
    for row, history in enumerate(cases.histories):
        real = found.candidates[row][found.candidates[row] > 0].tolist()
        assert len(real) == min(40, 50 - len(history))
        assert not set(real) & set(history.tolist())
        if found.ranks[row] <= len(real):
            assert real[found.ranks[row] - 1] == cases.targets[row]


def test_a_target_that_is_no_candidate_keeps_its_rank_and_others_take_the_heads(
    tiny: Any, tiny_head: RankingHead
) -> None:
    cases = cases_of(tiny, 30)
    found = retrieve(tiny.model, cases, 12)
    got = two_stage_ranks(tiny.model, tiny_head, found, batch_size=8)
    assert (found.ranks > 12).any()
    assert (found.ranks <= 12).any()
    for row in range(len(cases)):
        candidates = found.candidates[row].tolist()
        if cases.targets[row] not in candidates:
            assert got[row] == found.ranks[row] > 12
            continue
        history = torch.zeros(1, 12, dtype=torch.int64)
        kept = torch.from_numpy(cases.histories[row][-12:])
        history[0, : len(kept)] = kept
        with torch.no_grad():
            scores = tiny_head.rank(tiny.model, torch.tensor([candidates]), history, torch.tensor([len(kept)]))[0]
        assert got[row] == 1 + int((scores > scores[candidates.index(cases.targets[row])]).sum())


def test_an_untrained_head_changes_no_rank(tiny: Any) -> None:
    head = RankingHead(RankingConfig(num_candidates=12), popularity_of(COUNTS), "base").eval()
    found = retrieve(tiny.model, cases_of(tiny, 30), 12)
    np.testing.assert_array_equal(two_stage_ranks(tiny.model, head, found), found.ranks)


def followers(count: int, seed: int) -> Cases:
    """Cases of ten events in which the next item is the twin of the last one: 1 and 2 are twins, 3 and 4, and so on."""
    rng = np.random.default_rng(seed)
    histories = tuple(rng.permutation(np.arange(1, 41, 2))[:10] for _ in range(count))
    return Cases(histories=histories, targets=np.array([history[-1] + 1 for history in histories]))


def twin_base() -> SASRec:
    """A base that says the same after every history, but whose item vectors make twins alike."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=12), torch.zeros(41, 4)).eval()
        with torch.no_grad():
            twins = torch.randn(20, 16).repeat_interleave(2, dim=0)
            model.item_embedding.weight[1:] = twins + 0.1 * torch.randn(40, 16)
            model.final_norm.weight.zero_()
            model.final_norm.bias.normal_()
    return model


def test_a_head_learns_what_the_first_stage_does_not_see_and_leaves_the_base_alone() -> None:
    model, test = twin_base(), followers(100, seed=3)
    before = hash_state(model.state_dict())
    epochs = []
    head = train_ranking(
        model,
        followers(150, seed=1),
        followers(60, seed=2),
        torch.ones(41),
        RankingConfig(num_candidates=30),
        TrainRankingConfig(max_epochs=20, learning_rate=0.05),
        on_epoch=epochs.append,
    )
    assert hash_state(model.state_dict()) == head.base_hash == before
    assert epochs[0].number == 0
    found = retrieve(model, test, 30)
    in_reach = found.ranks <= 30
    ranked = two_stage_ranks(model, head, found)[in_reach]
    assert float(ndcg(found.ranks[in_reach], 10).mean()) < 0.6
    assert float(ndcg(ranked, 10).mean()) > 0.95


def test_a_head_that_never_helps_is_returned_as_it_began(tiny: Any) -> None:
    """Targets that are noise: where no epoch beats the order of the first stage, that order is what is returned."""
    shape = RankingConfig(num_candidates=12)
    recipe = TrainRankingConfig(max_epochs=3, learning_rate=1e-9)  # too small to move anything past a rank
    head = train_ranking(tiny.model, cases_of(tiny, 40), cases_of(tiny, 40, seed=1), COUNTS, shape, recipe)
    assert float(head.out.weight.abs().max()) == 0.0


def test_training_twice_gives_the_same_head(tiny: Any) -> None:
    shape, recipe = RankingConfig(num_candidates=12), TrainRankingConfig(max_epochs=3, num_negatives=5)
    cases, judged = cases_of(tiny, 40), cases_of(tiny, 40, seed=1)
    first, second = (train_ranking(tiny.model, cases, judged, COUNTS, shape, recipe).state_dict() for _ in range(2))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_cases_whose_target_is_never_found_are_an_error(tiny: Any) -> None:
    cases = cases_of(tiny, 20)
    last = retrieve(tiny.model, cases, 50).candidates
    worst = np.array([[item for item in row.tolist() if item][-1] for row in last])
    hopeless = Cases(histories=cases.histories, targets=worst)
    with pytest.raises(DataError, match="a ranking head needs cases, got 0 to train on and 20 to judge by"):
        train_ranking(tiny.model, hopeless, cases, COUNTS, RankingConfig(num_candidates=5), TrainRankingConfig())


def test_items_are_counted_among_all_histories() -> None:
    assert count_items([np.array([1, 3]), np.array([3])], 4).tolist() == [0, 1, 0, 2, 0]


@pytest.mark.parametrize(
    "wrong", [{"max_epochs": 0}, {"patience": 0}, {"num_negatives": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}]
)
def test_recipes_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainRankingConfig(**wrong)
