"""A node with a registered key that runs other code: what it sends a second time gets nothing in, and is counted."""

from dataclasses import replace
from typing import Any

import pytest

from ownlet.server.deployment import public_config
from ownlet.server.serve import Link, serve
from ownlet.server.shim_app import write_shim_app
from ownlet.shared.adapter import load_adapter
from ownlet.simulations.federated_run import FederatedRunConfig
from ownlet.simulations.replay import read_rounds
from ownlet.simulations.serve_run import prepare_server
from ownlet.simulations.setting import DataConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # flwr 1.41 with pathspec 1.1
]

# The honest app, but partition 2 keeps its first answer to `train` and sends it for ever after, as it was.
DISHONEST = """
import os
from pathlib import Path

from flwr.app import Message
from flwr.clientapp import ClientApp
from ownlet.shared.wire import records_from_bytes, records_to_bytes
from ownlet.simulations.deployed_node import node_app

honest = node_app()
app = ClientApp()


@app.query("place")
def place(message, context):
    return honest(message, context)


@app.train()
def train(message, context):
    if context.node_config["partition-id"] != 2:
        return honest(message, context)
    kept = Path(os.environ["FLWR_HOME"]) / "kept"
    if not kept.exists():
        kept.write_bytes(records_to_bytes(honest(message, context).content))
    return Message(records_from_bytes(kept.read_bytes()), reply_to=message)
"""


def test_an_old_update_sent_again_is_refused_and_counted(place: Any) -> None:
    config = FederatedRunConfig(base=place.base, data=DataConfig(path=place.data, core=0), num_nodes=3)
    config = replace(config, federation=replace(config.federation, rounds=3, cohort_rate=0.5, seed=5))
    deployment = prepare_server(
        place.run,
        config,
        bundle=None,
        num_users=None,
        min_nodes=3,
        wait_seconds=600.0,
        simulated=True,
    )
    spec, _, _ = load_adapter(place.run.start)
    write_shim_app(place.run.app, public_config(deployment, spec), client_app=DISHONEST)
    keys = sorted((place.certs / "nodes").glob("*.pub"))
    link = Link(host="127.0.0.1", port=place.port, certs=place.certs, node_keys=keys)
    link.check()
    nodes = [place.join(number, "--partitions", 3) for number in range(3)]
    told: list[str] = []
    serve(place.run, link, told.append)
    rounds = read_rounds(place.run.rounds)
    assert [record.admitted for record in rounds] == [(0, 1, 2), (0, 1), (0, 1)]
    assert [len(record.rejected) for record in rounds] == [0, 1, 1]
    assert all("round must be" in reason for record in rounds for reason in record.rejected)
    assert sum("rejected: round" in line for line in told) == 2
    assert all(node.process.poll() is None for node in nodes)
