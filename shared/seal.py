"""One key of the app, several uses: bytes sealed at rest, and a key of its own for the privacy ledger.

HKDF-SHA256 (RFC 5869, https://www.rfc-editor.org/rfc/rfc5869) turns the app's 32 bytes into one key per use, so no key
ever serves two algorithms. Sealed bytes are AES-256-GCM (NIST SP 800-38D): a random 96-bit nonce, the ciphertext, the
128-bit tag. The purpose is associated data, so a sealed history row cannot be put in the place of a sealed adapter.

What it does not do: without an app key nothing is encrypted, and an old sealed file put back in its place opens (that
is what the ledger's sequence number is for). Random nonces are safe for 2^32 sealed values under one key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ownlet.shared.errors import ConfigError, DataError, require

__all__ = ["KEY_BYTES", "Keys", "Seal", "read_key"]

KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys that one app key stands for; all empty where the app gave none.

    Args:
        ledger: of the HMAC over ledger entries.
        state: of the AES-GCM over history rows, adapters and unfinished trainings.
    """

    ledger: bytes = field(default=b"", repr=False)
    state: bytes = field(default=b"", repr=False)

    @staticmethod
    def of(key: bytes | None) -> Keys:
        """Derive the keys.

        Args:
            key: 32 random bytes that the app keeps in the platform's key store; None for no key.

        Raises:
            ConfigError: the key has another length.
        """
        if key is None:
            return Keys()
        _require_length("key", key)
        return Keys(ledger=_derive(key, b"ownlet ledger 1"), state=_derive(key, b"ownlet state 1"))


class Seal:
    """Seals bytes under the state key; without a key they pass through as they are.

    Args:
        state_key: ``Keys.state``; None or empty for no sealing.

    Raises:
        ConfigError: the key has another length than 32 bytes.
    """

    def __init__(self, state_key: bytes | None = None) -> None:
        if state_key:
            _require_length("state_key", state_key)
        self._cipher = AESGCM(state_key) if state_key else None

    @property
    def seals(self) -> bool:
        """Whether there is a key."""
        return self._cipher is not None

    def seal(self, plain: bytes, purpose: bytes) -> bytes:
        """Return nonce, ciphertext and tag, 28 bytes more than ``plain``; ``plain`` itself without a key.

        Args:
            plain: what to hide.
            purpose: what it is, for example ``b"history"``; opening asks for the same.
        """
        if self._cipher is None:
            return plain
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plain, purpose)

    def open(self, sealed: bytes, purpose: bytes) -> bytes:
        """Return what was sealed for this purpose.

        Raises:
            DataError: the bytes were sealed under another key or for another purpose, or are altered.
        """
        if self._cipher is None:
            return sealed
        if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
            raise DataError(f"sealed {_name(purpose)} must have at least 28 bytes, got {len(sealed)}")
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], purpose)
        except InvalidTag as error:
            raise DataError(f"sealed {_name(purpose)} must open, got another key or altered bytes") from error


def read_key(path: Path) -> bytes:
    """Return an app's key from a file of 32 bytes or 64 hex digits.

    Raises:
        ConfigError: the file cannot be read, or holds no key; the message never shows its content.
    """
    try:
        content = path.read_bytes()
        key = content if len(content) == KEY_BYTES else bytes.fromhex(content.decode().strip())
    except OSError as error:
        raise ConfigError(f"key_file must be readable, got {error}") from error
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"key_file must hold 32 bytes or 64 hex digits, got {path}")
    return key


def _derive(key: bytes, use: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=use).derive(key)


def _require_length(name: str, key: bytes) -> None:
    require(len(key) == KEY_BYTES, f"{name} must have {KEY_BYTES} bytes", length=len(key))  # never the key itself


def _name(purpose: bytes) -> str:
    return purpose.decode(errors="replace")
