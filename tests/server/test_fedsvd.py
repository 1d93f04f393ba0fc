"""FedSVD keeps the product, makes A's rows orthonormal, and from orthonormal rows is a rotation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.server.fedsvd import turn, turn_a
from ownlet.server.optimizer import OptimizerState, server_step
from ownlet.shared.adapter import AdapterSpec, LayerShape, initial_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.server_config import ServerOptimizer

LAYERS = tuple(LayerShape(name=name, in_features=7, out_features=n) for name, n in (("one", 5), ("two", 9)))
SPEC = AdapterSpec(layers=LAYERS, rank=3, alpha=6.0, base_hash="h")


def products(vector):
    return {name: (b.double() @ a.double()).numpy() for name, (a, b) in SPEC.split(torch.from_numpy(vector)).items()}


def some_vector(seed=0):
    return np.random.default_rng(seed).normal(size=SPEC.size).astype(np.float32)


def test_the_product_stays_and_rows_become_orthonormal_in_falling_order():
    vector = some_vector()
    turned, _ = turn_a(SPEC, vector, np.zeros(SPEC.num_trainable))
    for name, (a, b) in SPEC.split(torch.from_numpy(turned)).items():
        np.testing.assert_allclose((a @ a.T).numpy(), np.eye(3), atol=1e-5)
        weights = b.norm(dim=0)
        assert (weights[:-1] >= weights[1:]).all()
        np.testing.assert_allclose(products(turned)[name], products(vector)[name], atol=1e-4)
        singular = np.linalg.svd(products(vector)[name], compute_uv=False)[:3]
        np.testing.assert_allclose(weights.numpy(), singular, rtol=1e-4)


def test_momentum_goes_on_in_the_same_direction():
    vector, momentum = some_vector(), np.random.default_rng(1).normal(size=SPEC.num_trainable)
    turned, moved = turn_a(SPEC, vector, momentum)
    ahead, turned_ahead = vector.copy(), turned.copy()
    ahead[SPEC.trainable] += momentum.astype(np.float32)
    turned_ahead[SPEC.trainable] += moved.astype(np.float32)
    for name, product in products(ahead).items():
        np.testing.assert_allclose(products(turned_ahead)[name], product, atol=1e-4)


def test_a_layer_whose_b_is_zero_keeps_its_a_and_one_of_low_rank_stays_finite():
    vector = some_vector()
    vector[SPEC.trainable] = 0.0
    same, _ = turn_a(SPEC, vector, np.zeros(SPEC.num_trainable))
    np.testing.assert_array_equal(same, vector)
    vector[SPEC.size_a] = 1.0  # one entry: rank 1
    turned, _ = turn_a(SPEC, vector, np.zeros(SPEC.num_trainable))
    np.testing.assert_allclose(products(turned)["one"], products(vector)["one"], atol=1e-5)
    a, _ = SPEC.split(torch.from_numpy(turned))["one"]
    np.testing.assert_allclose((a @ a.T).numpy(), np.eye(3), atol=1e-5)


def test_from_orthonormal_rows_it_is_a_rotation_that_training_does_not_notice():
    """Gradient steps on B for a loss of the product B A, with momentum on the server: with and without the turn."""
    config, optimizer = FederationConfig(unit="none", server_momentum=0.9, noise_multiplier=0.0), ServerOptimizer()
    goal = {layer.name: np.random.default_rng(2).normal(size=(layer.out_features, 7)) for layer in LAYERS}

    def run(turns):
        vector, state = initial_adapter(SPEC, 0), OptimizerState.start(optimizer, SPEC.num_trainable)
        for _ in range(6):
            pieces = SPEC.split(torch.from_numpy(vector))
            steps = [-0.1 * (b.numpy() @ a.numpy() - goal[name]) @ a.numpy().T for name, (a, b) in pieces.items()]
            average = np.concatenate([step.ravel() for step in steps])
            vector, state = server_step(SPEC, vector, state, average, config, 1)
            if turns:
                vector, state = turn(SPEC, vector, state, optimizer)
        return vector

    frozen, turned = run(False), run(True)
    assert np.abs(frozen - turned).max() > 0.1  # other coordinates
    for name, product in products(frozen).items():
        np.testing.assert_allclose(products(turned)[name], product, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{"train_a": True}, {"form": "bottleneck"}])
def test_it_is_refused_where_a_is_trained_or_the_pair_is_no_product(change):
    spec = replace(SPEC, **change)
    with pytest.raises(ConfigError, match="LoRA whose A is frozen"):
        turn_a(spec, some_vector(), np.zeros(spec.num_trainable))


def test_squares_of_single_coordinates_do_not_survive_a_turn():
    optimizer = ServerOptimizer(name="fedadam", tau=0.5)
    used = OptimizerState(momentum=np.ones(SPEC.num_trainable), squares=np.full(SPEC.num_trainable, 7.0))
    turned, state = turn(SPEC, some_vector(), used, optimizer)
    np.testing.assert_array_equal(turned, turn_a(SPEC, some_vector(), used.momentum)[0])
    assert not state.momentum.any()
    np.testing.assert_array_equal(state.squares, 0.25)
