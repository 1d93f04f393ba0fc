"""One version in a store: its folder, its document and how to see that it is what was published.

``version.json`` and the pointer to the current version are JSON that carries a SHA-256 of itself. Both are read
strictly: the bytes must be exactly those that would be written for the values they hold, so every altered byte shows,
also one that still makes valid JSON. The hashes find accidents; they are no protection against somebody who may write
to the folder.

Nothing here writes; ``shared/store.py`` does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ownlet.shared.errors import StoreError, require
from ownlet.shared.sealed_json import opened_json, sealed_json

__all__ = [
    "DOCUMENT_FILE",
    "POINTER_FILE",
    "REMOVED",
    "Damage",
    "FileEntry",
    "Version",
    "check_file_name",
    "encode_pointer",
    "encode_version",
    "inspect_version",
    "list_numbers",
    "plain_metadata",
    "pointed_number",
    "read_document",
    "read_pointer",
    "resolve_current",
    "version_path",
]

DOCUMENT_FILE = "version.json"
POINTER_FILE = "current"
REMOVED = ".removed"  # behind the number of a version on its way out

_VERSION_FORMAT = "ownlet-version-1"
_POINTER_FORMAT = "ownlet-current-1"
_FOLDER_NAME = re.compile(r"([0-9]{6,})(\.removed)?")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """Length and hash of one file of a version.

    Args:
        size: bytes.
        sha256: of the content, in hexadecimal.
    """

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> FileEntry:
        """Return the entry of a file with this content."""
        return cls(size=len(content), sha256=sha256(content).hexdigest())

    def check(self, name: str, content: bytes) -> bytes:
        """Return the content if it is the one that was published.

        Raises:
            StoreError: another length or hash.
        """
        if len(content) != self.size:
            raise StoreError(f"file {name} must have {self.size} bytes, got {len(content)}")
        if sha256(content).hexdigest() != self.sha256:
            raise StoreError(f"file {name} must have the sha256 that was published, got an altered file")
        return content


@dataclass(frozen=True, kw_only=True)
class Version:
    """One published version; it never changes.

    Args:
        number: counted from 1 in its store, never given twice.
        parent: the number of the version that it was made from.
        created: unix seconds by the clock of the device; for people to read, nothing is ordered by it.
        metadata: what the publisher wrote down, as JSON gives it back.
        files: name of each file, and its entry.
        made_current: it was published as the current version, not as a candidate.
    """

    number: int
    parent: int | None
    created: float
    metadata: Mapping[str, Any]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    made_current: bool = True


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A version that is not what was published, and why."""

    number: int
    reason: str


def check_file_name(name: str) -> None:
    """Refuse names that could leave the version's folder, hide in it, or stand for its document.

    Raises:
        ConfigError: not a plain name.
    """
    plain = isinstance(name, str) and bool(_FILE_NAME.fullmatch(name)) and name != DOCUMENT_FILE
    require(plain, f"file name must be letters, digits, '._-', no leading dot, and not {DOCUMENT_FILE}", name=name)


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as it will be read back.

    Raises:
        ConfigError: it is not a JSON object.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        require(False, f"metadata must be JSON without NaN ({error})", metadata=metadata)
    return plain


def encode_version(version: Version) -> bytes:
    """Return the content of ``version.json``."""
    return sealed_json({"format": _VERSION_FORMAT, **asdict(version)})


def version_path(store: Path, number: int) -> Path:
    """Return the folder of a version."""
    return store / f"{number:06d}"


def list_numbers(store: Path) -> Iterator[tuple[int, bool]]:
    """Yield every number that a folder in a store stands for, in any order, and whether it is a removed one."""
    try:
        names = os.listdir(store)
    except FileNotFoundError:
        return
    for name in names:
        match = _FOLDER_NAME.fullmatch(name)
        if match and int(match[1]) > 0 and f"{int(match[1]):06d}" == match[1]:
            yield int(match[1]), match[2] is not None


def read_document(store: Path, number: int) -> Version:
    """Read what ``encode_version`` wrote; the files themselves are not looked at.

    Raises:
        OSError: it is not there, or cannot be read.
        StoreError: altered, torn, of another folder, or of a newer ownlet.
    """
    content = (version_path(store, number) / DOCUMENT_FILE).read_bytes()
    values = opened_json(content, DOCUMENT_FILE, _VERSION_FORMAT)
    files = {name: FileEntry(**entry) for name, entry in values.pop("files").items()}
    version = Version(**values, files=files)
    if version.number != number:
        raise StoreError(f"{DOCUMENT_FILE} must be of version {number}, got one of version {version.number}")
    return version


def inspect_version(store: Path, number: int) -> Version | Damage | None:
    """Return a version after reading all its files, or what is wrong with it, or None where there is none."""
    folder = version_path(store, number)
    try:
        version = read_document(store, number)
        for name, entry in version.files.items():
            entry.check(name, (folder / name).read_bytes())
        return version
    except OSError as error:
        reason = f"file {Path(error.filename or '').name} must be readable, got: {error.strerror}"
    except StoreError as error:
        reason = str(error)
    if not os.path.lexists(folder):
        return None  # removed while we looked; a removed number never comes back
    return Damage(number=number, reason=reason)


def encode_pointer(number: int) -> bytes:
    """Return the content of ``current``; 0 stands for none."""
    return sealed_json({"format": _POINTER_FORMAT, "number": number})


def read_pointer(store: Path) -> bytes | None:
    """Return the content of ``current``, None where there is no such file."""
    try:
        return (store / POINTER_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return os.fsencode(f"unreadable: {error.strerror}")


def pointed_number(pointer: bytes | None) -> int | None:
    """Return the number in a pointer, None where it is lost or damaged."""
    try:
        return None if pointer is None else _decode_pointer(pointer)
    except StoreError:
        return None


def resolve_current(store: Path, pointer: bytes | None) -> tuple[Version | None, str]:
    """Find the version that a pointer leads to, or the one that stands in for it.

    Args:
        store: the folder.
        pointer: from ``read_pointer``.

    Returns:
        The version, None for none, and what went wrong on the way; empty when all is well.
    """
    if pointer is None:
        lost = any(not removed for _, removed in list_numbers(store))
        return _newest_released(store), f"file {POINTER_FILE} must be there, got none" if lost else ""
    try:
        number = _decode_pointer(pointer)
    except StoreError as error:
        return _newest_released(store), str(error)
    found = inspect_version(store, number) if number else None
    if isinstance(found, Version) or number == 0:
        return found if isinstance(found, Version) else None, ""
    return _ancestor(store, number), f"version {number}: {found.reason if found else 'it is not there'}"


def _ancestor(store: Path, number: int) -> Version | None:
    """Return the nearest intact ancestor of a damaged version."""
    while True:
        try:
            parent = read_document(store, number).parent
        except (OSError, StoreError):
            return _newest_released(store, below=number)
        if parent is None:
            return None
        if isinstance(found := inspect_version(store, parent), Version):
            return found
        number = parent


def _newest_released(store: Path, *, below: int | None = None) -> Version | None:
    """Return the newest intact version of which something says that it once was in use."""
    found = [inspect_version(store, number) for number, removed in list_numbers(store) if not removed]
    intact = [version for version in found if isinstance(version, Version)]
    parents = {version.parent for version in intact}
    released = [version for version in intact if version.made_current or version.number in parents]
    older = [version for version in released if below is None or version.number < below]
    return max(older, key=lambda version: version.number, default=None)


def _decode_pointer(content: bytes) -> int:
    number: int = opened_json(content, POINTER_FILE, _POINTER_FORMAT)["number"]
    return number
