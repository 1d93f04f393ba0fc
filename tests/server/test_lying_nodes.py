"""The grid of the Byzantine benchmark: honest nodes give the round that they always give, attackers change theirs."""

from dataclasses import replace
from typing import Any

import numpy as np

from ownlet.shared.config import FederationConfig
from ownlet.shared.server_config import Robust
from ownlet.simulations.benchmarks.byzantine import ATTACKS, LyingGrid


def _grid(world: Any, config: FederationConfig, liars: int, attack: str) -> LyingGrid:
    return LyingGrid(world.shard(), world.spec.num_trainable, config, 5, liars, ATTACKS[attack])


def test_without_attackers_the_round_is_the_ordinary_one(world: Any, noiseless: FederationConfig) -> None:
    result = world.run(noiseless, grid=_grid(world, noiseless, 0, "sign-flip"))
    np.testing.assert_allclose(result.vector, world.expected_step(noiseless, range(20)), atol=1e-6)


def test_a_flipped_sum_enters_with_the_other_sign(world: Any, noiseless: FederationConfig) -> None:
    honest, lying = (
        world.run(noiseless, grid=_grid(world, noiseless, liars, "sign-flip")).vector - world.start for liars in (0, 5)
    )
    np.testing.assert_allclose(lying, -honest, atol=1e-6)


def test_a_long_lie_moves_a_median_less_than_a_sum(world: Any, noiseless: FederationConfig) -> None:
    summed = replace(noiseless, unit="none")
    moved = {}
    for config in (summed, replace(summed, robust=Robust(name="median"))):
        honest, lying = (world.run(config, grid=_grid(world, config, liars, "scaling")).vector for liars in (0, 1))
        moved[config.robust.name] = np.linalg.norm(lying - honest)
    assert 0 < moved["median"] < moved["none"]


def test_what_is_not_a_number_is_rejected(world: Any, noiseless: FederationConfig) -> None:
    quorum = replace(noiseless, quorum=0.5)
    (record,) = world.run(quorum, grid=_grid(world, quorum, 1, "nan")).rounds
    assert record.num_admitted == 4
    assert len(record.rejected) == 1
