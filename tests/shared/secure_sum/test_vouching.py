"""Vouchers hold for one key, one session and one identity."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ownlet.server.certificates import NODES_FOLDER, make_certificates
from ownlet.shared.errors import ConfigError, PrivacyError
from ownlet.shared.secure_sum.vouching import VOUCHER_BYTES, Vouching, check_vouchers, read_vouching, voucher_key

SESSION, IDENTITY = os.urandom(32), os.urandom(32)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certificates(folder, hosts=[], num_nodes=3)
    return folder / NODES_FOLDER


def vouching(nodes: Path, number: int) -> Vouching:
    read = read_vouching(nodes / f"node-{number}", nodes)
    assert read is not None
    return read


def write_openssh(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> Path:
    form = serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return path


def test_a_voucher_holds_for_its_session_and_identity_only(nodes: Path) -> None:
    voucher = vouching(nodes, 0).voucher(SESSION, IDENTITY)
    assert len(voucher) == VOUCHER_BYTES
    point = voucher_key(voucher, SESSION, IDENTITY)
    assert point is not None
    assert point in (vouching(nodes, 0).peers or ())
    assert voucher_key(voucher, os.urandom(32), IDENTITY) is None
    assert voucher_key(voucher, SESSION, os.urandom(32)) is None
    assert voucher_key(vouching(nodes, 1).voucher(SESSION, IDENTITY)[:49] + voucher[49:], SESSION, IDENTITY) is None
    assert voucher_key(bytes(VOUCHER_BYTES), SESSION, IDENTITY) is None


def test_every_identity_needs_another_known_key(nodes: Path) -> None:
    peers = vouching(nodes, 0).peers
    assert peers is not None
    assert len(peers) == 3
    identities = [os.urandom(32) for _ in range(3)]
    vouchers = [vouching(nodes, number).voucher(SESSION, identity) for number, identity in enumerate(identities)]
    check_vouchers(peers, SESSION, identities, vouchers)
    stranger = Vouching(key=ec.generate_private_key(ec.SECP384R1())).voucher(SESSION, identities[2])
    twice = vouching(nodes, 1).voucher(SESSION, identities[2])
    for bad, rule in [
        ([*vouchers[:2], stranger], "keys among the peers"),
        ([*vouchers[:2], b""], "keys among the peers"),
        ([vouchers[1], vouchers[0], vouchers[2]], "keys among the peers"),
        ([], "keys among the peers"),
        ([*vouchers[:2], twice], "each key must vouch for one"),
    ]:
        with pytest.raises(PrivacyError, match=rule):
            check_vouchers(peers, SESSION, identities, bad)


def test_keys_that_cannot_vouch_are_refused_where_there_are_peers(nodes: Path, tmp_path: Path) -> None:
    other = write_openssh(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    assert read_vouching(other, None) is None
    unknown = write_openssh(tmp_path / "unknown", ec.generate_private_key(ec.SECP384R1()))
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "x.pub").write_text("no key")
    for key, peers, rule in [
        (other, nodes, "key must be of ECDSA on P-384"),
        (unknown, nodes, "peers must hold this node's public key"),
        (unknown, tmp_path / "missing", "peers must hold this node's public key, too, got 0 others"),
        (unknown, tmp_path / "peers", "peers must be OpenSSH public keys"),
        (tmp_path / "missing", nodes, "key must be an OpenSSH private key"),
    ]:
        with pytest.raises(ConfigError, match=rule):
            read_vouching(key, peers)
