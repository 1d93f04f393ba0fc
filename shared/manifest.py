"""What a bundle says about itself, and the check that it is what it says.

A bundle is a folder of ``program.pte``, ``adapter.safetensors``, ``items.jsonl`` and ``manifest.json``. The manifest
holds the size and SHA-256 of every other file and a SHA-256 of itself, so a truncated or altered bundle is refused
before any of it is used. The hashes find damage, not forgery: who can replace the manifest can replace its hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ownlet.shared.config import WindowConfig
from ownlet.shared.errors import BundleError, ConfigError
from ownlet.shared.store import write_atomic

__all__ = [
    "ADAPTER_FILE",
    "FORMAT_VERSION",
    "ITEMS_FILE",
    "MANIFEST_FILE",
    "PROGRAM_FILE",
    "FileEntry",
    "Manifest",
    "MethodEntry",
    "TensorEntry",
    "describe_file",
    "read_manifest",
    "write_manifest",
]

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
PROGRAM_FILE = "program.pte"
ADAPTER_FILE = "adapter.safetensors"
ITEMS_FILE = "items.jsonl"


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """An argument or result of a method."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A method of the program: what it takes and returns, in order."""

    name: str
    arguments: tuple[TensorEntry, ...]
    results: tuple[TensorEntry, ...]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the bundle."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The public description of a bundle.

    Args:
        backend: ``xnnpack`` or ``portable``.
        base_hash: SHA-256 of the frozen base.
        adapter_version: the version of the adapter in ``adapter.safetensors``.
        num_items: items in the catalogue, numbered from 1.
        max_length: the longest history that ``score`` and ``recommend`` read.
        top_k: items in one answer of ``recommend``.
        batch: windows in one call of ``step`` and ``loss``.
        windows: how a history is cut for training.
        methods: what the program can do.
        files: every file but the manifest.
        versions: packages that made the bundle.
    """

    backend: str
    base_hash: str
    adapter_version: int
    num_items: int
    max_length: int
    top_k: int
    batch: int
    windows: WindowConfig
    methods: tuple[MethodEntry, ...]
    files: Mapping[str, FileEntry]
    versions: Mapping[str, str]


def describe_file(path: Path) -> FileEntry:
    """Return the size and hash of a file."""
    content = path.read_bytes()
    return FileEntry(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a folder, atomically."""
    body = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    text = json.dumps({**body, "sha256": _hash(body)}, indent=2, sort_keys=True)
    write_atomic(folder / MANIFEST_FILE, text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Args:
        folder: the bundle.

    Raises:
        BundleError: the manifest is missing, unreadable, altered or of a newer format; or a file is missing, truncated
            or altered.
    """
    path = folder / MANIFEST_FILE
    try:
        body = json.loads(path.read_bytes())
        version, claimed = body.get("format_version"), body.pop("sha256", None)
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"manifest must be readable JSON, got {path}: {error}") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise BundleError(f"manifest format must be at most {FORMAT_VERSION}, got format_version={version!r} in {path}")
    if claimed != _hash(body):
        raise BundleError(f"manifest must match its own hash, got an altered {path}")
    manifest = _parse(body, path)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    return manifest


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parse(body: dict[str, Any], path: Path) -> Manifest:
    body.pop("format_version")
    try:
        body["windows"] = WindowConfig(**body["windows"])
        body["methods"] = tuple(_parse_method(method) for method in body["methods"])
        body["files"] = {name: FileEntry(**entry) for name, entry in body["files"].items()}
        return Manifest(**body)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise BundleError(f"manifest must have the fields of format {FORMAT_VERSION}, got {error} in {path}") from error


def _parse_method(raw: dict[str, Any]) -> MethodEntry:
    def tensors(entries: list[dict[str, Any]]) -> tuple[TensorEntry, ...]:
        return tuple(TensorEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries)

    return MethodEntry(name=raw["name"], arguments=tensors(raw["arguments"]), results=tensors(raw["results"]))


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    if Path(name).name != name:
        raise BundleError(f"files of a bundle must lie in its folder, got {name!r}")
    path = folder / name
    if not path.is_file():
        raise BundleError(f"bundle must hold {name}, got none in {folder}")
    size = path.stat().st_size
    if size != entry.size_bytes:
        raise BundleError(f"{name} must have {entry.size_bytes} bytes, got {size} (truncated or altered) in {folder}")
    if describe_file(path).sha256 != entry.sha256:
        raise BundleError(f"{name} must match its SHA-256 in the manifest, got an altered file in {folder}")
