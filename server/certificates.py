"""Keys for a federation in development: a CA, the server's certificate, and one key pair per node.

Elliptic curve P-384 throughout, as Flower asks of nodes. A node checks the server by the CA's certificate; the server
knows a node by its public key, which it registers before the node connects. Real deployments take the server's
certificate from their own CA, and each node makes its own key where it runs, so that no private key ever travels.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ownlet.shared.errors import ConfigError, require
from ownlet.shared.store import write_atomic

__all__ = [
    "CA_FILE",
    "LOCAL_HOSTS",
    "NODES_FOLDER",
    "SERVER_CERT_FILE",
    "SERVER_KEY_FILE",
    "make_certificates",
    "node_name",
]

CA_FILE, SERVER_CERT_FILE, SERVER_KEY_FILE = "ca.crt", "server.crt", "server.key"
NODES_FOLDER = "nodes"
"""``nodes/node-0`` is the private key of a node, ``nodes/node-0.pub`` the one that the server registers."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

_CA_KEY_FILE = "ca.key"
_DAYS = 365
_PUBLIC, _PRIVATE = 0o644, 0o600


def node_name(number: int) -> str:
    """Return the name of a node's key file."""
    return f"node-{number}"


def make_certificates(folder: Path, *, hosts: Sequence[str], num_nodes: int, force: bool = False) -> list[Path]:
    """Write a CA, a server certificate and node keys; return the files.

    Args:
        folder: made if it is missing.
        hosts: names and addresses under which nodes reach the server; those of the machine itself always go with them,
            since the parts of the server talk to each other by TLS, too.
        num_nodes: how many key pairs.
        force: replace files that are there. Nodes then need the new ``ca.crt``, and the server new public keys.

    Raises:
        ConfigError: an empty host, a file is there already, or the disk refuses.
    """
    require(all(hosts), "hosts must be names or addresses", hosts=list(hosts))
    require(num_nodes >= 0, "nodes must not be negative", nodes=num_nodes)
    contents = _contents(tuple(dict.fromkeys((*LOCAL_HOSTS, *hosts))), num_nodes)
    there = [str(folder / name) for name in contents if (folder / name).exists()]
    if there and not force:
        raise ConfigError(f"files must not be overwritten without --force, got {', '.join(there)}")
    try:
        for name, (content, mode) in contents.items():
            write_atomic(folder / name, content, mode=mode)
    except OSError as error:
        raise ConfigError(f"folder of certificates must be writable, got {folder}: {error}") from error
    return [folder / name for name in contents]


def _contents(hosts: Sequence[str], num_nodes: int) -> dict[str, tuple[bytes, int]]:
    """Return file name -> content and mode."""
    ca_key, server_key = _new_key(), _new_key()
    ca = _ca_certificate(ca_key)
    server = _server_certificate(server_key, hosts, ca, ca_key)
    found = {
        _CA_KEY_FILE: (_private_pem(ca_key), _PRIVATE),
        CA_FILE: (ca.public_bytes(serialization.Encoding.PEM), _PUBLIC),
        SERVER_KEY_FILE: (_private_pem(server_key), _PRIVATE),
        SERVER_CERT_FILE: (server.public_bytes(serialization.Encoding.PEM), _PUBLIC),
    }
    for number in range(num_nodes):
        key, name = _new_key(), f"{NODES_FOLDER}/{node_name(number)}"
        found[name] = (_private_openssh(key), _PRIVATE)
        found[f"{name}.pub"] = (_public_openssh(key, node_name(number)), _PUBLIC)
    return found


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = _name("ownlet development CA")
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey, hosts: Sequence[str], ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    usage = _usage(digital_signature=True, key_cert_sign=False, crl_sign=False)
    return (
        _builder(_name("ownlet server"), ca.subject, key)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of nodes differ
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
    )


def _usage(*, digital_signature: bool, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _private_openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.PrivateFormat.OpenSSH  # what flower-supernode reads
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _public_openssh(key: ec.EllipticCurvePrivateKey, comment: str) -> bytes:
    form = serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, form) + f" {comment}\n".encode()
