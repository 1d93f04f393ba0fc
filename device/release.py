"""What leaves the device: one update per shared adapter and terms, charged before it is trained.

The order is fixed, so that a kill at any instant costs budget at the most, never privacy: charge the ledger (on disk),
train, write the update into the outbox (on disk), commit the charge with the update's hash, hand it out. An update that
is in the outbox is handed out again rather than trained anew, so a server that asks twice costs one charge.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ownlet.device.adapters import Shared
from ownlet.device.ledger import Charge
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.delta import clip_to_norm, delta_of
from ownlet.shared.errors import DataError, PrivacyError, require
from ownlet.shared.privacy import event_to_json, user_level_event, window_level_event
from ownlet.shared.seal import Seal
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = ["Release", "charge_for", "charge_of", "check_terms", "released_delta", "terms_identity"]

_PURPOSE = b"update"


def check_terms(terms: FederationConfig, windows: WindowConfig) -> None:
    """Check what a server asks for against what a bundle can do.

    Raises:
        ConfigError: windows other than the bundle's, an adaptive clip, correlated noise, another wire, or rounds that
            alternate.
        PrivacyError: windows that share events where the window is the privacy unit.
    """
    require(
        not terms.counts,
        "quantile of adaptive_clip must be 0 in terms for a device that answers on its own: its update has no count",
        quantile=terms.adaptive_clip.quantile,
    )
    require(
        not terms.correlated,
        "noise_plan must be independent in terms for a device that answers on its own: it charges round by round",
        noise_plan=terms.noise_plan.name,
    )
    require(
        terms.wire.name == "float32",
        "name of wire must be float32 in terms for a device that answers on its own: its update holds plain numbers",
        wire=terms.wire.name,
    )
    require(
        not terms.alternate,
        "alternate must be false in terms for a device that answers on its own: its program trains the same numbers in "
        "every round",
        alternate=terms.alternate,
    )
    require(terms.windows == windows, f"windows must be the bundle's {windows}", windows=terms.windows)
    if terms.unit == "window" and windows.context_length > 0:
        raise PrivacyError("context_length must be 0 where windows are the privacy unit, got a bundle with context")


def charge_for(terms: FederationConfig, shared: Shared, round_number: int | None = None) -> Charge:
    """Return what one participation costs, by the unit that the terms protect.

    ``window``: the local plan's own noise. ``user``: the Gaussian that the server promises to add to the sum, without
    amplification by its sampling, because a device knows when it takes part and cannot check that others do not.
    ``none``: not private.
    """
    return charge_of(
        terms.unit,
        terms.plan,
        terms.noise_multiplier,
        base_hash=shared.spec.base_hash,
        adapter_version=shared.version,
        round_number=round_number,
    )


def charge_of(
    unit: str, plan: Plan, noise_multiplier: float, *, base_hash: str, adapter_version: int, round_number: int | None
) -> Charge:
    """Return what ``charge_for`` does, from the numbers that it needs."""
    event = user_level_event(1.0, noise_multiplier, 1) if unit == "user" else window_level_event(plan, 1)
    return Charge(
        unit="user" if unit == "user" else "window",
        event=event_to_json(event),
        base_hash=base_hash,
        adapter_version=adapter_version,
        plan=plan,
        round=round_number,
    )


def terms_identity(terms: FederationConfig, shared: Shared) -> str:
    """SHA-256 of shared adapter and terms: two requests with the same one are answered by the same update."""
    told = json.dumps([shared.digest, shared.version, asdict(terms)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def released_delta(trained: Vector, shared: Shared, clip_norm: float) -> Vector:
    """Return the clipped difference (num_trainable,) that may leave."""
    return clip_to_norm(delta_of(shared.spec, trained, shared.vector), clip_norm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """An update in the outbox.

    Args:
        identity: of the terms and the shared adapter that it answers.
        delta: (num_trainable,).
        charge: number of the ledger entry that paid for it.
    """

    identity: str
    delta: Vector
    charge: int

    @property
    def digest(self) -> str:
        """SHA-256 of the delta, which the ledger's commit names."""
        return hashlib.sha256(np.ascontiguousarray(self.delta).tobytes()).hexdigest()

    def save(self, path: Path, seal: Seal) -> None:
        """Put it into the outbox, atomically.

        Raises:
            OSError: the disk refuses.
        """
        words = {"identity": self.identity, "charge": str(self.charge)}
        write_atomic(path, seal.seal(pack({"delta": self.delta}, words), _PURPOSE))

    @classmethod
    def load(cls, path: Path, seal: Seal) -> Release | None:
        """Return what lies in the outbox; None where there is nothing readable, which costs one more training."""
        with suppress(OSError, ValueError, KeyError, DataError):
            tensors, words = unpack(seal.open(path.read_bytes(), _PURPOSE))
            return cls(identity=words["identity"], delta=tensors["delta"], charge=int(words["charge"]))
        return None
