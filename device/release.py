"""What leaves the device: one update per shared adapter and terms, charged before it is trained.

The order is fixed, so that a kill at any instant costs budget at the most, never privacy: charge the ledger (on disk),
train, write the update into the outbox (on disk), commit the charge with the update's hash, hand it out. An update that
is in the outbox is handed out again rather than trained anew, so a server that asks twice costs one charge.

With error feedback the outbox also holds what its update left out, for the next one to add: both are on disk at once or
not at all, are sealed alike, and go together when the user's events are forgotten.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ownlet.device.adapters import Shared
from ownlet.device.ledger import Charge
from ownlet.device.sending import code_deltas
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.delta import clip_to_norm, count_within, delta_of
from ownlet.shared.errors import DataError, PrivacyError, require
from ownlet.shared.noise import AesNoise
from ownlet.shared.privacy import event_to_json, user_level_event, window_level_event
from ownlet.shared.seal import Seal
from ownlet.shared.store import write_atomic
from ownlet.shared.tensors import pack, unpack

__all__ = ["Release", "charge_for", "charge_of", "check_terms", "make_release", "release_identity", "terms_identity"]

_PURPOSE = b"update"


def check_terms(terms: FederationConfig, windows: WindowConfig, round_number: int | None = None) -> None:
    """Check what a server asks for against what a bundle can do.

    Raises:
        ConfigError: windows other than the bundle's, correlated noise, rounds that alternate, or a sparse form and no
            round that says which numbers travel.
        PrivacyError: windows that share events where the window is the privacy unit.
    """
    require(
        not terms.correlated,
        "noise_plan must be independent in terms for a device that answers on its own: it charges round by round, and "
        "no round of blt has noise that would cover it by itself",
        noise_plan=terms.noise_plan.name,
    )
    require(
        terms.wire.name != "sparse" or (round_number is not None and round_number >= 1),
        "round_number must be given where the wire is sparse: it says which numbers travel",
        round_number=round_number,
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


def release_identity(terms: FederationConfig, shared: Shared, round_number: int | None) -> str:
    """``terms_identity``, and the round where it says which numbers travel: another round's cannot answer this one."""
    identity = terms_identity(terms, shared)
    return f"{identity} {round_number}" if terms.wire.name == "sparse" else identity


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """An update in the outbox.

    Args:
        identity: of what it answers: ``release_identity``.
        delta: (num_trainable,) as the server reads it.
        charge: number of the ledger entry that paid for it.
        coded: the message, where it is not float32 numbers.
        count: whether the delta was within the clip norm, as plus or minus one half; None where nobody asks.
        residual: (num_trainable,) what messages left out so far, for the next one with error feedback.
        residual_kind: what it may be added to: ``residual_kind``.
    """

    identity: str
    delta: Vector
    charge: int
    coded: NDArray[np.uint8] | None = None
    count: float | None = None
    residual: Vector | None = None
    residual_kind: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of delta and count, which the ledger's commit names."""
        said = b"" if self.count is None else np.float32(self.count).tobytes()
        return hashlib.sha256(np.ascontiguousarray(self.delta).tobytes() + said).hexdigest()

    def save(self, path: Path, seal: Seal) -> None:
        """Put it into the outbox, atomically.

        Raises:
            OSError: the disk refuses.
        """
        words = {"identity": self.identity, "charge": str(self.charge), "residual_kind": self.residual_kind}
        if self.count is not None:
            words["count"] = str(self.count)
        arrays: dict[str, NDArray[Any] | None] = {
            "delta": self.delta,
            "coded": self.coded,
            "residual": self.residual,
        }
        there = {name: array for name, array in arrays.items() if array is not None}
        write_atomic(path, seal.seal(pack(there, words), _PURPOSE))

    @classmethod
    def load(cls, path: Path, seal: Seal) -> Release | None:
        """Return what lies in the outbox; None where there is nothing readable, which costs one more training."""
        with suppress(OSError, ValueError, KeyError, DataError):
            tensors, words = unpack(seal.open(path.read_bytes(), _PURPOSE))
            return cls(
                identity=words["identity"],
                delta=tensors["delta"],
                charge=int(words["charge"]),
                coded=tensors.get("coded"),
                count=float(words["count"]) if "count" in words else None,
                residual=tensors.get("residual"),
                residual_kind=words.get("residual_kind", ""),
            )
        return None


def residual_kind(terms: FederationConfig, shared: Shared) -> str:
    """Return what a residual of these terms may be added to: deltas of the same unit, base and frozen numbers.

    The unit matters: what was left out under ``user`` has had no noise, and under ``window`` nobody adds any to what is
    sent.
    """
    return f"{terms.unit} {shared.spec.base_hash} {shared.frozen_digest}"


def make_release(
    trained: Vector,
    terms: FederationConfig,
    shared: Shared,
    *,
    round_number: int | None,
    charge: int,
    before: Release | None,
) -> Release:
    """Return what may leave of a trained adapter: clipped, coded as the terms say, what is decoded within their bound.

    Args:
        trained: (P,).
        terms: checked.
        shared: the adapter that it was trained from.
        round_number: of the server.
        charge: number of the ledger entry that paid for it.
        before: what lay in the outbox, whose residual is added where the terms have error feedback, and kept where not.
    """
    raw, bound = delta_of(shared.spec, trained, shared.vector)[None], terms.delta_bound(shared.spec.num_trainable)
    kind, fed = residual_kind(terms, shared), terms.wire.error_feedback
    residual, of_kind = (None, "") if before is None else (before.residual, before.residual_kind)
    if fed and (residual is None or of_kind != kind):
        residual = np.zeros(shared.spec.num_trainable, np.float32)
    kept = residual[None] if fed and residual is not None else None
    sent = code_deltas(clip_to_norm(raw, bound), terms.wire, bound, round_number or 1, [AesNoise()], kept)
    return Release(
        identity=release_identity(terms, shared, round_number),
        delta=sent.deltas[0],
        charge=charge,
        coded=sent.coded,
        count=count_within(raw, bound) if terms.counts else None,
        residual=sent.left[0] if fed else residual,
        residual_kind=kind if fed else of_kind,
    )
