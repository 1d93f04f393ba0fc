"""What ``make_certificates`` writes holds in a real TLS handshake, and under OpenSSH's own readers."""

import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from ownlet.server.certificates import (
    CA_FILE,
    NODES_FOLDER,
    SERVER_CERT_FILE,
    SERVER_KEY_FILE,
    make_certificates,
    node_name,
)
from ownlet.shared.errors import ConfigError


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, hosts=["fl.example.com", "192.0.2.7"], num_nodes=2)
    return folder


def handshake(certs: Path, ca: Path, name: str) -> None:
    """Connect once by TLS to a server with the server certificate, asking for a name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs / SERVER_CERT_FILE, certs / SERVER_KEY_FILE)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    client.load_verify_locations(ca)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fl.example.com", "192.0.2.7"])
def test_a_node_that_knows_the_ca_accepts_the_server(certs: Path, name: str):
    handshake(certs, certs / CA_FILE, name)


def test_a_node_refuses_another_name_and_another_ca(certs: Path, tmp_path: Path):
    with pytest.raises(ssl.SSLCertVerificationError, match=r"doesn't match|mismatch"):
        handshake(certs, certs / CA_FILE, "elsewhere.example")
    make_certificates(tmp_path, hosts=["localhost"], num_nodes=0)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(certs, tmp_path / CA_FILE, "localhost")


def test_node_keys_are_pairs_on_p384_that_differ(certs: Path):
    publics = set()
    for number in range(2):
        path = certs / NODES_FOLDER / node_name(number)
        private = load_ssh_private_key(path.read_bytes(), password=None)
        public = load_ssh_public_key(path.with_suffix(".pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert private.public_key() == public
        publics.add(path.with_suffix(".pub").read_bytes())
    assert len(publics) == 2


def test_private_files_are_their_owners_alone(certs: Path):
    private = [certs / "ca.key", certs / SERVER_KEY_FILE, certs / NODES_FOLDER / "node-0"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in private] == [0o600] * 3


def test_files_that_are_there_stay_unless_forced(tmp_path: Path):
    make_certificates(tmp_path, hosts=["localhost"], num_nodes=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="must not be overwritten without --force"):
        make_certificates(tmp_path, hosts=["localhost"], num_nodes=2)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    make_certificates(tmp_path, hosts=["localhost"], num_nodes=2, force=True)
    assert all(path.read_bytes() != content for path, content in before.items())


def test_an_empty_host_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="hosts must be names"):
        make_certificates(tmp_path, hosts=[""], num_nodes=1)
