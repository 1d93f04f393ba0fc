"""What a run leaves for the registry beside an adapter that may be published: ``publication.json``.

Only a run can say how good its adapter is on held-out public users and what it spent; so the run writes it down, with
the hash of the adapter's file, and ``ownlet registry publish`` reads both. A run whose adapter is below the base leaves
neither.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from ownlet.server.published import ADAPTER_FILE, Publication, SpentOnce
from ownlet.shared.adapter import AdapterSpec, Vector, dump_adapter
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import DataError, StoreError
from ownlet.shared.sealed_json import opened_json, sealed_json
from ownlet.shared.store import write_atomic

if TYPE_CHECKING:  # importing it takes Flower along
    from ownlet.server.rounds import FederationResult

__all__ = ["PUBLICATION_FILE", "leave_publication", "read_publication", "spent_by"]

PUBLICATION_FILE = "publication.json"
_FORMAT = "ownlet-publication-1"


def leave_publication(
    folder: Path,
    spec: AdapterSpec,
    vector: Vector,
    *,
    version: int,
    quality: float,
    base_quality: float,
    spent: SpentOnce | None,
) -> Path | None:
    """Write the adapter and what the registry needs to know; neither where the adapter is below the base.

    What an earlier run left under these names goes first, so a crash leaves both files or no ``publication.json``.

    Args:
        folder: of the run.
        spec: of the adapter.
        vector: (P,).
        version: how many rounds changed it.
        quality: NDCG@10 on held-out public users.
        base_quality: the same of the base alone.
        spent: what the run spent; None without privacy.

    Returns:
        the adapter's file, or None.
    """
    adapter, document = folder / ADAPTER_FILE, folder / PUBLICATION_FILE
    document.unlink(missing_ok=True)
    if not quality >= base_quality:
        adapter.unlink(missing_ok=True)
        return None
    content = dump_adapter(spec, vector, version=version)
    write_atomic(adapter, content)
    plain = {
        "format": _FORMAT,
        "adapter_sha256": sha256(content).hexdigest(),
        "quality": quality,
        "base_quality": base_quality,
        "spent": None if spent is None else asdict(spent),
    }
    write_atomic(document, sealed_json(plain))
    return adapter


def spent_by(config: FederationConfig, result: FederationResult) -> SpentOnce | None:
    """Return what a run spent; None where it promises nothing."""
    if config.unit == "none" or not math.isfinite(result.epsilon):
        return None
    return SpentOnce(unit=config.unit, epsilon=result.epsilon, dp_delta=config.dp_delta, event=result.event)


def read_publication(folder: Path) -> Publication:
    """Read what a run left.

    Raises:
        DataError: nothing was left, a file is altered, or the adapter is another one than was measured.
    """
    document = folder / PUBLICATION_FILE
    if not document.is_file():
        below = sorted(str(path.parent) for path in folder.glob(f"*/{PUBLICATION_FILE}"))
        hint = f"; publish one of {', '.join(below)}" if below else ""
        raise DataError(
            f"run folder must hold {PUBLICATION_FILE}, which a finished run leaves whose adapter is not below the "
            f"base on public users, got none in {folder}{hint}"
        )
    try:
        plain = opened_json(document.read_bytes(), str(document), _FORMAT)
        content = (folder / ADAPTER_FILE).read_bytes()
    except (OSError, StoreError) as error:
        raise DataError(f"published run must be readable, got {error}") from error
    if sha256(content).hexdigest() != plain["adapter_sha256"]:
        raise DataError(f"{ADAPTER_FILE} must be the one that the run measured, got another in {folder}")
    return Publication(
        content=content,
        quality=plain["quality"],
        base_quality=plain["base_quality"],
        spent=None if plain["spent"] is None else SpentOnce(**plain["spent"]),
        source=str(folder),
    )
