"""Losses against closed forms and an independent reading of the papers' formulas, gradients against autograd."""

import math

import numpy as np
import pytest
import torch

from ownlet.shared.candidates import CandidateSampler
from ownlet.shared.objective_config import ObjectiveConfig
from ownlet.shared.objectives import (
    LAMBDA_MU,
    LAMBDA_TOP,
    LISTNET_GRADE,
    candidate_gradients,
    candidate_losses,
    sampled_loss,
    softmax_loss,
    training_loss,
)

OBJECTIVES = ("softmax", "bpr", "bce", "listnet", "lambda")


def example(num_items=50, windows=3, length=4):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(windows, length, num_items + 1, generator=generator, dtype=torch.float64)
    target = torch.randint(1, num_items + 1, (windows, length), generator=generator)
    return scores, target, torch.ones(windows, length)


def candidates_of(items, num_items=50, frequencies=None, **settings):
    items = np.asarray(items, np.int64)
    config = ObjectiveConfig(**{"num_negatives": items.shape[1], **settings})
    return CandidateSampler(config, num_items, frequencies).candidates(items)


def by_hand(objective, s, others, corrections):
    """The loss at one position as the papers write it, one pair at a time, in Python's own numbers."""
    if objective == "softmax":
        return -math.log(
            math.exp(s) / (math.exp(s) + sum(math.exp(o + c) for o, c in zip(others, corrections, strict=True)))
        )
    if objective == "bpr":
        return sum(-math.log(1 / (1 + math.exp(o - s))) for o in others) / max(1, len(others))
    if objective == "bce":
        right, wrong = -math.log(1 / (1 + math.exp(-s))), [-math.log(1 - 1 / (1 + math.exp(-o))) for o in others]
        return (right + sum(wrong)) / (1 + len(others))
    if objective == "listnet":
        relevance = [LISTNET_GRADE] + [0.0] * len(others)
        total, listed = sum(map(math.exp, relevance)), [s, *others]
        normaliser = sum(map(math.exp, listed))
        return -sum(
            math.exp(r) / total * math.log(math.exp(x) / normaliser) for r, x in zip(relevance, listed, strict=True)
        )
    order = sorted(range(len(others) + 1), key=lambda at: -[s, *others][at])
    rank = {at: place + 1 for place, at in enumerate(order)}
    loss = 0.0
    for at, o in enumerate(others, start=1):
        i, j = rank[0], rank[at]
        if min(i, j) > LAMBDA_TOP:
            continue
        d = abs(i - j)
        weight = abs(1 / math.log2(1 + d) - 1 / math.log2(2 + d))
        weight += LAMBDA_MU * abs(1 / math.log2(1 + i) - 1 / math.log2(1 + j))
        loss += weight * math.log2(1 + math.exp(o - s))
    return loss


@pytest.mark.parametrize("number", [1, 5, 25])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_is_its_formula_at_every_position(objective, number):
    scores, target, valid = example()
    valid[0, 2:], valid[2] = 0, 0
    items = torch.stack([torch.randperm(50, generator=torch.Generator().manual_seed(w))[:number] + 1 for w in range(3)])
    target[1, 1] = items[1, 0]  # a negative that is the target
    candidates = candidates_of(items.numpy(), objective=objective)
    got = sampled_loss(scores, target, valid, candidates)
    for window in range(3):
        losses = []
        for position in np.flatnonzero(valid[window].numpy()):
            row, right = scores[window, position].tolist(), int(target[window, position])
            others = [row[int(item)] for item in items[window] if int(item) != right]
            losses.append(by_hand(objective, row[right], others, [math.log(50 / number)] * len(others)))
        assert float(got[window]) == pytest.approx(sum(losses) / len(losses) if losses else 0.0, rel=1e-6)


