"""Adapters per domain: one base, and for each region, period or shop an adapter that serves while it applies.

All share one spec, so they are one file, and one program serves any of them. A domain nobody trained for is served by
the default, the adapter that all domains started from. Which domain a request belongs to is for the app to say; domains
and their names are public, since they travel in the file.

The idea of an adapter per domain that is activated at serving is that of multi-domain adaptation as in Pfeiffer et al.
2020 (AdapterHub, https://arxiv.org/abs/2007.07779, section 2), with region or period in the place of a language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.errors import AdapterError, require
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = ["DomainAdapters", "dump_domains", "load_domains", "parse_domains", "period_domain", "save_domains"]

_FORMAT = "ownlet-domains-1"
_DEFAULT, _PREFIX = "default", "domain/"


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainAdapters:
    """A default adapter and one for each of some domains.

    Args:
        spec: what every vector means.
        default: (P,) serves every other domain.
        vectors: domain -> (P,).
        version: the server's number of all of them together; what is trained on top of them counts on from it.

    Raises:
        AdapterError: a vector does not fit the spec.
        ConfigError: a domain without a name, or a negative version.
    """

    spec: AdapterSpec
    default: Vector
    vectors: Mapping[str, Vector]
    version: int

    def __post_init__(self) -> None:
        require(self.version >= 0, "version must not be negative", version=self.version)
        self.spec.check(self.default, what="default adapter")
        for domain, vector in self.vectors.items():
            require(domain != "", "domain must have a name", domain=domain)
            self.spec.check(vector, what=f"adapter of domain {domain!r}")

    def choose(self, domain: str | None) -> Vector:
        """Return the adapter of a domain, (P,); the default for None and for a domain that has none."""
        return self.default if domain is None else self.vectors.get(domain, self.default)

    def stack(self, domains: Sequence[str | None]) -> NDArray[np.float32]:
        """Return the adapters of many domains, one row each: (n, P)."""
        return np.stack([self.choose(domain) for domain in domains]) if domains else np.zeros((0, self.spec.size), "f4")


def period_domain(timestamp: float, *, period_seconds: int, origin_seconds: int = 0) -> str:
    """Return the name of the period that a moment is in, such as ``period-3``; periods before the origin count down.

    Args:
        timestamp: unix seconds.
        period_seconds: length of a period; ``ownlet domains --by period`` takes that of ``--period-days``.
        origin_seconds: unix second at which period 0 begins.

    Raises:
        ConfigError: a period without length.
    """
    require(period_seconds > 0, "period_seconds must be positive", period_seconds=period_seconds)
    return f"period-{int((timestamp - origin_seconds) // period_seconds)}"


def dump_domains(adapters: DomainAdapters) -> bytes:
    """Return the adapters as the content of one safetensors file with their spec in the metadata."""
    tensors = {_DEFAULT: adapters.default, **{_PREFIX + name: vector for name, vector in adapters.vectors.items()}}
    metadata = {"format": _FORMAT, "spec": adapters.spec.to_json(), "version": str(adapters.version)}
    return pack(tensors, metadata)


def save_domains(path: Path, adapters: DomainAdapters) -> None:
    """Write the adapters as ``dump_domains`` gives them, atomically."""
    write_atomic(path, dump_domains(adapters))


def load_domains(path: Path, *, spec: AdapterSpec | None = None) -> DomainAdapters:
    """Read what ``save_domains`` wrote.

    Args:
        path: the file.
        spec: when given, the only one that is accepted.

    Raises:
        AdapterError: unreadable, wrong format, another base or spec, wrong shape or dtype, or not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"domain adapters must be readable safetensors, got {path}: {error}") from error
    return parse_domains(content, spec=spec, source=str(path))


def parse_domains(content: bytes, *, spec: AdapterSpec | None = None, source: str = "memory") -> DomainAdapters:
    """Read what ``dump_domains`` returned; see ``load_domains``. ``source`` names it in errors."""
    try:
        tensors, metadata = unpack(content)
    except ValueError as error:
        raise AdapterError(f"domain adapters must be readable safetensors, got {source}: {error}") from error
    named = all(name == _DEFAULT or (name.startswith(_PREFIX) and name != _PREFIX) for name in tensors)
    version = metadata.get("version", "")
    if metadata.get("format") != _FORMAT or _DEFAULT not in tensors or not named or not version.isdecimal():
        raise AdapterError(f"domain adapters must have format {_FORMAT}, got {metadata.get('format')!r} in {source}")
    found = AdapterSpec.from_json(metadata.get("spec", ""))
    if spec is not None and found.base_hash != spec.base_hash:
        raise AdapterError(
            f"domain adapters must belong to base {spec.base_hash[:12]}, got base {found.base_hash[:12]} in {source}"
        )
    if spec is not None and found != spec:
        raise AdapterError(
            f"domain adapters must have the layers, rank, alpha and form asked for, got others: {source}"
        )
    vectors = {name: found.check(vector, what=f"{name} in {source}") for name, vector in tensors.items()}
    default = vectors.pop(_DEFAULT)
    by_domain = {name.removeprefix(_PREFIX): vector for name, vector in sorted(vectors.items())}
    return DomainAdapters(spec=found, default=default, vectors=by_domain, version=int(version))
