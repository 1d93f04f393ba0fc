"""A server that dies in the middle of a round: the round is asked again, of the same users, and charged once."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from ownlet.server.begun import begin_round, begun_cohort, forget_begun
from ownlet.server.checkpoint import ServerState, save_checkpoint
from ownlet.server.cohorts import draw_cohort
from ownlet.shared.config import FederationConfig, SecureConfig
from ownlet.shared.errors import FederationError
from ownlet.shared.wire import request_from_records


class PowerCutError(Exception):
    """The server is gone."""


def asked_users(grid: Any) -> dict[int, set[int]]:
    """Note the users of every round that the grid is asked to train."""
    asked: dict[int, set[int]] = {}
    push = grid.push_messages

    def noting(messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type == "train":
                request = request_from_records(message.content, message.content["adapter"]["vector"].numpy().size)
                asked.setdefault(request.round, set()).update(request.users)
        return list(push(messages))

    grid.push_messages = noting
    return asked


def cut_power(grid: Any, at_round: int) -> None:
    """Let the server die when replies of this round have come."""
    tampered = grid._tampered

    def dying(replies: list[Message]) -> list[Message]:
        found = tampered(replies)
        if any(reply.metadata.message_type == "train" and reply.metadata.group_id == str(at_round) for reply in found):
            raise PowerCutError
        return list(found)

    grid._tampered = dying


@pytest.fixture
def unseeded(noiseless: FederationConfig) -> FederationConfig:
    """Cohorts that nobody could draw again."""
    return replace(noiseless, rounds=3, cohort_rate=0.5, noise_multiplier=1.0, seed=None)


def test_the_round_that_began_is_asked_again_and_charged_once(
    world: Any, unseeded: FederationConfig, tmp_path: Path
) -> None:
    path, first = tmp_path / "run.ckpt", world.grid(2)
    before = asked_users(first)
    cut_power(first, 2)
    with pytest.raises(PowerCutError):
        world.run(unseeded, grid=first, checkpoint=path)
    second = world.grid(2)
    after = asked_users(second)
    resumed = world.run(unseeded, grid=second, checkpoint=path, resume=True)
    assert sorted(before) == [1, 2]
    assert sorted(after) == [2, 3]
    assert after[2] == before[2]  # a fresh draw of 20 coins would agree once in a million runs
    assert [record.round for record in resumed.rounds] == [1, 2, 3]
    whole = world.run(unseeded, 2)
    assert resumed.epsilon == pytest.approx(whole.epsilon)


def test_a_server_that_dies_in_its_first_round_keeps_the_cohort_too(
    world: Any, unseeded: FederationConfig, tmp_path: Path
) -> None:
    path, first, second = tmp_path / "run.ckpt", world.grid(2), world.grid(2)
    before, after = asked_users(first), asked_users(second)
    cut_power(first, 1)
    with pytest.raises(PowerCutError):
        world.run(unseeded, grid=first, checkpoint=path)
    world.run(unseeded, grid=second, checkpoint=path, resume=True)
    assert after[1] == before[1]


def test_a_first_round_that_began_belongs_to_its_config(world: Any, unseeded: FederationConfig, tmp_path: Path) -> None:
    path, grid = tmp_path / "run.ckpt", world.grid(2)
    cut_power(grid, 1)
    with pytest.raises(PowerCutError):
        world.run(unseeded, grid=grid, checkpoint=path)
    with pytest.raises(FederationError, match="other values of"):
        world.run(replace(unseeded, cohort_rate=0.4), checkpoint=path, resume=True)


def test_a_run_from_the_start_does_not_take_up_what_another_began(
    world: Any, unseeded: FederationConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    seeded = replace(unseeded, seed=4)
    begin_round(path, 1, np.arange(20))
    grid = world.grid(1)
    asked = asked_users(grid)
    world.run(replace(seeded, rounds=1), grid=grid, checkpoint=path)
    assert asked[1] == set(draw_cohort(seeded, 20, 1).tolist())


def test_under_secure_aggregation_the_round_that_began_is_void_and_charged(
    world: Any, unseeded: FederationConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run.ckpt"
    secure = replace(unseeded, secure=SecureConfig(enabled=True), rounds=1, seed=3)
    save_checkpoint(path, secure, world.spec, ServerState.start(secure, world.spec, world.start, 20))
    begin_round(path, 1, np.arange(6))
    result = world.run(secure, 1, checkpoint=path, resume=True)
    assert result.rounds[0].void
    assert result.rounds[0].num_asked == 6
    assert 0 < result.epsilon < np.inf


def test_what_began_is_read_back_until_it_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "run.ckpt"
    assert begun_cohort(path, 1) is None
    begin_round(path, 4, np.array([2, 7, 9]))
    np.testing.assert_array_equal(begun_cohort(path, 4), [2, 7, 9])
    assert begun_cohort(path, 5) is None
    begin_round(path, 5, np.array([], dtype=np.int64))
    np.testing.assert_array_equal(begun_cohort(path, 5), [])
    (tmp_path / "run.ckpt.begun").write_bytes(b"abc")
    with pytest.raises(FederationError, match="got 3 bytes"):
        begun_cohort(path, 5)
    forget_begun(path)
    assert begun_cohort(path, 5) is None
