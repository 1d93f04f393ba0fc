import math

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import ModelConfig
from ownlet.shared.lora import applied, attach
from ownlet.shared.model import SASRec
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.step import clip_factors, dp_sgd_step, window_gradients

LENGTH, ITEMS = 7, 30


def setup(train_a=False):
    torch.manual_seed(0)
    content = torch.rand(ITEMS + 1, 5)
    content[0] = 0
    model = SASRec(ModelConfig(dim=16, num_layers=2, max_length=10), content).eval()
    model.item_embedding.weight.requires_grad_(False)[1:] = torch.randn(ITEMS, 16)
    spec = attach(
        model,
        target_modules=("query", "down"),
        rank=2,
        alpha=4.0,
        base_hash=hash_state(model.state_dict()),
        train_a=train_a,
    )
    vector = torch.from_numpy(initial_adapter(spec, 0)) + 0.1 * torch.randn(spec.size)
    history = torch.randint(1, ITEMS + 1, (3, LENGTH))
    target = torch.randint(1, ITEMS + 1, (3, LENGTH))
    valid = torch.ones(3, LENGTH)
    valid[1, 4:] = 0
    return model, spec, vector, history, target, valid


@pytest.mark.parametrize("train_a", [False, True])
def test_each_windows_gradient_is_what_autograd_gives_for_that_window_alone(train_a):
    model, spec, vector, history, target, valid = setup(train_a)
    losses, gradients = window_gradients(model, spec, vector, history, target, valid)
    for i in range(3):
        flat = vector.clone().requires_grad_()
        with applied(model, spec.split(flat)):
            loss = softmax_loss(model(history[i : i + 1]), target[i : i + 1], valid[i : i + 1]).sum()
        (alone,) = torch.autograd.grad(loss, flat)
        torch.testing.assert_close(losses[i], loss.detach())
        torch.testing.assert_close(gradients[i], alone[spec.trainable], rtol=1e-4, atol=1e-7)


def test_loss_is_cross_entropy_over_real_items():
    scores, target = torch.randn(2, 4, 9), torch.randint(1, 9, (2, 4))
    valid = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    expected = torch.nn.functional.cross_entropy(scores[..., 1:].flatten(0, 1), target.flatten() - 1, reduction="none")
    expected = expected.reshape(2, 4)
    torch.testing.assert_close(softmax_loss(scores, target, valid), torch.stack([expected[0].mean(), expected[1, 0]]))


def test_a_step_moves_against_the_clipped_sum_plus_noise():
    model, spec, vector, history, target, valid = setup()
    noise = torch.randn(spec.num_trainable)
    _, gradients = window_gradients(model, spec, vector, history, target, valid)
    clip = float(gradients.norm(dim=1).median())
    new, _, norms = dp_sgd_step(
        model, spec, vector, history, target, valid, noise, torch.tensor(clip), torch.tensor(0.5)
    )
    clipped = [g * min(1.0, clip / float(g.norm())) for g in gradients]
    torch.testing.assert_close(new[spec.trainable], vector[spec.trainable] - 0.5 * (sum(clipped) + noise))
    torch.testing.assert_close(new[: spec.trainable.start], vector[: spec.trainable.start], rtol=0, atol=0)
    torch.testing.assert_close(norms, gradients.norm(dim=1))


def test_an_empty_batch_still_adds_its_noise():
    model, spec, vector, history, target, valid = setup()
    noise = torch.randn(spec.num_trainable)
    new, losses, norms = dp_sgd_step(
        model, spec, vector, history, target, 0 * valid, noise, torch.tensor(1.0), torch.tensor(0.5)
    )
    torch.testing.assert_close(new[spec.trainable], vector[spec.trainable] - 0.5 * noise)
    assert not losses.any()
    assert not norms.any()


def test_the_base_is_bit_identical_after_a_step():
    model, spec, vector, history, target, valid = setup()
    before = hash_state(model.state_dict())
    window_gradients(model, spec, vector, history, target, valid)
    assert hash_state(model.state_dict()) == before == spec.base_hash


def test_clip_factors_bound_every_norm_also_at_the_limits():
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    factors, norms = clip_factors(gradients, 1.0)
    np.testing.assert_allclose(factors, [0.2, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(norms, [5.0, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(clip_factors(gradients, math.inf)[0], [1, 1, 1])


def test_later_events_do_not_change_earlier_scores():
    model, _, _, history, _, _ = setup()
    changed = history.clone()
    changed[:, 4:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(history)[:, :4], model(changed)[:, :4])


def test_last_scores_are_those_of_the_last_real_event():
    model, _, _, history, _, _ = setup()
    lengths = torch.tensor([7, 3, 1])
    padded = history * (torch.arange(LENGTH) < lengths[:, None])
    with torch.no_grad():
        every, last = model(padded), model.score_last(padded, lengths)
    torch.testing.assert_close(last, torch.stack([every[i, n - 1] for i, n in enumerate(lengths)]))
