"""Against numpy and scipy on small tables; the ball's projection brings replies closer, never further apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import trim_mean

from ownlet.server.optimizer import OptimizerState
from ownlet.server.robust import CentredSum, HeldReplies, make_combiner, project
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.server_config import AdaptiveClip, Robust

CONFIG = FederationConfig(rounds=4, cohort_rate=1.0, clip_norm=0.15, noise_multiplier=0.0, server_momentum=0.5, seed=3)


@pytest.mark.parametrize("nodes", [1, 2, 4, 7])
def test_the_median_and_the_trimmed_mean_are_those_of_numpy_and_scipy(nodes: int) -> None:
    table = np.random.default_rng(nodes).normal(size=(nodes, 6)).astype(np.float32)
    for trim, expected in ((0.5, np.median(table, axis=0)), (0.3, trim_mean(table, 0.3, axis=0))):
        held = HeldReplies(6, trim)
        for row in table:
            held.add(row * np.float32(4), 4)
        np.testing.assert_allclose(held.result(), 4 * nodes * expected, rtol=1e-5)
    assert not HeldReplies(6, 0.5).result().any()


def test_projection_never_moves_two_replies_apart_and_ends_in_the_ball() -> None:
    rng = np.random.default_rng(0)
    centre, radius = rng.normal(size=5), 1.3
    for scale in (0.1, 1.0, 10.0):
        for _ in range(100):
            one, other = rng.normal(size=(2, 5)) * scale
            near, far = project(one, centre, radius), project(other, centre, radius)
            assert np.linalg.norm(near - far) <= np.linalg.norm(one - other) + 1e-12
            assert np.linalg.norm(near - centre) <= radius + 1e-12
    np.testing.assert_allclose(project(centre, centre, radius), centre)


def test_nodes_without_an_answer_count_as_zeros_and_no_order_changes_a_bit() -> None:
    rng = np.random.default_rng(0)
    centre, rows = rng.normal(size=4), rng.normal(size=(3, 4)).astype(np.float32)

    def result(replies: Any, num_partitions: int) -> Any:
        combined = CentredSum(centre, 0.7, num_partitions)
        for reply in replies:
            combined.add(reply, 1)
        return combined.result()

    zeros = np.zeros((2, 4), np.float32)
    np.testing.assert_allclose(result(rows, 5), result([*rows, *zeros], 5), atol=1e-12)
    np.testing.assert_array_equal(result(rows, 5), result(rows[::-1], 5))
    expected = sum(project(row.astype(np.float64), centre, 0.7) for row in rows)
    np.testing.assert_allclose(result(rows, 3), expected, atol=1e-12)


def test_under_norm_bound_one_user_still_moves_the_sum_by_at_most_the_clip(world: Any, broken_shard: Any) -> None:
    """User-level privacy's claim, measured with a radius that cuts: the same noise with and without each user."""
    config = replace(CONFIG, rounds=1, noise_multiplier=1.0, robust=Robust(name="norm-bound", radius=0.2))

    def total(broken: list[int]) -> Any:
        moved = world.run(config, grid=world.grid(4, broken_shard(broken))).vector - world.start
        return moved[world.spec.trainable] * config.expected_share * world.num_users

    everybody, plain = total([]), replace(config, robust=Robust())
    assert not np.allclose(everybody, (world.run(plain, 4).vector - world.start)[world.spec.trainable] * 20, atol=1e-3)
    for user in range(0, world.num_users, 3):
        assert np.linalg.norm(everybody - total([user])) <= config.clip_norm * (1 + 1e-4)


def test_one_node_that_lies_moves_robust_results_little(world: Any) -> None:
    """A node sends what it likes, and nothing bounds it."""

    def lie(replies: list[Any]) -> list[Any]:
        for reply in replies:
            if reply.metadata.src_node_id == 1000:
                array = reply.content["delta"]["total"].numpy().copy()
                array[:] = -50.0
                reply.content["delta"] = type(reply.content["delta"])({"total": _array(array)})
        return replies

    def harm(robust: Robust) -> float:
        config = replace(CONFIG, unit="none", robust=robust)
        grid = world.grid(5)
        grid.tamper = lie
        honest, lied = world.run(config, 5).vector, world.run(config, grid=grid).vector
        return float(np.linalg.norm(honest - lied))

    plain = harm(Robust())
    assert harm(Robust(name="median")) < 0.05 * plain
    assert harm(Robust(name="trimmed-mean", trim=0.2)) < 0.05 * plain
    assert harm(Robust(name="norm-bound", radius=0.2)) < 0.05 * plain


def _array(values: Any) -> Any:
    from flwr.app import Array

    return Array(values)


def test_the_centre_is_what_the_momentum_expects_of_a_node() -> None:
    state = OptimizerState(momentum=np.full(4, 0.02), squares=np.zeros(4))
    config = replace(CONFIG, robust=Robust(name="norm-bound"), cohort_rate=0.5)
    combiner = make_combiner(config, state, size=4, bound=0.15, num_users=40, num_asked=20, num_partitions=4)
    # five expected users per node; momentum 0.5 in a steady state is twice the average
    combiner.add(np.full(4, 5 * 0.5 * 0.02, np.float32), 5)
    for _ in range(3):
        combiner.add(np.zeros(4, np.float32), 5)
    missing = make_combiner(config, state, size=4, bound=0.15, num_users=40, num_asked=20, num_partitions=4)
    np.testing.assert_allclose(combiner.result() - missing.result(), 5 * 0.5 * 0.02 - 0.0, atol=1e-6)


def test_what_user_level_noise_would_not_cover_is_refused() -> None:
    for name in ("median", "trimmed-mean"):
        with pytest.raises(ConfigError, match="robust must not be median or trimmed-mean under unit user with noise"):
            replace(CONFIG, noise_multiplier=1.0, robust=Robust(name=name))  # type: ignore[arg-type]
        local = Plan(clip_norm=1.0, noise_multiplier=4.0)
        assert replace(CONFIG, unit="window", plan=local, robust=Robust(name=name)).robust.name == name  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="quantile of adaptive_clip must be 0"):
        replace(CONFIG, adaptive_clip=AdaptiveClip(quantile=0.5), robust=Robust(name="norm-bound"))
    with pytest.raises(ConfigError, match="robust must be none where devices differ in rank"):
        replace(CONFIG, ranks=(2, 1), robust=Robust(name="median"))
    with pytest.raises(ConfigError, match=r"trim must be in \[0, 0.5\)"):
        Robust(trim=0.5)