@pytest.mark.parametrize("settings", [{}, {"negatives": "hard", "num_negatives": 3, "hard_pool": 4}])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_closed_gradients_are_those_of_autograd(objective, settings):
    calibration = {"calibration": 0.75} if objective == "bce" else {}
    scores, target, _ = example()
    items = np.random.default_rng(0).integers(1, 51, (3, 12))
    candidates = candidates_of(items, objective=objective, **settings, **calibration)
    positive = scores.gather(-1, target.unsqueeze(-1)).requires_grad_()
    negative = scores.gather(-1, candidates.items.unsqueeze(1).expand(-1, 4, -1)).detach().requires_grad_()
    kept = candidates.kept(target, negative.detach())
    want = torch.autograd.grad(candidate_losses(candidates, positive, negative, kept).sum(), [positive, negative])
    got = candidate_gradients(candidates, positive.detach(), negative.detach(), kept)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    assert all(bool(part.abs().max() > 1e-3) for part in got)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_target_that_is_never_contested_has_a_finite_loss_and_gradient(objective):
    scores, target, valid = example(windows=1)
    candidates = candidates_of(target[:, :1].numpy(), objective=objective)
    scores.requires_grad_()
    loss = sampled_loss(scores, target[:, :1].expand(-1, 4), valid, candidates)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(gradient).all())
    if objective != "bce":  # which asks for a high score of its own
        assert float(loss.detach()) == 0
        assert not gradient.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_scores_push_the_target_up_and_every_negative_down(objective):
    target, items = torch.tensor([[4]]), [[1, 2, 3, 50, 50]]
    candidates = candidates_of(items, objective=objective)
    zeros = torch.zeros(1, 1, 5)
    to_positive, to_negative = candidate_gradients(candidates, zeros[..., :1], zeros, candidates.kept(target, zeros))
    assert float(to_positive) < 0
    assert bool((to_negative > 0).all())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_window_without_a_target_costs_nothing(objective):
    scores, target, valid = example()
    candidates = candidates_of(np.ones((3, 2), np.int64), objective=objective)
    scores.requires_grad_()
    loss = training_loss(scores, target, valid * 0, candidates)
    assert not loss.any()
    assert not torch.autograd.grad(loss.sum(), scores)[0].any()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_enormous_scores_stay_finite(objective):
    scores, target, valid = example()
    candidates = candidates_of(np.random.default_rng(0).integers(1, 51, (3, 9)), objective=objective)
    scores = (1e4 * scores.float()).requires_grad_()
    loss = sampled_loss(scores, target, valid, candidates)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(gradient).all())


def test_one_uniform_negative_stands_for_the_whole_catalogue():
    scores = torch.tensor([[[9.0, 1.0, 0.5, -2.0]]])
    loss = sampled_loss(scores, torch.tensor([[1]]), torch.ones(1, 1), candidates_of([[3]], num_items=3))
    expected = -math.log(math.exp(1.0) / (math.exp(1.0) + 3 * math.exp(-2.0)))
    torch.testing.assert_close(loss, torch.tensor([expected]))


@pytest.mark.parametrize("negatives", ["uniform", "popularity"])
def test_the_partition_sum_is_estimated_without_bias(negatives):
    """However items are drawn, with the logQ correction E[sum] is the sum over all items but the target."""
    scores, target, valid = example(windows=1, length=1)
    frequencies = np.random.default_rng(0).integers(0, 100, 51)
    config = ObjectiveConfig(num_negatives=30, negatives=negatives)
    sampler = CandidateSampler(config, 50, frequencies)
    rng, count = np.random.default_rng(1), 20_000
    weights = None if negatives == "uniform" else (frequencies[1:] + 1) / (frequencies[1:] + 1).sum()
    drawn = rng.choice(np.arange(1, 51), (count, 30), p=weights)
    scores, target, valid = (part.expand(count, *part.shape[1:]) for part in (scores, target, valid))
    losses = sampled_loss(scores, target, valid, sampler.candidates(drawn))
    sums = (losses + scores[:, 0].gather(1, target)[:, 0]).exp()
    full = float((softmax_loss(scores[:1], target[:1], valid[:1]) + scores[0, 0, target[0, 0]]).exp())
    assert abs(float(sums.mean()) - full) < 5 * float(sums.std()) / math.sqrt(count)


def test_hard_negatives_are_those_that_score_highest_at_the_position_and_never_the_target():
    scores = torch.tensor([[[0.0, 5.0, 4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]])
    candidates = candidates_of([[1, 2, 3, 5]], num_items=5, negatives="hard", num_negatives=2, hard_pool=2)
    target = torch.tensor([[1, 1]])
    negative = scores.gather(-1, candidates.items.unsqueeze(1).expand(-1, 2, -1))
    torch.testing.assert_close(
        candidates.kept(target, negative), torch.tensor([[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]])
    )


def test_calibration_lowers_the_targets_part_down_to_the_share_that_is_drawn():
    scores, target, valid = example(num_items=21, windows=1, length=1)
    items = [[1 + at for at in range(6) if 1 + at != int(target)][:5]]
    losses = [
        float(sampled_loss(scores, target, valid, candidates_of(items, 21, objective="bce", calibration=t)))
        for t in (0.0, 1.0)
    ]
    s = float(scores[0, 0, target[0, 0]])
    assert losses[0] - losses[1] == pytest.approx((1 - 5 / 20) * math.log(1 + math.exp(-s)) / 6, rel=1e-6)


def test_bpr_with_one_negative_and_bce_with_one_negative_are_rendles_and_sasrecs():
    scores = torch.tensor([[[0.0, 2.0, -1.0]]])
    rows = (scores, torch.tensor([[1]]), torch.ones(1, 1))
    bpr = sampled_loss(*rows, candidates_of([[2]], 2, objective="bpr"))
    bce = sampled_loss(*rows, candidates_of([[2]], 2, objective="bce"))
    assert float(bpr) == pytest.approx(math.log(1 + math.exp(-3.0)))
    assert 2 * float(bce) == pytest.approx(math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(-1.0)))
