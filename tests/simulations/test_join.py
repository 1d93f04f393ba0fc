"""The pieces of ``ownlet join`` that need no SuperNode: connection, data, and what a node hosts."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ownlet.device.budget import Budget
from ownlet.server.certificates import CA_FILE, SERVER_CERT_FILE, SERVER_KEY_FILE, make_certificates
from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.interactions import Item
from ownlet.shared.wire import Place
from ownlet.simulations.deployed_node import NodeSettings, NodeShard
from ownlet.simulations.join import Connection
from ownlet.simulations.node_data import own_users, simulated_users
from ownlet.simulations.setting import DataConfig, load_interactions, prepare
from ownlet.simulations.store import EventStore


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, hosts=[], num_nodes=1)
    return folder


@contextmanager
def tls_server(certs: Path) -> Iterator[int]:
    """Greet one client by TLS on a port of this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs / SERVER_CERT_FILE, certs / SERVER_KEY_FILE)
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        client, _ = listener.accept()
        with client:
            try:
                context.wrap_socket(client, server_side=True).close()
            except (ssl.SSLError, OSError):
                return

    thread = threading.Thread(target=greet)
    thread.start()
    yield listener.getsockname()[1]
    thread.join()
    listener.close()


def connection(certs: Path, server: str) -> Connection:
    return Connection(server=server, ca=certs / CA_FILE, key=certs / "nodes" / "node-0")


def test_a_server_with_a_certificate_of_the_ca_is_reachable(certs: Path):
    with tls_server(certs) as port:
        assert connection(certs, f"localhost:{port}").is_reachable()
    assert not connection(certs, f"localhost:{port}").is_reachable()  # it has gone


def test_a_server_with_another_certificate_is_an_error_and_not_waited_for(certs: Path, tmp_path: Path):
    make_certificates(tmp_path, hosts=[], num_nodes=0)
    with (
        tls_server(tmp_path) as port,
        pytest.raises(ConfigError, match=rf"certificate of .*ca.crt, got localhost:{port}: "),
    ):
        connection(certs, f"localhost:{port}").is_reachable()


def test_what_is_missing_is_named(certs: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="server must be HOST:PORT, got server='localhost'"):
        connection(certs, "localhost").check()
    with pytest.raises(ConfigError, match=r"certs must hold the CA's certificate, got .*ca.crt"):
        Connection(server="a:1", ca=tmp_path / "ca.crt", key=certs / "nodes" / "node-0").check()
    with pytest.raises(ConfigError, match="key must be an OpenSSH private key"):
        Connection(server="a:1", ca=certs / CA_FILE, key=certs / "nodes" / "node-0.pub").check()
    connection(certs, "localhost:1").check()


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    path = tmp_path / "events.csv"
    rows = ["user,item,timestamp", "ann,a,1", "ann,b,2", "ann,x,3", "bob,b,1", "bob,a,2", "cyd,a,1"]
    path.write_text("\n".join(rows))
    return DataConfig(path=path, core=0)


def test_a_nodes_own_users_are_numbered_for_its_partition_and_unknown_items_left_out(data: DataConfig):
    catalogue = [Item(number=1, id="b", title=""), Item(number=2, id="a", title="")]
    histories = own_users(load_interactions(data), catalogue, Place(partition=1, num_partitions=3))
    assert [history.tolist() for history in histories] == [[], [2, 1], [], [], [1, 2], [], [], [2], []]


def test_simulated_nodes_together_host_what_the_simulation_trains_on(tmp_path: Path):
    source = DataConfig(num_users=60, num_items=200, core=0)
    wanted = [history.tolist() for history in prepare(source).devices]
    parts = [simulated_users(source, Place(partition=part, num_partitions=3)) for part in range(3)]
    assert [parts[user % 3][user].tolist() for user in range(len(wanted))] == wanted
    assert all(len(parts[(user + 1) % 3][user]) == 0 for user in range(len(wanted)))


class Engine:
    spec = None


def test_a_user_whom_the_node_has_never_seen_has_no_windows():
    store = EventStore.of([np.array([1, 2, 3]), np.array([4, 5])])
    shard = NodeShard(Engine(), store, WindowConfig(window_length=4))  # type: ignore[arg-type]
    assert [len(one) for one in shard.windows([0, 1])] == [1, 1]
    found = shard.windows([1, 7, 0])
    assert [len(one) for one in found] == [1, 0, 1]
    assert found[2].history[0].tolist() == [1, 2, 0, 0]


def test_settings_of_a_node_come_back_from_their_file_with_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    NodeSettings(state=Path("n"), base=Path("b"), store=Path("s"), budget=Budget(epsilon=2.0)).save(Path("node.json"))
    found = NodeSettings.load(Path("node.json"))
    assert (found.state, found.base, found.bundle) == (tmp_path / "n", tmp_path / "b", None)
    assert (found.budget.epsilon, found.simulated) == (2.0, False)
    Path("node.json").write_text("[]")
    with pytest.raises(DataError, match="must be readable"):
        NodeSettings.load(Path("node.json"))
