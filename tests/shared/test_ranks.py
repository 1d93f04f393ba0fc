"""Smaller ranks inside a larger one: the places are those of the matrices, the weights those of counting users."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import AdapterSpec, LayerShape
from ownlet.shared.errors import ConfigError
from ownlet.shared.ranks import check_ranks, low_rank_spec, places_of, rank_of_node, rank_weights, users_of_rank

LAYERS = tuple(LayerShape(name=name, in_features=5, out_features=n) for name, n in (("one", 3), ("two", 4)))
SPEC = AdapterSpec(layers=LAYERS, rank=4, alpha=8.0, base_hash="h")


def test_the_places_are_the_first_rows_of_a_and_columns_of_b() -> None:
    small = low_rank_spec(SPEC, 2)
    assert small.alpha / small.rank == SPEC.alpha / SPEC.rank
    vector = torch.arange(SPEC.size, dtype=torch.float32)
    part = vector[places_of(SPEC, 2)]
    for name, (a, b) in small.split(part).items():
        whole_a, whole_b = SPEC.split(vector)[name]
        assert torch.equal(a, whole_a[:2])
        assert torch.equal(b, whole_b[:, :2])
    np.testing.assert_array_equal(places_of(SPEC, 4), np.arange(SPEC.size))


def test_a_number_is_divided_by_the_users_who_train_it() -> None:
    counts = users_of_rank((4, 1, 1), 11)
    assert counts == {4: 4, 1: 7}
    weights = torch.from_numpy(np.concatenate([np.zeros(SPEC.size_a), rank_weights(SPEC, counts)]))
    for _, b in SPEC.split(weights).values():
        np.testing.assert_allclose(b[:, 0].numpy(), 1.0)
        np.testing.assert_allclose(b[:, 1:].numpy(), 11 / 4)
    assert not rank_weights(SPEC, {}).any()


def test_a_node_trains_the_runs_rank_for_its_partition_or_less() -> None:
    assert [rank_of_node(SPEC, (4, 2), partition) for partition in range(4)] == [4, 2, 4, 2]
    assert rank_of_node(SPEC, (), 3) == 4
    assert rank_of_node(SPEC, (), 3, own=1) == rank_of_node(SPEC, (4, 2), 1, own=1) == 1
    with pytest.raises(ConfigError, match="at most 2, the run's for partition 1, got rank=3"):
        rank_of_node(SPEC, (4, 2), 1, own=3)
    with pytest.raises(ConfigError, match="at most 4, the run's for partition 0, got rank=5"):
        rank_of_node(SPEC, (), 0, own=5)
    with pytest.raises(ConfigError, match="form lora"):
        rank_of_node(replace(SPEC, form="bottleneck"), (), 0, own=2)


def test_the_ranks_of_a_run_are_of_its_adapter() -> None:
    check_ranks(SPEC, ())
    check_ranks(SPEC, (2, 4))
    with pytest.raises(ConfigError, match="largest of ranks must be the adapter's, 4"):
        check_ranks(SPEC, (2, 3))
    with pytest.raises(ConfigError, match="form lora"):
        check_ranks(replace(SPEC, form="prefix"), (4,))


def test_a_rank_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"rank must be in 1\.\.4, got rank=5"):
        low_rank_spec(SPEC, 5)
