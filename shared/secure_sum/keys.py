"""The keys of one secure sum: who is who, who hides what from whom, and what the masks of a pair grow from.

Three pairs for each client, as in Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281, figure 4):

* an Ed25519 *identity* signs the other two, and the set of survivors;
* an X25519 *channel* pair seals shares on their way through the server (AES-256-GCM);
* an X25519 *mask* pair gives each pair of clients the key of its mask. Its private half is what neighbours hold
  shares of, so it must not be the channel's.

Every derived key is bound to a *transcript*, the hash of session, terms and all identities: a message of another
session, another direction or other terms does not open. A key serves one message, so the nonce may be fixed.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ownlet.shared.errors import FederationError

__all__ = [
    "KEY_BYTES",
    "SIGNATURE_BYTES",
    "TAG_BYTES",
    "channel_key",
    "is_signed",
    "is_usable",
    "mask_key",
    "new_identity",
    "new_private",
    "open_sealed",
    "public_identity",
    "public_of",
    "seal",
    "sign",
]

KEY_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16
_ONE_MESSAGE = bytes(12)  # the nonce: each key seals one message


def new_identity() -> bytes:
    """Return a new private identity, 32 bytes."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_identity(private: bytes) -> bytes:
    """Return the public half of an identity, 32 bytes."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def sign(private: bytes, purpose: bytes, *parts: bytes) -> bytes:
    """Return the signature of an identity, 64 bytes, over a purpose and parts."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(_joined(purpose, parts))


def is_signed(identity: bytes, signature: bytes, purpose: bytes, *parts: bytes) -> bool:
    """Tell whether an identity signed these parts for this purpose."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, _joined(purpose, parts))
    except (InvalidSignature, ValueError):
        return False
    return True


def new_private() -> bytes:
    """Return a new private X25519 key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Return the public half of an X25519 key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_usable(public: bytes) -> bool:
    """Tell whether an X25519 public key gives a secret at all: some points give everybody the same one."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return False
    return True


def channel_key(private: bytes, peer: bytes, transcript: bytes, sender: int, receiver: int) -> bytes:
    """Return the key that seals the one message from ``sender`` to ``receiver``.

    Raises:
        FederationError: the peer's public key is not a usable one.
    """
    return _derived(private, peer, b"ownlet secure sum channel 1", transcript, sender, receiver)


def mask_key(private: bytes, peer: bytes, transcript: bytes, one: int, other: int) -> bytes:
    """Return the key of the mask that two clients share; the order of their numbers does not matter.

    Raises:
        FederationError: the peer's public key is not a usable one.
    """
    return _derived(private, peer, b"ownlet secure sum mask 1", transcript, *sorted((one, other)))


def seal(key: bytes, plain: bytes) -> bytes:
    """Return ciphertext and tag; a key must seal one message only."""
    return AESGCM(key).encrypt(_ONE_MESSAGE, plain, None)


def open_sealed(key: bytes, sealed: bytes) -> bytes | None:
    """Return what was sealed, or None where it was not sealed with this key or is altered."""
    try:
        return AESGCM(key).decrypt(_ONE_MESSAGE, sealed, None)
    except (InvalidTag, ValueError):
        return None


def _derived(private: bytes, peer: bytes, purpose: bytes, transcript: bytes, first: int, second: int) -> bytes:
    try:
        common = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:  # a point of small order, which gives everybody the same secret
        raise FederationError("public key must be a point of large order, got another") from error
    info = _joined(purpose, (transcript, first.to_bytes(4, "big"), second.to_bytes(4, "big")))
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(common)


def _joined(purpose: bytes, parts: tuple[bytes, ...]) -> bytes:
    """Return purpose and parts as bytes that no other parts give."""
    digest = hashlib.sha256()
    for part in (purpose, *parts):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()
