"""The app of a deployed node, from its settings, in this process: it must be what a simulation's nodes are."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from ownlet.device.budget import Budget
from ownlet.server.deployment import Deployment, public_config
from ownlet.server.rounds import run_rounds
from ownlet.shared.base import save_base_weights
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.ranks import low_rank_spec, places_of
from ownlet.shared.wire import Place, TrainRequest, request_to_records
from ownlet.shared.wire_config import WireConfig
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.deployed_node import NodeSettings, make_node_app
from ownlet.simulations.grid import InProcessGrid, node_context
from ownlet.simulations.join import prepare_node
from ownlet.simulations.run import simulate
from ownlet.simulations.setting import DataConfig
from ownlet.simulations.store import EventStore, StoreWriter

CONFIG = FederationConfig(
    rounds=3,
    cohort_rate=0.6,
    seed=3,
    plan=Plan(steps=1, learning_rate=0.3),
    windows=WindowConfig(window_length=6),
    reply_timeout_seconds=0.05,  # every node answers when it is asked
)
NUM_USERS, NUM_NODES = 12, 4


@pytest.fixture
def settings(tiny: Any, tmp_path: Path) -> NodeSettings:
    """A node that hosts everybody; several of them in one grid train those of their own partition."""
    rng = np.random.default_rng(1)
    histories = [rng.integers(1, 50, size=8) for _ in range(NUM_USERS)]
    with StoreWriter(tmp_path / "store", name="node", items=tiny.items) as writer:
        writer.append(np.concatenate(histories), np.full(NUM_USERS, 8))
    save_base_weights(tmp_path / "base.safetensors", tiny.model)
    return NodeSettings(
        state=tmp_path / "state",
        base=tmp_path / "base.safetensors",
        store=tmp_path / "store",
        simulated=True,
        budget=Budget(epsilon=math.inf),
    )


def nodes(settings: NodeSettings, config: FederationConfig, tiny: Any) -> InProcessGrid:
    told = public_config(Deployment(config=config, num_users=NUM_USERS, num_nodes=NUM_NODES), tiny.spec)
    return InProcessGrid(make_node_app(settings), NUM_NODES, told)


@pytest.mark.parametrize(
    "changes",
    [{"wire": WireConfig(name="int8", error_feedback=True)}, {"ranks": (4, 1)}, {"ranks": (1, 4, 2, 4)}],
    ids=["int8 with error feedback", "two ranks", "three ranks"],
)
def test_deployed_nodes_end_with_the_adapter_of_the_simulation(
    tiny: Any, settings: NodeSettings, changes: dict[str, Any]
) -> None:
    config = replace(CONFIG, **changes)
    deployed = run_rounds(nodes(settings, config, tiny), config, tiny.spec, tiny.vector, NUM_USERS)
    assert settings.store is not None
    simulated = simulate(
        CohortEngine(tiny.model, tiny.spec),
        EventStore.open(settings.store),
        tiny.vector,
        config,
        num_nodes=NUM_NODES,
        engine_of_rank=lambda rank: CohortEngine(tiny.model, low_rank_spec(tiny.spec, rank)),
    )
    assert all(record.num_admitted == record.num_nodes for record in deployed.rounds)
    np.testing.assert_allclose(deployed.vector, simulated.vector, atol=1e-6)
    plain = simulate(
        CohortEngine(tiny.model, tiny.spec), EventStore.open(settings.store), tiny.vector, CONFIG, num_nodes=NUM_NODES
    )
    assert np.abs(plain.vector - simulated.vector).max() > 1e-4


def train(settings: NodeSettings, tiny: Any, partition: int, **changes: Any) -> Message:
    """Ask the node of one partition of a run with ranks 4, 1."""
    asked = TrainRequest(
        vector=tiny.vector,
        round=1,
        version=0,
        base_hash=tiny.spec.base_hash,
        plan=Plan(),
        unit="user",
        clip_norm=0.3,
        users=(partition,),
    )
    told = public_config(
        Deployment(config=replace(CONFIG, ranks=(4, 1)), num_users=NUM_USERS, num_nodes=NUM_NODES), tiny.spec
    )
    app = make_node_app(settings)
    message = Message(request_to_records(asked), 1000 + partition, "train")
    return app(message, node_context(partition, NUM_NODES, told))


def test_a_node_trains_no_more_than_its_own_rank_and_refuses_one_above_the_runs(
    tiny: Any, settings: NodeSettings
) -> None:
    reply = train(replace(settings, rank=2), tiny, 0)
    total = reply.content["delta"]["total"].numpy()
    (moved,) = np.nonzero(np.concatenate([np.zeros(tiny.spec.size_a), total]))
    assert len(moved) > 0
    assert set(moved) <= set(places_of(tiny.spec, 2))
    assert not set(moved) <= set(places_of(tiny.spec, 1))
    with pytest.raises(ConfigError, match="rank of the node must be at most 1, the run's for partition 1, got rank=2"):
        train(replace(settings, rank=2), tiny, 1)
    assert not (settings.state / "ledgers" / "1.jsonl").exists()


def test_a_device_has_the_rank_of_its_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank must not be set for a device"):
        prepare_node(
            tmp_path / "state",
            Place(partition=0, num_partitions=1),
            base=None,
            data=DataConfig(),
            bundle=tmp_path / "bundle",
            device_state=tmp_path / "device",
            simulated=False,
            budget=Budget(),
            rank=2,
        )
