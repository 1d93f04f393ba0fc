"""The key that a registry signs its manifests with: made once, kept off web servers, its public half pinned by apps."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ownlet.shared.errors import ConfigError, StateError
from ownlet.shared.rollout import is_signed
from ownlet.shared.store import write_atomic

__all__ = ["PRIVATE_FILE", "PUBLIC_FILE", "check_not_signed", "make_rollout_key", "read_rollout_key"]

PRIVATE_FILE, PUBLIC_FILE = "rollout.key", "rollout.pub"
"""PKCS #8 in PEM, as OpenSSL reads it; and the public key's 32 bytes as hexadecimal digits."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def make_rollout_key(folder: Path) -> bytes:
    """Write a fresh key pair; return the public key, 32 bytes.

    Args:
        folder: made if it is missing; not the one that a web server hands out.

    Raises:
        ConfigError: a file is there already, or the disk refuses.
    """
    there = [str(folder / name) for name in (PRIVATE_FILE, PUBLIC_FILE) if (folder / name).exists()]
    if there:
        raise ConfigError(f"files must not be overwritten: devices pin their key, got {', '.join(there)}")
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes_raw()
    try:
        write_atomic(folder / PRIVATE_FILE, private, mode=0o600)
        write_atomic(folder / PUBLIC_FILE, public.hex().encode() + b"\n", mode=0o644)
    except OSError as error:
        raise ConfigError(f"folder of the key must be writable, got {folder}: {error}") from error
    return public


def read_rollout_key(path: Path) -> Ed25519PrivateKey:
    """Return the private key in a file that nobody else may read.

    Raises:
        ConfigError: no such file, others may read it, or it holds no Ed25519 key; the message never shows its content.
    """
    try:
        mode, content = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(f"signing key must be readable, got {error}") from error
    if mode & _OTHERS:
        raise ConfigError(f"signing key must be its owner's alone (chmod 600), got mode {mode & 0o777:o} of {path}")
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"signing key must be an Ed25519 key in PEM without password, got {path}")
    return key


def check_not_signed(manifest: Path) -> None:
    """Make sure that an unsigned manifest may take this one's place.

    Raises:
        ConfigError: it is signed: devices that pin a key would refuse what comes after it.
    """
    try:
        signed = is_signed(manifest.read_bytes())
    except (FileNotFoundError, StateError):  # none there, or a damaged one
        return
    if signed:
        raise ConfigError(f"key must be given where the manifest before was signed, got none for {manifest}")
