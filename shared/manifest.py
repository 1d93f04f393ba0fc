"""What a bundle says about itself, and the check that it is what it says.

A bundle is a folder of ``program.pte``, ``adapter.safetensors``, ``items.safetensors`` (the item table),
``items.jsonl`` (ids and titles), ``manifest.json``, ``frequencies.safetensors`` where the program takes negatives and,
where asked for, ``base.safetensors``, with ``ranking.safetensors`` where there is a ranking head. The program of a base
that is not SASRec holds its items itself: such a bundle has no item table. The manifest holds the size and SHA-256 of
every other file and a SHA-256 of itself, so a truncated or altered bundle is refused before any of it is used. The
hashes find damage, not forgery: who can replace the manifest can replace its hash.

A catalogue grows by a longer item table and a longer ``items.jsonl`` beside the same program and adapter.
``base_hash`` then stays that of the base that the adapter was trained for, which is what adapters are checked against;
the table's own hash is in ``files``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ownlet.shared.config import FederationConfig, WindowConfig
from ownlet.shared.context import ContextField
from ownlet.shared.errors import BundleError
from ownlet.shared.item_table import Quantize
from ownlet.shared.store import write_atomic

__all__ = [
    "ADAPTER_FILE",
    "BASE_FILE",
    "FORMAT_VERSION",
    "FREQUENCIES_FILE",
    "ITEMS_FILE",
    "MANIFEST_FILE",
    "PROGRAM_FILE",
    "RANKING_FILE",
    "RANK_METHOD",
    "TABLE_FILE",
    "FileEntry",
    "Manifest",
    "MethodEntry",
    "TensorEntry",
    "describe_file",
    "read_manifest",
    "write_manifest",
]

FORMAT_VERSION = 2
MANIFEST_FILE = "manifest.json"
PROGRAM_FILE = "program.pte"
ADAPTER_FILE = "adapter.safetensors"
ITEMS_FILE = "items.jsonl"
TABLE_FILE = "items.safetensors"
BASE_FILE = "base.safetensors"
FREQUENCIES_FILE = "frequencies.safetensors"
RANKING_FILE = "ranking.safetensors"
RANK_METHOD = "rank"


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """An argument or result of a method; -1 in a shape stands for the number of items."""

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
        base_hash: SHA-256 of the frozen base that the adapter belongs to; it stays when the catalogue grows.
        adapter_version: the version of the adapter in ``adapter.safetensors``.
        num_items: items in the catalogue, numbered from 1.
        capacity: the most items that the program takes; a larger catalogue needs a new program.
        max_length: the longest history that ``score`` reads.
        top_k: the most recommendations in one answer; at most ``num_candidates`` where there is a ranking stage.
        batches: windows in one call of each variant of ``step``, rising; ``step_4`` takes 4.
        windows: how a history is cut for training.
        methods: what the program can do.
        files: every file but the manifest.
        versions: packages that made the bundle.
        federation: the public numbers of the federated run that this bundle belongs to, if it belongs to one.
        quantize: how the item table is stored: ``none`` (float32) or ``int8``.
        context: what the base reads of the moment of each question: then every method's last argument is its rows.
        objective: what the program's ``step`` minimises (``shared.objectives``).
        num_negatives: candidates of a window that stand for the catalogue in it; 0 is the whole catalogue.
    """

    backend: str
    base_hash: str
    adapter_version: int
    num_items: int
    capacity: int
    max_length: int
    top_k: int
    batches: tuple[int, ...]
    windows: WindowConfig
    methods: tuple[MethodEntry, ...]
    files: Mapping[str, FileEntry]
    versions: Mapping[str, str]
    federation: FederationConfig | None = None
    quantize: Quantize = "none"
    context: tuple[ContextField, ...] = ()
    objective: Literal["softmax", "bpr", "bce", "listnet"] = "softmax"
    num_negatives: int = 0

    @property
    def has_item_table(self) -> bool:
        """Whether the methods take the item table as an argument; if not, the catalogue is part of the program."""
        return any(argument.name == "items" for method in self.methods for argument in method.arguments)

    @property
    def num_candidates(self) -> int:
        """C, the candidates that the program's ranking stage takes; 0 where the program has no such stage."""
        if not any(method.name == RANK_METHOD for method in self.methods):
            return 0
        (shape,) = (entry.shape for entry in self.method(RANK_METHOD).arguments if entry.name == "candidates")
        return shape[-1]

    def method(self, name: str) -> MethodEntry:
        """Return a method by its name.

        Raises:
            BundleError: the program has none of that name.
        """
        for method in self.methods:
            if method.name == name:
                return method
        raise BundleError(f"program must have method {name!r}, got {[method.name for method in self.methods]}")


def describe_file(path: Path) -> FileEntry:
    """Return the size and hash of a file."""
    content = path.read_bytes()
    return FileEntry(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a folder, atomically."""
    body = {"format_version": FORMAT_VERSION, **_plain(asdict(manifest))}
    body["context"] = [field.to_plain() for field in manifest.context]
    if not manifest.context:
        del body["context"]  # as it was before there was any: older devices read such a bundle
    text = json.dumps({**body, "sha256": _hash(body)}, indent=2, sort_keys=True)
    write_atomic(folder / MANIFEST_FILE, text.encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest and check every file against it.

    Args:
        folder: the bundle.

    Raises:
        BundleError: the manifest is missing, unreadable, altered or of another format; or a file is missing, truncated
            or altered.
    """
    path = folder / MANIFEST_FILE
    try:
        body = json.loads(path.read_bytes())
        version, claimed = body.get("format_version"), body.pop("sha256", None)
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(f"manifest must be readable JSON, got {path}: {error}") from error
    if type(version) is not int or version != FORMAT_VERSION:
        raise BundleError(f"manifest format must be {FORMAT_VERSION}, got format_version={version!r} in {path}")
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
        body["batches"] = tuple(body["batches"])
        body["context"] = tuple(ContextField.of(field) for field in body.get("context", ()))
        body["federation"] = body["federation"] and FederationConfig.from_plain(body["federation"])
        return Manifest(**body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"manifest must have the fields of format {FORMAT_VERSION}, got {error} in {path}") from error


def _parse_method(raw: dict[str, Any]) -> MethodEntry:
    def tensors(entries: list[dict[str, Any]]) -> tuple[TensorEntry, ...]:
        return tuple(TensorEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in entries)

    return MethodEntry(name=raw["name"], arguments=tensors(raw["arguments"]), results=tensors(raw["results"]))


def _plain(value: Any) -> Any:
    """Write infinity as a string: JSON has no such number, and other languages' readers refuse it."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return "inf" if value == math.inf and isinstance(value, float) else value


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
