"""What a registry knows of a published adapter, and what it asks for before it publishes one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ownlet.shared.adapter import AdapterSpec
from ownlet.shared.errors import AdapterError
from ownlet.shared.privacy import compose_events, epsilon, event_from_json
from ownlet.shared.rollout import Offer
from ownlet.shared.store import Version

__all__ = [
    "ADAPTER_FILE",
    "Publication",
    "Published",
    "SpentOnce",
    "check_new",
    "metadata_of",
    "published_of",
    "spent_together",
]

ADAPTER_FILE = "adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class SpentOnce:
    """What the run behind an adapter spent.

    Args:
        unit: ``user`` or ``window``.
        epsilon: at ``dp_delta``, as the run stated it.
        dp_delta: the privacy parameter delta.
        event: canonical JSON of the privacy event.
    """

    unit: str
    epsilon: float
    dp_delta: float
    event: str


@dataclass(frozen=True, kw_only=True)
class Publication:
    """An adapter that is to be published.

    Args:
        content: the adapter's file, as ``shared.adapter.save_adapter`` wrote it.
        quality: NDCG@10 on held-out public users.
        base_quality: the same of the base alone.
        spent: None where the run had no privacy.
        source: where it comes from, for people.
    """

    content: bytes
    quality: float
    base_quality: float
    spent: SpentOnce | None
    source: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published version, as the registry lists it.

    Args:
        number: counted from 1.
        parent: the stable version when it was published; None for a first one.
        created: unix seconds.
        adapter_version: in the adapter's file; rises with every publication, so that devices adopt it.
        base_hash: fingerprint of the base.
        quality: NDCG@10 on held-out public users.
        base_quality: the same of the base alone.
        spent: None where its run had no privacy.
        size: bytes of the file.
        sha256: of the file.
        source: where it came from.
    """

    number: int
    parent: int | None
    created: float
    adapter_version: int
    base_hash: str
    quality: float
    base_quality: float
    spent: SpentOnce | None
    size: int
    sha256: str
    source: str

    @property
    def offer(self) -> Offer:
        """What devices are told of it."""
        return Offer(version=self.adapter_version, sha256=self.sha256, size=self.size)


def check_new(publication: Publication, spec: AdapterSpec, digest: str, known: Iterable[Version]) -> None:
    """Refuse what must not be published.

    Args:
        publication: what is to be published.
        spec: of its adapter.
        digest: SHA-256 of its vector.
        known: the versions that the registry has.

    Raises:
        AdapterError: below the base on public users, published before, or of another base or shape than the others.
    """
    if not publication.quality >= publication.base_quality:
        raise AdapterError(
            f"adapter must not be below the base on public users, {publication.base_quality:.4f}, "
            f"got {publication.quality:.4f} of {publication.source}"
        )
    for version in known:
        if version.metadata["vector"] == digest:
            raise AdapterError(f"adapter must not be published already, got that of version {version.number}")
        if version.metadata["spec"] != spec.to_json():
            raise AdapterError(
                "adapter must have the base, layers and rank of those in the registry (use another registry), "
                f"got base {spec.base_hash[:12]} of {publication.source}"
            )


def metadata_of(publication: Publication, spec: AdapterSpec, digest: str, adapter_version: int) -> dict[str, Any]:
    """Return what is written down beside the adapter's file; ``published_of`` reads it."""
    return {
        "adapter_version": adapter_version,
        "spec": spec.to_json(),
        "vector": digest,
        "quality": publication.quality,
        "base_quality": publication.base_quality,
        "spent": None if publication.spent is None else asdict(publication.spent),
        "source": publication.source,
    }


def published_of(version: Version) -> Published:
    """Return a version of the store as the registry lists it."""
    told = version.metadata
    return Published(
        number=version.number,
        parent=version.parent,
        created=version.created,
        adapter_version=told["adapter_version"],
        base_hash=json.loads(told["spec"])["base_hash"],
        quality=told["quality"],
        base_quality=told["base_quality"],
        spent=None if told["spent"] is None else SpentOnce(**told["spent"]),
        size=version.files[ADAPTER_FILE].size,
        sha256=version.files[ADAPTER_FILE].sha256,
        source=told["source"],
    )


def spent_together(versions: Iterable[Published], dp_delta: float) -> dict[str, float]:
    """Return epsilon of all these versions' runs together, per unit, where the same devices were in all of them.

    A run with no privacy makes all of it infinite.

    Args:
        versions: any.
        dp_delta: the privacy parameter delta of the total.

    Returns:
        unit -> epsilon; units are never added.
    """
    events: dict[str, list[Any]] = {}
    bounded = True
    for version in versions:
        if version.spent is None:
            bounded = False
        else:
            events.setdefault(version.spent.unit, []).append(event_from_json(version.spent.event))
    return {
        unit: epsilon(compose_events(*parts), dp_delta) if bounded else math.inf
        for unit, parts in sorted(events.items())
    }
