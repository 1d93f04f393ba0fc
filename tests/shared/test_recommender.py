"""The protocol: what a foreign module must offer, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ownlet.shared.adapter import AdapterSpec, hash_state, initial_adapter
from ownlet.shared.errors import ConfigError, PrivacyError
from ownlet.shared.lora import attach
from ownlet.shared.model import SASRec
from ownlet.shared.probe import check_adapter, check_recommender
from ownlet.shared.recommender import ScoredModule, module_of
from ownlet.simulations.examples.gru import GRURecommender

ITEMS, LENGTH, DIM = 20, 9, 8


class Bag(nn.Module):
    """Item vectors added up so far, through two linear layers; ``between`` is what a test puts in the middle."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS + 1, DIM)
        self.first, self.last = nn.Linear(DIM, DIM), nn.Linear(DIM, ITEMS + 1)
        self.between = between or nn.Identity()

    def forward(self, history: Tensor) -> Tensor:
        bag = self.items(history).cumsum(1)  # (batch, length, DIM)
        scores: Tensor = self.last(self.between(torch.tanh(self.first(bag))))
        return scores


class OverBatch(nn.Module):
    """Takes off the mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class OverTime(nn.Module):
    """Takes off the mean over all positions, later ones too."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class AlwaysDropout(nn.Module):
    """Dropout that does not know of eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class ChannelsFirst(nn.Module):
    """Batch normalisation over the last axis of (batch, length, d)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(DIM)

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.norm(x.mT).mT
        return normal


class TimeFirst(nn.Module):
    """A bag whose first layer reads (length, batch, d), as many recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = Bag()

    def forward(self, history: Tensor) -> Tensor:
        x = self.bag.items(history).cumsum(1).transpose(0, 1)  # (length, batch, d)
        scores: Tensor = self.bag.last(torch.tanh(self.bag.first(x)).transpose(0, 1))
        return scores


class Bypassed(Bag):
    """Takes a layer's weight and never calls the layer, as fused layers do."""

    def forward(self, history: Tensor) -> Tensor:
        bag = self.items(history).cumsum(1)
        hidden = torch.tanh(nn.functional.linear(bag, self.first.weight, self.first.bias))
        scores: Tensor = self.last(hidden)
        return scores


class BypassedWithoutGradients(Bag):
    """Calls its layer only where gradients are recorded, as ``nn.TransformerEncoderLayer`` does."""

    def forward(self, history: Tensor) -> Tensor:
        return super().forward(history) if torch.is_grad_enabled() else Bypassed.forward(self, history)  # type: ignore[arg-type]


def scored(module: nn.Module) -> ScoredModule:
    return ScoredModule(module, lambda m, history: m(history), num_items=ITEMS, max_length=LENGTH).eval()


def adapted(model: nn.Module, *targets: str) -> AdapterSpec:
    return attach(model, target_modules=targets, rank=2, alpha=4.0, base_hash=hash_state(model.state_dict()))


def test_a_module_with_a_scoring_function_is_a_recommender() -> None:
    model = scored(Bag())
    check_recommender(model)
    history, lengths = torch.tensor([[3, 4, 5], [6, 0, 0]]), torch.tensor([3, 1])
    scores = model(history)
    torch.testing.assert_close(scores, model.module(history))
    torch.testing.assert_close(model.score_last(history, lengths), torch.stack([scores[0, 2], scores[1, 0]]))
    spec = adapted(model, "first")
    assert [layer.name for layer in spec.layers] == ["module.first"]
    check_adapter(model, spec)


def test_the_scoring_function_uses_the_copy_that_it_is_given() -> None:
    model = scored(Bag())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.module.last.bias.add_(1.0)  # type: ignore[operator, union-attr]
    history = torch.ones(1, 3, dtype=torch.int64)
    torch.testing.assert_close(other(history), model(history) + 1)


