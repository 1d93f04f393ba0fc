"""The two adapters of a device: the shared one that the server gives, and a personal one on top that never leaves.

What serves is shared plus personal: the personal adapter is kept as a difference over what training changes, so it can
stand on a newer shared adapter too, as long as the part that is frozen (A) is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ownlet.shared.adapter import AdapterSpec, Vector, dump_adapter, parse_adapter
from ownlet.shared.delta import delta_of
from ownlet.shared.domains import DomainAdapters
from ownlet.shared.errors import AdapterError, StateError
from ownlet.shared.seal import Seal
from ownlet.shared.store import Version, VersionStore
from ownlet.shared.tensors import pack, unpack

__all__ = ["Personal", "PersonalAdapters", "Shared", "SharedAdapters"]

_FILE = "adapter.safetensors"
_FORMAT = "ownlet-personal-1"
_PURPOSE = b"personal adapter"
_KEEP_PERSONAL, _KEEP_SHARED = 5, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """The shared adapter.

    Args:
        spec: what the vector means.
        vector: (P,).
        version: the server's number.
        domain: the domain that it is for; None where it is for all.
    """

    spec: AdapterSpec
    vector: Vector
    version: int
    domain: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the vector: which shared adapter this is."""
        return hashlib.sha256(self.vector.tobytes()).hexdigest()

    @cached_property
    def frozen_digest(self) -> str:
        """SHA-256 of the part that training does not change: what a personal adapter can stand on."""
        return hashlib.sha256(self.vector[: self.spec.trainable.start].tobytes()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Personal:
    """A personal adapter.

    Args:
        number: its version in the device's store.
        delta: (num_trainable,) what it adds to a shared adapter.
        stands_on: ``Shared.digest`` of the one that it was trained or checked on.
        frozen_digest: ``Shared.frozen_digest`` of the same.
    """

    number: int
    delta: Vector
    stands_on: str
    frozen_digest: str

    def on(self, shared: Shared) -> Vector:
        """Return the adapter that serves, (P,): the shared one plus this one."""
        vector = shared.vector.copy()
        vector[shared.spec.trainable] += self.delta
        return vector


class SharedAdapters:
    """Shared adapters that came without a bundle; the newest of them and of the bundle's own is in use."""

    def __init__(self, store: VersionStore, bundled: Shared) -> None:
        """Take the device's store and the adapter in the bundle."""
        self.store, self.bundled = store, bundled

    def current(self) -> Shared:
        """Return the newest intact one that fits the bundle's spec."""
        kept = self.store.current()
        if kept is None or kept.metadata.get("base_hash") != self.bundled.spec.base_hash:
            return self.bundled
        spec, vector, version = parse_adapter(self.store.read(kept.number, _FILE), source=f"version {kept.number}")
        if spec != self.bundled.spec or version < self.bundled.version:
            return self.bundled
        return Shared(spec=spec, vector=vector, version=version, domain=kept.metadata.get("domain"))

    def adopt(self, content: bytes, source: str) -> Shared:
        """Keep a newer shared adapter, as ``adapter.save_adapter`` wrote it.

        Raises:
            AdapterError: damaged, of another base or spec, or not newer than the current one.
        """
        spec, vector, version = parse_adapter(content, base_hash=self.bundled.spec.base_hash, source=source)
        current = self.current()
        if spec != current.spec:
            raise AdapterError(f"adapter must have the layers, rank and alpha of the bundle's, got others in {source}")
        if version <= current.version:
            raise AdapterError(f"adapter must be newer than version {current.version}, got {version} in {source}")
        return self._keep(content, Shared(spec=spec, vector=vector, version=version))

    def holds(self, file_sha256: str) -> bool:
        """Say whether the adapter in use came from the file with this hash."""
        kept = self.store.current()
        return kept is not None and kept.files[_FILE].sha256 == file_sha256

    def take(self, content: bytes, source: str) -> Shared:
        """Keep an adapter that a rollout's manifest names, be it newer or older than the current one.

        Raises:
            AdapterError: damaged, or of another base or spec.
        """
        spec, vector, version = parse_adapter(content, base_hash=self.bundled.spec.base_hash, source=source)
        if spec != self.bundled.spec:
            raise AdapterError(f"adapter must have the layers, rank and alpha of the bundle's, got others in {source}")
        return self._keep(content, Shared(spec=spec, vector=vector, version=version))

    def use_bundled(self) -> None:
        """Let the bundle's own adapter serve."""
        if self.store.current() is not None:
            self.store.set_current(None)

    def activate(self, domains: DomainAdapters, domain: str | None) -> Shared:
        """Let the adapter of a domain be the shared one; where it is already, nothing is written.

        Args:
            domains: of the bundle's spec.
            domain: its name; the default serves None and a domain that the adapters lack.

        Raises:
            AdapterError: the adapters are older than the current one.
        """
        current = self.current()
        if domains.version < current.version:
            raise AdapterError(
                f"domain adapters must not be older than version {current.version}, got {domains.version}"
            )
        chosen = Shared(
            spec=domains.spec,
            vector=domains.choose(domain),
            version=domains.version,
            domain=domain if domain in domains.vectors else None,
        )
        same = (chosen.version, chosen.domain, chosen.digest) == (current.version, current.domain, current.digest)
        content = dump_adapter(chosen.spec, chosen.vector, version=chosen.version)
        return current if same else self._keep(content, chosen)

    def _keep(self, content: bytes, shared: Shared) -> Shared:
        metadata = {"adapter_version": shared.version, "base_hash": shared.spec.base_hash, "domain": shared.domain}
        self.store.publish({_FILE: content}, metadata, parent=None)
        self.store.prune(_KEEP_SHARED)
        return shared


class PersonalAdapters:
    """Numbered versions of the personal adapter, sealed where the app gave a key."""

    def __init__(self, store: VersionStore, spec: AdapterSpec, seal: Seal) -> None:
        """Take the device's store, the bundle's spec and the state's seal."""
        self.store, self._spec, self._seal = store, spec, seal

    def current(self) -> Personal | None:
        """Return the version in use; None where the shared adapter serves alone, or where it is another base's.

        Raises:
            DataError: it was sealed with another key.
            AdapterError: it is not a personal adapter.
        """
        version = self.store.current()
        if version is None or version.metadata.get("spec") != self._spec.to_json():
            return None
        return self._read(version)

    def use(self, number: int | None) -> None:
        """Let another version serve, or none.

        Raises:
            StateError: no such version, or it is damaged, or belongs to another base.
        """
        specs = {version.number: version.metadata.get("spec") for version in self.store.versions()}
        if number in specs and specs[number] != self._spec.to_json():
            raise StateError(f"version must belong to this base and adapter shape, got version={number} of another")
        self.store.set_current(number)

    def publish(self, personal: Vector, shared: Shared, metadata: Mapping[str, Any]) -> Personal:
        """Make a trained vector (P,) on top of ``shared`` the version in use; old ones beyond a few are deleted.

        Raises:
            AdapterError: the vector does not fit, or holds NaN; nothing is written.
            StateError: the disk refuses; what was in use still is.
        """
        delta = delta_of(self._spec, self._spec.check(personal, what="personal adapter"), shared.vector)
        words = {"format": _FORMAT}
        content = self._seal.seal(pack({"delta": delta}, words), _PURPOSE)
        parent = self.store.current()
        told = {
            **metadata,
            "spec": self._spec.to_json(),
            "stands_on": shared.digest,
            "frozen_digest": shared.frozen_digest,
            "shared_version": shared.version,
        }
        version = self.store.publish({_FILE: content}, told, parent=parent.number if parent else None)
        self.store.prune(_KEEP_PERSONAL)
        return self._read(version)

    def _read(self, version: Version) -> Personal:
        source = f"personal version {version.number}"
        try:
            tensors, words = unpack(self._seal.open(self.store.read(version.number, _FILE), _PURPOSE))
        except ValueError as error:
            raise AdapterError(f"{source} must be readable, got {error}") from error
        delta = tensors.get("delta")
        fits = delta is not None and delta.dtype == np.float32 and delta.shape == (self._spec.num_trainable,)
        if words.get("format") != _FORMAT or delta is None or not fits or not np.isfinite(delta).all():
            raise AdapterError(f"{source} must hold {self._spec.num_trainable} finite float32 numbers, got others")
        stands_on, frozen = str(version.metadata["stands_on"]), str(version.metadata["frozen_digest"])
        return Personal(number=version.number, delta=delta, stands_on=stands_on, frozen_digest=frozen)
