"""Devices of two ranks in one federation, with the real cohort engine, against the parts of its own rounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ownlet.shared.adapter import hash_state, initial_adapter
from ownlet.shared.config import FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.lora import attach
from ownlet.shared.model import SASRec
from ownlet.shared.ranks import low_rank_spec, places_of
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

CONFIG = FederationConfig(
    rounds=1, cohort_rate=1.0, unit="none", plan=Plan(steps=2), windows=WindowConfig(window_length=6), seed=0
)


def test_each_slice_is_the_average_over_the_users_who_train_it() -> None:
    torch.manual_seed(0)
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=10), torch.zeros(51, 4)).eval()
    spec = attach(model, target_modules=("query", "value"), rank=4, alpha=8.0, base_hash=hash_state(model.state_dict()))
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 51, size=rng.integers(2, 14)) for _ in range(10)]
    start, small = initial_adapter(spec, 0), low_rank_spec(spec, 1)
    places = places_of(spec, 1)

    def run(users: list[int], config: FederationConfig, **options: object) -> np.ndarray:
        store = EventStore.of([histories[user] for user in users])
        return simulate(CohortEngine(model, spec), store, start, config, **options).vector  # type: ignore[arg-type]

    everybody = list(range(10))
    mixed = run(
        everybody,
        replace(CONFIG, ranks=(4, 1)),
        num_nodes=2,
        engine_of_rank=lambda rank: CohortEngine(model, low_rank_spec(spec, rank)),
    )
    strong = run(everybody[::2], CONFIG) - start  # the average of the five users of rank 4
    store = EventStore.of([histories[user] for user in everybody[1::2]])
    weak = simulate(CohortEngine(model, small), store, start[places], CONFIG).vector - start[places]
    expected = strong.copy()
    expected[places] = (strong[places] + weak) / 2
    np.testing.assert_allclose(mixed - start, expected, atol=1e-6)
    assert np.abs(weak).max() > 1e-3
    with pytest.raises(ConfigError, match="num_nodes must be a multiple of the 2 ranks"):
        run(everybody, replace(CONFIG, ranks=(4, 1)), engine_of_rank=lambda rank: CohortEngine(model, spec))
    with pytest.raises(ConfigError, match="largest of ranks must be the adapter's, 4"):
        run(everybody, replace(CONFIG, ranks=(2,)), engine_of_rank=lambda rank: CohortEngine(model, small))
