"""Which nodes were not let in, from lines as SuperLink of flwr 1.41 writes them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ownlet.server.certificates import make_certificates
from ownlet.server.control import public_key_bytes
from ownlet.server.refusals import RefusedNodes, fingerprint

UNKNOWN = "No SuperNode found with the given public key."
BUSY = "SuperNode with node ID 17720917618944766312 could not be activated."


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, hosts=[], num_nodes=2)
    return [folder / "nodes" / f"node-{number}.pub" for number in range(2)]


def line(key: bytes, why: str) -> str:
    where = "[/v1/fleet/activate-node][ApiError:2004] Attempted to register SuperNode"
    return f"ERROR :     {where} with public key: {key!r}, exception: {why}"


def test_each_refused_key_is_told_once_with_its_reason(keys: list[Path]) -> None:
    known, stranger = (public_key_bytes(path) for path in keys)
    told: list[str] = []
    refused = RefusedNodes({known: "node-0"}, told.append)
    for key, why in [(known, UNKNOWN), (known, BUSY), (known, BUSY), (stranger, UNKNOWN), (stranger, UNKNOWN)]:
        refused.read(line(key, why))
    refused.read("INFO :      [Fleet.DeactivateNode] Deactivated node_id=7489179510152528332")
    assert told == [
        "node-0 was not let in: another process is connected with its key, or was until a minute ago",
        f"a node was not let in: its key is not registered, {fingerprint(stranger)}",
    ]


def test_a_stranger_with_many_keys_does_not_fill_the_terminal() -> None:
    told: list[str] = []
    refused = RefusedNodes({}, told.append)
    for number in range(100):
        refused.read(line(b"key %d" % number, UNKNOWN))
    assert len(told) == 50


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_fingerprint_is_that_of_ssh_keygen(keys: list[Path]) -> None:
    shown = subprocess.run(["ssh-keygen", "-lf", keys[0]], capture_output=True, text=True, check=True).stdout
    assert fingerprint(public_key_bytes(keys[0])) == shown.split()[1]
