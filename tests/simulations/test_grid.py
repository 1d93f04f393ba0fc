"""The in-process grid with the real apps, a real base and the cohort engine."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from ownlet.device.client import make_client_app
from ownlet.server.app import ServerSetup, make_server_app
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import Vector, hash_state, initial_adapter
from ownlet.shared.config import FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.errors import ConfigError
from ownlet.shared.lora import attach
from ownlet.shared.model import SASRec
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.grid import InProcessGrid, run_apps
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

NUM_USERS = 30


@pytest.fixture(scope="module")
def shard() -> StoreShard:
    torch.manual_seed(0)
    model = SASRec(ModelConfig(dim=16, num_layers=1, max_length=10), torch.zeros(51, 4)).eval()
    base_hash = hash_state(model.state_dict())
    spec = attach(model, target_modules=("query", "value"), rank=2, alpha=4.0, base_hash=base_hash)
    rng = np.random.default_rng(0)
    histories = [rng.integers(1, 51, size=rng.integers(0, 14)) for _ in range(NUM_USERS)]
    return StoreShard(CohortEngine(model, spec), EventStore.of(histories), WindowConfig(window_length=6))


def _federate(shard: StoreShard, config: FederationConfig, num_nodes: int) -> FederationResult:
    results: list[FederationResult] = []
    spec = shard.engine.spec

    def setup(context: Context) -> ServerSetup:
        return ServerSetup(
            config=config,
            spec=spec,
            vector=initial_adapter(spec, seed=0),
            num_users=NUM_USERS,
            on_result=results.append,
        )

    run_apps(make_server_app(setup), InProcessGrid(make_client_app(lambda context: shard, simulated=True), num_nodes))
    return results[0]


@pytest.mark.parametrize("unit", ["user", "window"])
def test_one_two_and_seven_nodes_give_the_same_adapter(shard: StoreShard, unit: str) -> None:
    noisy = Plan(steps=2, learning_rate=0.3, sample_rate=0.5, clip_norm=0.5, noise_multiplier=1.0)
    config = FederationConfig(
        rounds=3,
        cohort_rate=0.5,
        unit=unit,  # type: ignore[arg-type]
        noise_multiplier=0.5,
        seed=5,
        plan=noisy if unit == "window" else Plan(steps=2, learning_rate=0.3),
    )
    vectors: list[Vector] = [_federate(shard, config, num_nodes).vector for num_nodes in (1, 2, 7)]
    start = initial_adapter(shard.engine.spec, seed=0)
    assert np.abs(vectors[0] - start).max() > 1e-3
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-5)
    np.testing.assert_allclose(vectors[2], vectors[0], atol=1e-5)


def test_more_nodes_than_users_is_fine(shard: StoreShard) -> None:
    config = FederationConfig(rounds=1, cohort_rate=1.0, noise_multiplier=0.0, seed=5)
    many, one = _federate(shard, config, 40), _federate(shard, config, 1)
    np.testing.assert_allclose(many.vector, one.vector, atol=1e-5)
    assert many.rounds[0].num_nodes == NUM_USERS


def test_a_base_that_differs_on_the_nodes_never_enters(shard: StoreShard) -> None:
    class Stale(StoreShard):
        base_hash = "0" * 64  # type: ignore[assignment]

    stale = Stale(shard.engine, EventStore.of([np.arange(1, 9)] * NUM_USERS), WindowConfig(window_length=6))
    spec = shard.engine.spec
    results: list[FederationResult] = []
    setup = ServerSetup(
        config=FederationConfig(rounds=1, cohort_rate=1.0, seed=5),
        spec=spec,
        vector=initial_adapter(spec, seed=0),
        num_users=NUM_USERS,
        on_result=results.append,
    )
    run_apps(
        make_server_app(lambda context: setup), InProcessGrid(make_client_app(lambda context: stale, simulated=True), 2)
    )
    assert results[0].rounds[0].void
    np.testing.assert_array_equal(results[0].vector, setup.vector)


def _doubling_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        message.content["config"]["touched"] = True
        array = message.content["arrays"]["0"].numpy()
        if array[0] < 0:
            raise ValueError("negative")
        context.state["seen"] = ConfigRecord({"node": context.node_id})
        return Message(RecordDict({"arrays": ArrayRecord([2 * array])}), reply_to=message)

    return app


def _message(value: float, node: int, content: RecordDict | None = None) -> Message:
    arrays = ArrayRecord([np.array([value], np.float32)])
    return Message(content or RecordDict({"arrays": arrays, "config": ConfigRecord()}), node, "train", group_id="3")


def test_replies_belong_to_their_messages_and_contents_are_copies() -> None:
    grid: Grid = InProcessGrid(_doubling_app(), 2)
    first, second = grid.get_node_ids()
    shared = RecordDict({"arrays": ArrayRecord([np.array([1.5], np.float32)]), "config": ConfigRecord()})
    replies = list(grid.send_and_receive([_message(0, first, shared), _message(0, second, shared)]))
    assert [reply.metadata.src_node_id for reply in replies] == [first, second]
    assert [float(reply.content["arrays"]["0"].numpy()[0]) for reply in replies] == [3.0, 3.0]
    assert dict(shared["config"]) == {}
    assert {reply.metadata.group_id for reply in replies} == {"3"}


def test_a_node_cannot_change_what_it_has_sent() -> None:
    app, kept = ClientApp(), RecordDict({"config": ConfigRecord({"value": 1})})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(kept, reply_to=message)

    grid = InProcessGrid(app, 1)
    (reply,) = grid.send_and_receive([_message(0, grid.get_node_ids()[0])])
    kept["config"]["value"] = 2
    assert reply.content["config"]["value"] == 1


def test_a_reply_is_pulled_once() -> None:
    grid = InProcessGrid(_doubling_app(), 1)
    (node,) = grid.get_node_ids()
    ids = grid.push_messages([_message(1, node), _message(2, node)])
    assert len(set(ids)) == 2
    (reply,) = grid.pull_messages(ids[1:])
    assert reply.metadata.reply_to_message_id == ids[1]
    assert grid.pull_messages(ids[1:]) == []
    assert len(grid.pull_messages(ids)) == 1


def test_a_node_that_raises_or_does_not_exist_answers_with_an_error() -> None:
    grid = InProcessGrid(_doubling_app(), 1)
    (node,) = grid.get_node_ids()
    raised, missing = grid.send_and_receive([_message(-1, node), _message(1, 77)])
    assert raised.has_error()
    assert missing.has_error()
    assert missing.metadata.src_node_id == 77


def test_a_grid_without_nodes_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_nodes must be at least 1"):
        InProcessGrid(_doubling_app(), 0)
