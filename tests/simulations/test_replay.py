from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.replay import read_rounds, replay
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

CONFIG = FederationConfig(
    rounds=2, cohort_rate=0.6, seed=3, plan=Plan(steps=1, learning_rate=0.3), windows=WindowConfig(window_length=6)
)


def test_the_same_replies_give_the_same_adapter_and_others_another(tiny: Any) -> None:
    rng = np.random.default_rng(1)
    store = EventStore.of([rng.integers(1, 50, size=8) for _ in range(12)])
    engine = CohortEngine(tiny.model, tiny.spec)
    whole = simulate(engine, store, tiny.vector, CONFIG, num_nodes=3)
    assert [record.admitted for record in whole.rounds] == [(0, 1, 2)] * 2

    def again(*admitted: tuple[int, ...]) -> Any:
        rounds = [replace(record, admitted=who) for record, who in zip(whole.rounds, admitted, strict=True)]
        return replay(engine, store, tiny.vector, CONFIG, rounds, num_users=12, num_nodes=3)

    np.testing.assert_array_equal(again((0, 1, 2), (0, 1, 2)).vector, whole.vector)
    fewer = again((0, 1, 2), (0, 2))
    assert fewer.rounds[1].admitted == (0, 2)
    assert fewer.rounds[1].num_missing == 1
    assert (fewer.vector != whole.vector).any()


def test_a_run_without_a_seed_cannot_be_run_again(tiny: Any) -> None:
    engine, store = CohortEngine(tiny.model, tiny.spec), EventStore.of([np.array([1, 2, 3])])
    with pytest.raises(ConfigError, match="seed must be set"):
        replay(engine, store, tiny.vector, replace(CONFIG, seed=None), (), num_users=1, num_nodes=1)


def test_a_file_that_holds_no_rounds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rounds.json").write_text('[{"round": 1}]')
    with pytest.raises(DataError, match="rounds must be those of a deployed run"):
        read_rounds(tmp_path / "rounds.json")


def test_error_feedback_is_run_again_only_where_no_reply_is_missing(tiny: Any) -> None:
    rng = np.random.default_rng(1)
    store = EventStore.of([rng.integers(1, 50, size=8) for _ in range(12)])
    engine = CohortEngine(tiny.model, tiny.spec)
    config = replace(CONFIG, wire=WireConfig(name="int8", error_feedback=True))
    whole = simulate(engine, store, tiny.vector, config, num_nodes=3)
    again = replay(engine, store, tiny.vector, config, whole.rounds, num_users=12, num_nodes=3)
    np.testing.assert_array_equal(again.vector, whole.vector)
    fewer = [replace(record, admitted=(0,), num_admitted=1) for record in whole.rounds]
    with pytest.raises(ConfigError, match="every reply must have entered a run with error feedback"):
        replay(engine, store, tiny.vector, config, fewer, num_users=12, num_nodes=3)
