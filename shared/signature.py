"""Signatures with Ed25519 (RFC 8032): only who has the private key can make what a pinned public key admits.

What is signed begins with what it is for, so a signature under one purpose never passes for another, even of the same
key. A signature names its key by the first digits of the key's SHA-256: that tells a key which is not pinned from
content that was altered, and proves nothing by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ownlet.shared.errors import StateError, require

__all__ = ["PUBLIC_KEY_BYTES", "check_public_keys", "key_name", "sign", "verify"]

PUBLIC_KEY_BYTES = 32
_DOMAIN = b"ownlet signature 1\x00"


def key_name(public_key: bytes) -> str:
    """Return the name of a public key: 16 hexadecimal digits."""
    return sha256(public_key).hexdigest()[:16]


def sign(content: bytes, key: Ed25519PrivateKey, purpose: bytes) -> dict[str, str]:
    """Return a signature, as JSON can hold it.

    Args:
        content: all that is signed.
        key: the private key.
        purpose: what it is, for example ``b"rollout"``; verifying asks for the same.
    """
    public_key = key.public_key().public_bytes_raw()
    return {"key": key_name(public_key), "ed25519": key.sign(_message(content, purpose)).hex()}


def verify(content: bytes, signature: object, public_keys: Sequence[bytes], purpose: bytes, name: str) -> None:
    """Make sure that one of the pinned keys signed the content for this purpose.

    Args:
        content: all that is signed.
        signature: from ``sign``, or whatever stood in its place; None where nothing did.
        public_keys: those that are pinned, 32 bytes each.
        purpose: what it must be.
        name: of the content, for messages.

    Raises:
        StateError: no signature, one of another key, or one that does not hold.
    """
    pinned = {key_name(key): key for key in public_keys}
    if signature is None:
        raise StateError(f"{name} must be signed by a pinned key, {_list(pinned)}, got no signature")
    named = signature.get("key") if isinstance(signature, dict) else None
    if not isinstance(named, str) or named not in pinned:
        raise StateError(f"{name} must be signed by a pinned key, {_list(pinned)}, got key {str(named)[:16]}")
    try:
        raw = bytes.fromhex(signature["ed25519"]) if isinstance(signature, dict) else b""
        Ed25519PublicKey.from_public_bytes(pinned[named]).verify(raw, _message(content, purpose))
    except (InvalidSignature, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{name} must be what key {named} signed, got other content or an altered signature"
        ) from error


def check_public_keys(public_keys: Sequence[bytes]) -> None:
    """Make sure that keys can be pinned.

    Raises:
        ConfigError: none, or one that does not have 32 bytes.
    """
    require(len(public_keys) > 0, "public keys must be at least one where any is pinned", keys=0)
    for key in public_keys:
        right = isinstance(key, bytes) and len(key) == PUBLIC_KEY_BYTES
        require(right, f"public key must have {PUBLIC_KEY_BYTES} bytes", key=key)


def _message(content: bytes, purpose: bytes) -> bytes:
    return _DOMAIN + purpose + b"\x00" + content


def _list(pinned: Mapping[str, bytes]) -> str:
    return " or ".join(sorted(pinned))
