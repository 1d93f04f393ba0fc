"""Early stopping: what is kept, when a run ends, what stays charged, and that an interruption changes nothing."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ownlet.server.early_stop import Judge
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import epsilon, user_level_event

CONFIG = FederationConfig(rounds=9, cohort_rate=0.5, clip_norm=0.15, noise_multiplier=1.0, seed=3, patience=2)


def judge_of(qualities: Mapping[int, float]) -> Judge:
    """A judge who looks at these rounds only."""
    return lambda number, vector: qualities.get(number)


def vectors_of(world: Any, config: FederationConfig) -> list[Any]:
    """The adapters of an uninterrupted run that never stops early, round 0 first."""
    vectors = [world.start]
    world.run(replace(config, patience=0), on_round=lambda record, vector: vectors.append(vector))
    return vectors


def test_the_best_adapter_is_kept_and_every_round_that_ran_is_charged(world: Any) -> None:
    result = world.run(CONFIG, judge=judge_of({0: 0.1, 2: 0.3, 4: 0.2, 6: 0.3, 8: 0.9}))
    assert len(result.rounds) == 6  # rounds 4 and 6 were no better than round 2
    assert result.version == 2
    np.testing.assert_array_equal(result.vector, vectors_of(world, CONFIG)[2])
    assert result.epsilon == epsilon(user_level_event(0.5, 1.0, 6), 1e-5)
    assert result.stopped == "no better adapter on held-out public users in 2 evaluations; round 2 is kept"
    assert [record.quality for record in result.rounds] == [None, 0.3, None, 0.2, None, 0.3]


def test_a_run_in_which_no_round_is_better_ends_with_the_adapter_it_started_from(world: Any) -> None:
    result = world.run(CONFIG, judge=lambda number, vector: -float(number))
    assert (len(result.rounds), result.version) == (2, 0)
    np.testing.assert_array_equal(result.vector, world.start)
    assert "the adapter before the first round is kept" in result.stopped


def test_a_run_that_gets_better_to_the_end_is_not_stopped(world: Any) -> None:
    result = world.run(CONFIG, judge=lambda number, vector: float(number))
    assert (len(result.rounds), result.version, result.stopped) == (9, 9, None)


def test_the_best_is_kept_also_where_the_rounds_end_before_patience_does(world: Any) -> None:
    result = world.run(replace(CONFIG, rounds=3), judge=judge_of({0: 0.0, 1: 0.0, 2: 1.0, 3: 0.5}))
    assert (result.version, result.stopped) == (2, None)
    np.testing.assert_array_equal(result.vector, vectors_of(world, CONFIG)[2])


def test_without_patience_a_judge_changes_nothing(world: Any) -> None:
    judged = world.run(replace(CONFIG, patience=0), judge=lambda number, vector: -float(number))
    np.testing.assert_array_equal(judged.vector, vectors_of(world, CONFIG)[-1])
    assert judged.rounds[3].quality == -4.0


@pytest.mark.parametrize("killed_after", [1, 3, 4, 5])
def test_an_interrupted_run_stops_where_a_whole_one_does(world: Any, tmp_path: Path, killed_after: int) -> None:
    class KilledError(Exception):
        pass

    def kill(record: Any, vector: Any) -> None:
        if record.round == killed_after:
            raise KilledError

    looks: Callable[[int, Any], float] = lambda number, vector: {1: 0.2, 3: 0.5}.get(number, 0.1)  # noqa: E731
    path = tmp_path / "run.safetensors"
    with pytest.raises(KilledError):
        world.run(CONFIG, checkpoint=path, judge=looks, on_round=kill)
    resumed, whole = world.run(CONFIG, checkpoint=path, resume=True, judge=looks), world.run(CONFIG, judge=looks)
    assert (len(resumed.rounds), resumed.version, resumed.stopped) == (5, 3, whole.stopped)
    np.testing.assert_array_equal(resumed.vector, whole.vector)
    again = world.run(CONFIG, checkpoint=path, resume=True, judge=looks)  # a finished run stays finished
    assert len(again.rounds) == 5


def test_patience_without_a_judge_is_refused(world: Any) -> None:
    for judge in (None, judge_of({3: 1.0})):
        with pytest.raises(ConfigError, match="judge must look at the start where a run has patience, got patience=2"):
            world.run(CONFIG, judge=judge)
