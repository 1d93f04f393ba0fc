"""JSON that carries a SHA-256 of itself, read strictly.

The bytes must be exactly those that would be written for the values they hold, so every altered byte shows, also one
that still makes valid JSON. The hash finds accidents; whoever may write the file can write another hash.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from ownlet.shared.errors import StoreError

__all__ = ["opened_json", "sealed_json"]


def sealed_json(values: dict[str, Any]) -> bytes:
    """Return values as JSON that also holds the SHA-256 of the values.

    Args:
        values: anything that JSON can hold; ``format`` names what it is, and ``sha256`` must not be in it.
    """
    digest = sha256(_json(values)).hexdigest()
    return _json({**values, "sha256": digest})


def opened_json(content: bytes, name: str, expected: str) -> dict[str, Any]:
    """Return the values that ``sealed_json`` wrote, without format and hash.

    Where only ownlet writes the file they need no more checks, since the hash holds.

    Args:
        content: of the file.
        name: of the file, for messages.
        expected: its format.

    Raises:
        StoreError: altered, torn, or of another format.
    """
    try:
        values = json.loads(content)
        found = values.pop("format")
        written = {"format": found, **{key: value for key, value in values.items() if key != "sha256"}}
        whole = sealed_json(written) == content
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{name} must be JSON as it was written, got other content") from error
    if not whole:
        raise StoreError(f"{name} must have the sha256 it names, got an altered file")
    if found != expected:
        raise StoreError(f"{name} must have format {expected}, got {found!r}")
    del values["sha256"]
    return dict(values)


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"
