from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ownlet.server.checkpoint import load_checkpoint
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import FederationError

CONFIGS = {
    "user": FederationConfig(rounds=6, cohort_rate=0.5, clip_norm=0.15, noise_multiplier=1.0, seed=3),
    "window": FederationConfig(
        rounds=6, cohort_rate=0.5, unit="window", seed=3, plan=Plan(clip_norm=1.0, noise_multiplier=4.0)
    ),
}


class Interrupted(Exception):
    pass


def _timeless(records: Any) -> list[Any]:
    return [replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize("unit", CONFIGS)
def test_a_resumed_run_equals_an_uninterrupted_one(world: Any, tmp_path: Path, unit: str) -> None:
    config, path = CONFIGS[unit], tmp_path / "run.safetensors"

    def interrupt(record: Any, vector: Any) -> None:
        if record.round == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        world.run(config, 2, checkpoint=path, on_round=interrupt)
    resumed = world.run(config, 2, checkpoint=path, resume=True)
    whole = world.run(config, 2)
    assert np.array_equal(resumed.vector, whole.vector)
    assert _timeless(resumed.rounds) == _timeless(whole.rounds)
    assert (resumed.version, resumed.epsilon) == (whole.version, whole.epsilon)


def test_a_round_that_breaks_off_leaves_the_state_before_it(world: Any, tmp_path: Path) -> None:
    config, path = CONFIGS["user"], tmp_path / "run.safetensors"
    grid = world.grid(2)
    calls = iter([True, True])

    def tamper(replies: Any) -> Any:
        if next(calls, False):
            return replies
        raise Interrupted

    grid.tamper = tamper
    with pytest.raises(Interrupted):
        world.run(config, grid=grid, checkpoint=path)
    assert len(load_checkpoint(path, config, world.spec, world.num_users).results) == 2
    resumed = world.run(config, 2, checkpoint=path, resume=True)
    assert np.array_equal(resumed.vector, world.run(config, 2).vector)


def test_a_finished_run_can_go_on_for_more_rounds(world: Any, tmp_path: Path) -> None:
    config, path = CONFIGS["user"], tmp_path / "run.safetensors"
    world.run(replace(config, rounds=2), checkpoint=path)
    again = world.run(replace(config, rounds=2), checkpoint=path, resume=True)
    assert len(again.rounds) == 2
    longer = world.run(config, checkpoint=path, resume=True)
    assert np.array_equal(longer.vector, world.run(config).vector)


def test_resume_still_stops_before_the_target(world: Any, tmp_path: Path) -> None:
    config, path = CONFIGS["user"], tmp_path / "run.safetensors"
    epsilon_of_two = world.run(replace(config, rounds=2), checkpoint=path).epsilon
    result = world.run(replace(config, target_epsilon=epsilon_of_two), checkpoint=path, resume=True)
    assert len(result.rounds) == 2
    assert "round 3" in result.stopped


def test_resume_without_a_file_starts(world: Any, tmp_path: Path) -> None:
    config = replace(CONFIGS["user"], rounds=1)
    result = world.run(config, checkpoint=tmp_path / "new.safetensors", resume=True)
    assert len(result.rounds) == 1


def test_a_checkpoint_of_another_run_is_refused(world: Any, tmp_path: Path) -> None:
    config, path = CONFIGS["user"], tmp_path / "run.safetensors"
    world.run(replace(config, rounds=1), checkpoint=path)
    with pytest.raises(FederationError, match=r"clip_norm.*seed"):
        load_checkpoint(path, replace(config, seed=4, clip_norm=0.2), world.spec, world.num_users)
    with pytest.raises(FederationError, match="of 21 users"):
        load_checkpoint(path, config, world.spec, 21)
    with pytest.raises(FederationError, match="adapter spec and base"):
        load_checkpoint(path, config, replace(world.spec, base_hash="c" * 64), world.num_users)


def test_a_schedule_ties_a_checkpoint_to_its_number_of_rounds(world: Any, tmp_path: Path) -> None:
    config, path = replace(CONFIGS["user"], schedule="cosine"), tmp_path / "run.safetensors"
    world.run(config, checkpoint=path)
    assert len(load_checkpoint(path, config, world.spec, world.num_users).results) == 6
    with pytest.raises(FederationError, match="other values of \\['rounds'\\]"):
        load_checkpoint(path, replace(config, rounds=9), world.spec, world.num_users)


def test_a_damaged_checkpoint_is_refused(world: Any, tmp_path: Path) -> None:
    config, path = CONFIGS["user"], tmp_path / "run.safetensors"
    world.run(replace(config, rounds=1), checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FederationError, match="readable safetensors"):
        world.run(config, checkpoint=path, resume=True)
