"""The length of a step is chosen on public users, and never ends below the start."""

import numpy as np
import torch

from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.shared.window_mode import window_federation
from ownlet.simulations.evaluate import all_positions, mean_ndcg
from ownlet.simulations.line_search import LENGTHS, best_length, chosen_length, scaled


def world():
    torch.manual_seed(0)
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=8), torch.zeros(31, 4)).eval()
    with torch.no_grad():
        model.item_embedding.weight[1:].normal_(std=0.3)
    spec = attach_adapter(model, AdapterConfig(rank=4))
    rng = np.random.default_rng(0)
    return model, spec, initial_adapter(spec, 0), all_positions([rng.integers(1, 31, 8) for _ in range(20)])


def test_a_share_of_the_way_moves_only_what_is_trained():
    _, spec, start, _ = world()
    vector = start + 1.0
    half = scaled(spec, start, vector, 0.5)
    np.testing.assert_allclose(half[spec.trainable], start[spec.trainable] + 0.5)
    np.testing.assert_array_equal(half[: spec.size_a], vector[: spec.size_a])


def test_the_best_length_is_the_one_that_the_cases_like_best():
    model, spec, start, cases = world()
    vector = start.copy()
    vector[spec.trainable] = np.random.default_rng(1).normal(0, 0.5, spec.num_trainable)
    quality = {
        length: mean_ndcg(model, cases, spec=spec, vector=scaled(spec, start, vector, length)) for length in LENGTHS
    }
    found, length = best_length(model, spec, start, vector, cases)
    assert quality[length] == max(quality.values()) >= quality[0.0]
    np.testing.assert_array_equal(found, scaled(spec, start, vector, length))


def test_of_equals_the_shortest_wins():
    model, spec, start, cases = world()
    assert best_length(model, spec, start, start, cases)[1] == 0.0


def test_only_a_window_level_run_has_its_length_chosen():
    model, spec, start, cases = world()
    far = start.copy()
    far[spec.trainable] = np.random.default_rng(1).normal(0, 3.0, spec.num_trainable)
    window = chosen_length(window_federation(1.0), model, spec, start, far, cases)
    best = best_length(model, spec, start, far, cases)
    assert window[1] == best[1] != 1.0
    np.testing.assert_array_equal(window[0], best[0])
    kept, length = chosen_length(FederationConfig(), model, spec, start, far, cases)
    assert (length, kept is far) == (1.0, True)
