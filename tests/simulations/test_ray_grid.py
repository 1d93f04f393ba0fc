"""Nodes as Ray actors, on a local cluster of two machines (two raylets)."""

import functools
import os
import signal

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from ownlet.device.client import make_client_app
from ownlet.server.app import ServerSetup, make_server_app
from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.grid import InProcessGrid, run_apps
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

pytestmark = pytest.mark.slow
NUM_USERS = 60


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def base():
    import torch

    torch.manual_seed(0)
    model = SASRec(ModelConfig(dim=16, max_length=10), torch.zeros(31, 4)).eval()
    spec = attach_adapter(model, AdapterConfig(rank=2))
    return model, spec


@functools.cache
def shard():
    model, spec = base()
    rng = np.random.default_rng(0)
    store = EventStore.of([rng.integers(1, 31, rng.integers(0, 14)) for _ in range(NUM_USERS)])
    return StoreShard(CohortEngine(model, spec), store, WindowConfig(window_length=6))


def load_app() -> ClientApp:
    return make_client_app(lambda context: shard(), simulated=True)


def load_suicidal_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        if message.content["request"]["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return Message(RecordDict(), reply_to=message)

    return app


def federate(grid):
    found = []
    _, spec = base()
    setup = ServerSetup(
        config=FederationConfig(rounds=2, cohort_rate=0.5, seed=1, plan=Plan(steps=2, learning_rate=0.5)),
        spec=spec,
        vector=initial_adapter(spec, 0),
        num_users=NUM_USERS,
        on_result=found.append,
    )
    run_apps(make_server_app(lambda context: setup), grid)
    return found[0]


def test_a_cluster_of_two_machines_gives_the_adapter_of_one_process(cluster):
    from ownlet.simulations.ray_grid import RayGrid

    with RayGrid(load_app, 2, address=cluster.address) as grid:
        assert len(set(grid.machines)) == 2
        spread = federate(grid)
    alone = federate(InProcessGrid(load_app(), 2))
    assert [record.num_admitted for record in spread.rounds] == [2, 2]
    np.testing.assert_allclose(spread.vector, alone.vector, atol=1e-6)


def test_a_node_that_dies_costs_its_reply_and_is_back_in_the_next_round(cluster):
    from ownlet.simulations.ray_grid import RayGrid

    def ask(grid, doomed):
        messages = [
            Message(RecordDict({"request": ConfigRecord({"die": node == doomed})}), node, "train", group_id="1")
            for node in grid.get_node_ids()
        ]
        return {reply.metadata.src_node_id: reply.has_error() for reply in grid.send_and_receive(messages, timeout=60)}

    with RayGrid(load_suicidal_app, 2, address=cluster.address) as grid:
        assert ask(grid, doomed=1001) == {1000: False, 1001: True}
        assert ask(grid, doomed=None) == {1000: False, 1001: False}


def test_a_slow_node_misses_the_deadline_and_the_others_are_handed_out(cluster):
    from ownlet.simulations.ray_grid import RayGrid

    with RayGrid(load_slow_app, 2, address=cluster.address) as grid:
        messages = [Message(RecordDict(), node, "train", group_id="1") for node in grid.get_node_ids()]
        replies = grid.send_and_receive(messages, timeout=1.0)
        assert [reply.metadata.src_node_id for reply in replies] == [1000]


def load_slow_app() -> ClientApp:
    import time

    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        if message.metadata.dst_node_id == 1001:
            time.sleep(20)
        return Message(RecordDict(), reply_to=message)

    return app
