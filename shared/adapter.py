"""An adapter is ONE flat float32 vector plus its spec.

Layout of the vector (length P): every A, layer by layer in spec order, then every B. So what is trained is a
contiguous suffix when A is frozen, and everything that moves an adapter (files, messages, programs) moves one array.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ownlet.shared.errors import AdapterError, require
from ownlet.shared.sites import FORMS, Form
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = [
    "AdapterSpec",
    "LayerShape",
    "Vector",
    "dump_adapter",
    "hash_state",
    "initial_adapter",
    "load_adapter",
    "parse_adapter",
    "save_adapter",
]

Vector = NDArray[np.float32]

_FORMAT = "ownlet-adapter-1"


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A place that carries an adapter: A is (rank, in_features), B is (out_features, rank)."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """What a flat adapter vector means.

    Args:
        layers: the layers in vector order.
        rank: r.
        alpha: the low-rank term is scaled by alpha / rank.
        base_hash: SHA-256 of the base that the adapter belongs to.
        train_a: whether A is trained; if not, only the B suffix ever changes.
        train_b: whether B is trained; if not, only the A prefix is, for a round (``shared/alternate.py``).
        form: how A and B enter the model (``shared/sites.py``).
    """

    layers: tuple[LayerShape, ...]
    rank: int
    alpha: float
    base_hash: str
    train_a: bool = False
    form: Form = "lora"
    train_b: bool = True

    def __post_init__(self) -> None:
        require(len(self.layers) > 0, "an adapter must have at least one layer", layers=self.layers)
        require(self.form in FORMS, f"form must be one of {', '.join(FORMS)}", form=self.form)
        require(self.rank >= 1, "rank must be at least 1", rank=self.rank)
        require(self.train_a or self.train_b, "train_b must be true where A is frozen", train_b=self.train_b)

    @property
    def size_a(self) -> int:
        """How many numbers all A together hold."""
        return sum(self.rank * layer.in_features for layer in self.layers)

    @property
    def size(self) -> int:
        """P, the length of the whole vector."""
        return self.size_a + sum(self.rank * layer.out_features for layer in self.layers)

    @property
    def trainable(self) -> slice:
        """The part of the vector that training changes and a delta covers."""
        return slice(0 if self.train_a else self.size_a, self.size if self.train_b else self.size_a)

    @property
    def num_trainable(self) -> int:
        """The length of a delta."""
        return self.trainable.stop - self.trainable.start  # type: ignore[no-any-return]

    def split(self, vector: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """View a vector (..., P) as layer name -> (A (..., r, in), B (..., out, r))."""
        pieces: dict[str, tuple[Tensor, Tensor]] = {}
        at_a, at_b = 0, self.size_a
        for layer in self.layers:
            n_a, n_b = self.rank * layer.in_features, self.rank * layer.out_features
            a = vector[..., at_a : at_a + n_a].unflatten(-1, (self.rank, layer.in_features))
            b = vector[..., at_b : at_b + n_b].unflatten(-1, (layer.out_features, self.rank))
            pieces[layer.name] = (a, b)
            at_a, at_b = at_a + n_a, at_b + n_b
        return pieces

    def join(self, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Undo ``split``: layer name -> (A, B) back to a vector (..., P)."""
        flat_a = [weights[layer.name][0].flatten(-2) for layer in self.layers]
        flat_b = [weights[layer.name][1].flatten(-2) for layer in self.layers]
        return torch.cat(flat_a + flat_b, dim=-1)

    def check(self, vector: NDArray[Any], *, what: str = "adapter") -> Vector:
        """Return the vector if it is a finite float32 array (P,), else raise.

        Raises:
            AdapterError: wrong dtype, shape, or a value that is not finite.
        """
        if vector.dtype != np.float32:
            raise AdapterError(f"{what} must be float32, got dtype={vector.dtype}")
        if vector.shape != (self.size,):
            raise AdapterError(f"{what} must have shape ({self.size},), got shape={vector.shape}")
        if not np.isfinite(vector).all():
            bad = int((~np.isfinite(vector)).sum())
            raise AdapterError(f"{what} must be finite, got {bad} values that are NaN or infinite")
        return vector

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        plain = asdict(self)
        if self.train_b:  # as in files from before there was a choice
            del plain["train_b"]
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> AdapterSpec:
        """Read what ``to_json`` wrote.

        Raises:
            AdapterError: the text is not a spec.
        """
        try:
            raw = json.loads(text)
            layers = tuple(LayerShape(**layer) for layer in raw.pop("layers"))
            return cls(layers=layers, **raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise AdapterError(f"adapter spec must be valid JSON of a spec, got {text[:80]!r}") from error


def initial_adapter(spec: AdapterSpec, seed: int) -> Vector:
    """Return the adapter that changes nothing: A with orthonormal rows from the seed, B = 0."""
    generator = torch.Generator().manual_seed(seed)
    vector = np.zeros(spec.size, dtype=np.float32)
    at = 0
    for layer in spec.layers:
        gaussian = torch.randn(layer.in_features, spec.rank, generator=generator)
        q, _ = torch.linalg.qr(gaussian)  # (in, r) with orthonormal columns
        n = spec.rank * layer.in_features
        vector[at : at + n] = q.T.contiguous().numpy().ravel()
        at += n
    return vector


def hash_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, in name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def dump_adapter(spec: AdapterSpec, vector: Vector, *, version: int) -> bytes:
    """Return an adapter as the content of a safetensors file with its spec in the metadata.

    Raises:
        AdapterError: the vector does not fit the spec.
    """
    spec.check(vector)
    metadata = {"format": _FORMAT, "spec": spec.to_json(), "version": str(version)}
    return pack({"adapter": vector}, metadata)


def save_adapter(path: Path, spec: AdapterSpec, vector: Vector, *, version: int) -> None:
    """Write an adapter as ``dump_adapter`` gives it, atomically.

    Raises:
        AdapterError: the vector does not fit the spec; nothing is written.
    """
    write_atomic(path, dump_adapter(spec, vector, version=version))


def load_adapter(path: Path, *, base_hash: str | None = None) -> tuple[AdapterSpec, Vector, int]:
    """Read what ``save_adapter`` wrote.

    Args:
        path: the file.
        base_hash: when given, the only base that is accepted.

    Returns:
        (spec, vector (P,), version).

    Raises:
        AdapterError: unreadable, wrong format, wrong base, wrong shape or dtype, or not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"adapter file must be readable safetensors, got {path}: {error}") from error
    return parse_adapter(content, base_hash=base_hash, source=str(path))


def parse_adapter(
    content: bytes, *, base_hash: str | None = None, source: str = "memory"
) -> tuple[AdapterSpec, Vector, int]:
    """Read what ``dump_adapter`` returned; see ``load_adapter``. ``source`` names it in errors."""
    try:
        tensors, metadata = unpack(content)
    except ValueError as error:
        raise AdapterError(f"adapter file must be readable safetensors, got {source}: {error}") from error
    if metadata.get("format") != _FORMAT or set(tensors) != {"adapter"}:
        raise AdapterError(f"adapter file must have format {_FORMAT}, got {metadata.get('format')!r} in {source}")
    spec = AdapterSpec.from_json(metadata.get("spec", ""))
    if base_hash is not None and spec.base_hash != base_hash:
        raise AdapterError(f"adapter must belong to base {base_hash[:12]}, got base {spec.base_hash[:12]} in {source}")
    vector = spec.check(tensors["adapter"], what=f"adapter in {source}")
    return spec, vector, int(metadata.get("version", "0"))
