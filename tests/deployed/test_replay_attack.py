"""Who sends an old update again gets nothing in, and who submits other code than ownlet's has no node run it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ownlet.server.deployment import public_config
from ownlet.server.serve import Link, serve
from ownlet.server.shim_app import APP_FILES, write_shim_app
from ownlet.shared.adapter import load_adapter
from ownlet.shared.errors import OwnletError
from ownlet.simulations.federated_run import FederatedRunConfig
from ownlet.simulations.replay import read_rounds
from ownlet.simulations.serve_run import prepare_server
from ownlet.simulations.setting import DataConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),  # flwr 1.41 with pathspec 1.1
]

# What an attacker does to a machine of his own: its node keeps its first answer to `train` and sends it for ever after.
DISHONEST = """
import os
from pathlib import Path

if os.environ.get("OWNLET_NODE"):  # a process that SuperNode starts
    from flwr.app import Message
    from flwr.clientapp import ClientApp
    from ownlet.shared.wire import records_from_bytes, records_to_bytes
    from ownlet.simulations import deployed_node

    honest_app = deployed_node.node_app

    def node_app():
        honest, app = honest_app(), ClientApp()

        @app.query("place")
        def place(message, context):
            return honest(message, context)

        @app.train()
        def train(message, context):
            kept = Path(os.environ["FLWR_HOME"]) / "kept"
            if not kept.exists():
                kept.write_bytes(records_to_bytes(honest(message, context).content))
            return Message(records_from_bytes(kept.read_bytes()), reply_to=message)

        return app

    deployed_node.node_app = node_app
"""


def test_an_old_update_sent_again_is_refused_and_counted(
    place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "sitecustomize.py").write_text(DISHONEST)
    for number in range(2):
        place.join(number, "--partitions", 3)
    with monkeypatch.context() as machine:
        machine.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "changed"), os.environ.get("PYTHONPATH", "")]))
        place.join(2, "--partitions", 3)
    server = place.serve("--nodes", 3, "--min-nodes", 3, "--rounds", 3)
    assert server.wait() == 0, server.text
    rounds = read_rounds(place.run.rounds)
    assert [record.admitted for record in rounds] == [(0, 1, 2), (0, 1), (0, 1)]
    assert [len(record.rejected) for record in rounds] == [0, 1, 1]
    assert all("round must be" in reason for record in rounds for reason in record.rejected)
    assert server.text.count("rejected: round") == 2


def test_nodes_run_no_other_code_than_their_own(place: Any, tmp_path: Path) -> None:
    config = FederatedRunConfig(base=place.base, data=DataConfig(path=place.data, core=0), num_nodes=2)
    config = replace(config, federation=replace(config.federation, reply_timeout_seconds=45.0))
    deployment = prepare_server(
        place.run, config, bundle=None, num_users=None, min_nodes=2, wait_seconds=45.0, simulated=True
    )
    spec, _, _ = load_adapter(place.run.start)
    write_shim_app(place.run.app, public_config(deployment, spec))
    (name,) = (name for name in APP_FILES if "client" in name)
    proof = tmp_path / "was-here"
    code = APP_FILES[name] + f"open({str(proof)!r}, 'w').close()\n"
    (place.run.app / name).write_text(code)
    link = Link(
        host="127.0.0.1", port=place.port, certs=place.certs, node_keys=sorted((place.certs / "nodes").glob("*.pub"))
    )
    nodes = [place.join(number, "--partitions", 2) for number in range(2)]
    with pytest.raises(OwnletError):  # nobody says which partition it hosts
        serve(place.run, link, print)
    for node in nodes:
        assert node.process.poll() is None
        assert f"app of a run must be ownlet's own, got another {name}" in node.text
    assert not proof.exists()
