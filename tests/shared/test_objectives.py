"""Losses against closed forms."""

import math

import torch

from ownlet.shared.objectives import sampled_softmax_loss, softmax_loss


def example(num_items=50, windows=3, length=4):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(windows, length, num_items + 1, generator=generator, dtype=torch.float64)
    target = torch.randint(1, num_items + 1, (windows, length), generator=generator)
    return scores, target, torch.ones(windows, length)


def test_every_other_item_as_a_negative_gives_the_full_softmax():
    scores, target, valid = example()
    target = (
        target[:, :1].expand(-1, 4).contiguous()
    )  # one target per window: the others are the same for all positions
    others = torch.stack([torch.tensor([i for i in range(1, 51) if i != t]) for t in target[:, 0].tolist()])
    torch.testing.assert_close(
        sampled_softmax_loss(scores, target, valid, others), softmax_loss(scores, target, valid).double()
    )


def test_one_negative_is_a_weighted_choice_between_two():
    scores = torch.tensor([[[9.0, 1.0, 0.5, -2.0]]])
    loss = sampled_softmax_loss(scores, torch.tensor([[1]]), torch.ones(1, 1), torch.tensor([[3]]))
    expected = -math.log(math.exp(1.0) / (math.exp(1.0) + 2 * math.exp(-2.0)))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_a_negative_that_is_the_target_is_left_out():
    scores = torch.randn(1, 1, 5)
    loss = sampled_softmax_loss(scores, torch.tensor([[2]]), torch.ones(1, 1), torch.tensor([[2, 2]]))
    torch.testing.assert_close(loss, torch.zeros(1))


def test_the_partition_sum_is_estimated_without_bias():
    scores, target, valid = example(windows=1, length=1)
    scores, target, valid = (part.expand(20_000, *part.shape[1:]) for part in (scores, target, valid))
    negatives = torch.randint(1, 51, (20_000, 30), generator=torch.Generator().manual_seed(1))
    sums = (sampled_softmax_loss(scores, target, valid, negatives) + scores[:, 0].gather(1, target)[:, 0]).exp()
    full = float((softmax_loss(scores[:1], target[:1], valid[:1]) + scores[0, 0, target[0, 0]]).exp())
    assert abs(float(sums.mean()) - full) < 5 * float(sums.std()) / math.sqrt(20_000) + 0.02 * full


def test_a_window_without_a_target_costs_nothing():
    scores, target, valid = example()
    assert not sampled_softmax_loss(scores, target, valid * 0, torch.ones(3, 2, dtype=torch.int64)).any()