def test_sasrec_and_the_gru_pass_every_check(tiny: SASRec) -> None:
    check_recommender(tiny.model)  # type: ignore[attr-defined]
    check_adapter(tiny.model, tiny.spec)  # type: ignore[attr-defined]
    model = GRURecommender(ITEMS, LENGTH, DIM).eval()
    check_recommender(model)
    check_adapter(model, adapted(model, "gates_of_input", "gates_of_state"))


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (ChannelsFirst(), "batch normalisation, got layer 'module.between.norm'"),
        (nn.InstanceNorm1d(LENGTH, track_running_stats=True), "must not track running statistics"),
        (OverBatch(), "must not depend on the rest of its batch"),
        (AlwaysDropout(), "must not depend on chance"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_differential_privacy_cannot_cover_is_refused(between: nn.Module, reason: str) -> None:
    with pytest.raises(PrivacyError, match=reason):
        check_recommender(scored(Bag(between)))


def test_a_model_or_a_part_of_it_in_training_mode_is_refused() -> None:
    model = scored(Bag(nn.Dropout(0.1)))
    check_recommender(model)
    model.module.between.train()  # type: ignore[union-attr]
    with pytest.raises(PrivacyError, match=r"eval mode.*'module\.between'"):
        check_recommender(model)


def test_scores_that_see_later_events_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not depend on later events"):
        check_recommender(scored(Bag(OverTime())))


def test_scores_of_another_shape_or_not_finite_are_refused() -> None:
    model = ScoredModule(Bag(), lambda m, history: m(history), num_items=ITEMS + 1, max_length=LENGTH).eval()
    with pytest.raises(ConfigError, match=r"must be float32 of shape \(3, 5, 22\)"):
        check_recommender(model)
    with pytest.raises(ConfigError, match="must be finite"):
        check_recommender(
            ScoredModule(Bag(), lambda m, h: m(h) / (h > 0).unsqueeze(2), num_items=ITEMS, max_length=LENGTH).eval()
        )


def test_a_score_last_that_is_not_the_last_score_is_refused() -> None:
    class First(ScoredModule):
        def score_last(self, history: Tensor, lengths: Tensor) -> Tensor:
            first: Tensor = self(history)[:, 0]
            return first

    with pytest.raises(ConfigError, match="score_last must be"):
        check_recommender(First(Bag(), lambda m, h: m(h), num_items=ITEMS, max_length=LENGTH).eval())


@pytest.mark.parametrize(
    ("module", "target", "reason"),
    [
        (TimeFirst(), "first", "batch first"),
        (Bypassed(), "first", "adapted layers must be called, got none"),
        (BypassedWithoutGradients(), "first", "without gradients too"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_adapter_that_would_miss_its_layer_is_refused(module: nn.Module, target: str, reason: str) -> None:
    model = scored(module)
    check_recommender(model)
    with pytest.raises(ConfigError, match=reason):
        check_adapter(model, adapted(model, target))


def test_a_layer_that_is_bypassed_beside_one_that_is_called_is_named() -> None:
    model = scored(Bypassed())
    with pytest.raises(ConfigError, match=r"unused=\['module\.first'\]"):
        check_adapter(model, adapted(model, "first", "last"))


def test_an_attention_layer_of_pytorch_is_refused_because_it_takes_its_own_layers_weights() -> None:
    class Attention(Bag):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(DIM, 2, batch_first=True)

        def forward(self, history: Tensor) -> Tensor:
            x, length = self.items(history), history.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool).triu(1)
            mixed, _ = self.attention(x, x, x, attn_mask=causal, need_weights=False)
            scores: Tensor = self.last(mixed)
            return scores

    model = scored(Attention())
    check_recommender(model)
    with pytest.raises(ConfigError, match=r"unused=\['module\.attention\.out_proj'\]"):
        check_adapter(model, adapted(model, "out_proj", "last"))


def test_a_gru_of_pytorch_has_no_linear_layer_to_adapt() -> None:
    with pytest.raises(ConfigError, match=r"must name modules that can carry the form lora, .*the model has \[\]"):
        adapted(nn.GRU(DIM, DIM), "weight_ih_l0")


def test_only_a_module_is_a_model() -> None:
    class NoModule:
        training, num_items, max_length = False, ITEMS, LENGTH

        def __call__(self, history: Tensor) -> Tensor:
            return history

        def score_last(self, history: Tensor, lengths: Tensor) -> Tensor:
            return history

    with pytest.raises(ConfigError, match=r"must be a torch\.nn\.Module, got model='NoModule'"):
        module_of(NoModule())


def test_the_initial_adapter_of_a_foreign_model_changes_nothing() -> None:
    model = scored(Bag())
    spec, history = adapted(model, "first", "last"), torch.tensor([[1, 2, 3]])
    from ownlet.shared.lora import applied

    before = model(history)
    with applied(model, spec.split(torch.from_numpy(initial_adapter(spec, 0)))):
        torch.testing.assert_close(model(history), before, rtol=0, atol=0)
