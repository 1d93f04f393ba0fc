"""Who is who in a secure sum: the key that a node is registered with vouches for the identity that it made for the sum.

The server hands out the roster of identities. Where nobody vouches for them it could invent clients, or stand between
every two. A node that was given the public keys of the others, by somebody else than the server, takes part only among
those: it wants every identity of the roster signed by one of these keys, each key once, for this very session.

An identity serves one sum. Every honest client's is new, so the transcript is, and no signature of an earlier sum is
worth anything in this one, even where the server names both alike.

A voucher is a public key of P-384 (49 bytes, compressed) and its signature over session and identity (ECDSA with
SHA-384, r and s of 48 bytes each), since that is the kind of key that Flower asks of nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import SSHPrivateKeyTypes

from ownlet.shared.errors import ConfigError, PrivacyError

__all__ = ["VOUCHER_BYTES", "Vouching", "check_vouchers", "read_node_key", "read_vouching", "voucher_key"]

_HALF = 48
_POINT = 1 + _HALF
VOUCHER_BYTES = _POINT + 2 * _HALF
_CURVE, _SIGNED = ec.SECP384R1, ec.ECDSA(hashes.SHA384())
_PURPOSE = b"ownlet secure sum voucher 1"


@dataclass(frozen=True, kw_only=True)
class Vouching:
    """What a node vouches with, and whom it trusts.

    Args:
        key: its own, on P-384.
        peers: points of the keys that may vouch for others, its own among them; None trusts the server's roster.
    """

    key: ec.EllipticCurvePrivateKey
    peers: frozenset[bytes] | None = None

    def voucher(self, session: bytes, identity: bytes) -> bytes:
        """Return what says that an identity of a session is this node's."""
        r, s = decode_dss_signature(self.key.sign(_told(session, identity), _SIGNED))
        return _point(self.key.public_key()) + r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")


def read_node_key(path: Path) -> SSHPrivateKeyTypes:
    """Read a node's private key, of any kind.

    Raises:
        ConfigError: not an OpenSSH file without password.
    """
    try:
        return serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key must be an OpenSSH private key without password, got {path}: {error}") from error


def read_vouching(key: Path, peers: Path | None) -> Vouching | None:
    """Read a node's key, and the public keys of all nodes; None without peers where the key is of another curve.

    Args:
        key: OpenSSH file without password.
        peers: folder of ``.pub`` files, this node's among them.

    Raises:
        ConfigError: one cannot be read, is not of P-384, or the own one is not among the peers.
    """
    own = read_node_key(key)
    if not isinstance(own, ec.EllipticCurvePrivateKey) or not isinstance(own.curve, _CURVE):
        if peers is None:
            return None  # Flower takes other curves, too
        raise ConfigError(f"key must be of ECDSA on P-384, got another kind in {key}")
    if peers is None:
        return Vouching(key=own)
    known = frozenset(_point_in(path) for path in sorted(peers.glob("*.pub")))
    if _point(own.public_key()) not in known:
        raise ConfigError(f"peers must hold this node's public key, too, got {len(known)} others in {peers}")
    return Vouching(key=own, peers=known)


def voucher_key(voucher: bytes, session: bytes, identity: bytes) -> bytes | None:
    """Return the point of the key that signed a voucher; None where it is not for this identity and session."""
    point, r, s = voucher[:_POINT], voucher[_POINT:-_HALF], voucher[-_HALF:]
    signature = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(_CURVE(), point).verify(
            signature, _told(session, identity), _SIGNED
        )
    except (InvalidSignature, ValueError):
        return None
    return point


def check_vouchers(
    peers: frozenset[bytes], session: bytes, identities: Sequence[bytes], vouchers: Sequence[bytes]
) -> None:
    """Make sure that every identity is vouched for by another one of these keys.

    Args:
        peers: points of the keys that may vouch.
        session: of the sum.
        identities: of all clients.
        vouchers: of all clients; none where no client has one.

    Raises:
        PrivacyError: an identity has none, or one of an unknown key, or a key vouches twice.
    """
    found: set[bytes] = set()
    for index, identity in enumerate(identities):
        voucher = vouchers[index] if vouchers else b""
        point = voucher_key(voucher, session, identity) if voucher else None
        if point is None or point not in peers:
            raise PrivacyError(f"identities must be vouched for by keys among the peers, got another for index={index}")
        if point in found:
            raise PrivacyError(f"each key must vouch for one identity, got a second for index={index}")
        found.add(point)


def _told(session: bytes, identity: bytes) -> bytes:
    return _PURPOSE + hashlib.sha256(session).digest() + hashlib.sha256(identity).digest()


def _point(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def _point_in(path: Path) -> bytes:
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"peers must be OpenSSH public keys, got {path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVE):
        raise ConfigError(f"peers must be keys of ECDSA on P-384, got another kind in {path}")
    return _point(key)
