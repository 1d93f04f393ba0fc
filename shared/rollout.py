"""Which adapter a device takes: decided by the device itself, from a small public manifest and a secret of its own.

The registry writes the manifest; any web server may hand it out. A device derives a number in [0, 1) from its secret
and the rollout's salt (HMAC-SHA256) and takes the candidate where the number is below the rollout's share. So whoever
is in at 5 % is in at 20 %, another rollout draws anew, and the server never learns who is in. Experiments have salts of
their own: their arms say nothing about the rollout, nor about each other.

A manifest carries a serial number that only rises. That is what allows a device to go back to an older adapter, and
what an old manifest that is handed out again fails on. The hash inside finds damage, not forgery. Against forgery the
registry signs all of the manifest's bytes, as they are without the signature (``shared/signature.py``). An app that
pins the public key reads nothing else; one that does not reads signed manifests like any others.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ownlet.shared.counters import Arm, CountTerms
from ownlet.shared.errors import ConfigError, StateError, StoreError, require
from ownlet.shared.sealed_json import opened_json, sealed_json
from ownlet.shared.signature import sign, verify

__all__ = [
    "MANIFEST_FILE",
    "SECRET_BYTES",
    "Choice",
    "Experiment",
    "Manifest",
    "Offer",
    "choose",
    "dump_manifest",
    "is_signed",
    "parse_manifest",
    "place",
]

MANIFEST_FILE = "rollout.json"
SECRET_BYTES = 32
_FORMAT = "ownlet-rollout-1"
_PURPOSE = b"rollout manifest"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An adapter that devices may fetch.

    Args:
        version: of the adapter; published ones have rising versions.
        sha256: of the adapter's file; also its name, ``<sha256>.safetensors``, beside the manifest.
        size: bytes of the file.
    """

    version: int
    sha256: str
    size: int

    def __post_init__(self) -> None:
        require(type(self.version) is int and self.version >= 0, "version must not be negative", version=self.version)
        require(type(self.size) is int and self.size > 0, "size must be positive", size=self.size)
        digits = isinstance(self.sha256, str) and len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")
        require(digits, "sha256 must be 64 hexadecimal digits", sha256=self.sha256)

    @property
    def file(self) -> str:
        """Name of the file beside the manifest."""
        return f"{self.sha256}.safetensors"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A comparison of two adapters; half of the devices in it get each.

    Args:
        salt: of its own.
        percent: of all devices that are in it.
        a: the adapter of arm a; None for the bundle's own.
        b: that of arm b.
    """

    salt: str
    percent: float
    a: Offer | None
    b: Offer | None

    def __post_init__(self) -> None:
        _require_percent(self.percent)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the registry tells all devices.

    Args:
        serial: rises with every change.
        base_hash: the base that all offers belong to.
        stable: for everybody; None for the bundle's own adapter.
        candidate: for ``percent`` of the devices; None where no rollout is under way.
        percent: of the devices, 0 to 100.
        salt: of the rollout.
        paused: nobody new takes the candidate; who has it keeps it.
        experiment: the comparison that is under way, if one is; it goes before the rollout.
        count: what devices are asked to report, if anything.
    """

    serial: int
    base_hash: str
    stable: Offer | None = None
    candidate: Offer | None = None
    percent: float = 0.0
    salt: str = ""
    paused: bool = False
    experiment: Experiment | None = None
    count: CountTerms | None = None

    def __post_init__(self) -> None:
        require(type(self.serial) is int and self.serial >= 0, "serial must not be negative", serial=self.serial)
        _require_percent(self.percent)

    @property
    def offers(self) -> set[Offer]:
        """Every adapter that some device may be told to use."""
        arms = () if self.experiment is None else (self.experiment.a, self.experiment.b)
        return {offer for offer in (self.stable, self.candidate, *arms) if offer is not None}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a device is to use.

    Args:
        offer: None for the bundle's own adapter.
        arm: of the experiment, where the device is in it.
    """

    offer: Offer | None
    arm: Arm | None = None


def choose(manifest: Manifest, secret: bytes, serving_version: int | None = None) -> Choice:
    """Decide as a device does.

    Args:
        manifest: what the registry says.
        secret: the device's own random bytes, which never leave it.
        serving_version: of the shared adapter that it has; in a paused rollout it keeps the candidate if it has it.
    """
    experiment, candidate = manifest.experiment, manifest.candidate
    if experiment is not None and 100 * place(secret, experiment.salt, "exposure") < experiment.percent:
        if place(secret, experiment.salt, "arm") < 0.5:
            return Choice(offer=experiment.a, arm="a")
        return Choice(offer=experiment.b, arm="b")
    is_open = candidate is not None and (not manifest.paused or serving_version == candidate.version)
    if is_open and 100 * place(secret, manifest.salt, "rollout") < manifest.percent:
        return Choice(offer=candidate)
    return Choice(offer=manifest.stable)


def place(secret: bytes, salt: str, purpose: str) -> float:
    """Return a device's place in [0, 1) under a salt: a multiple of 2^-53, uniform over secrets.

    Args:
        secret: at least 16 bytes.
        salt: of the rollout or the experiment.
        purpose: what it is for; places for different purposes are independent.
    """
    require(len(secret) >= 16, "secret must have at least 16 bytes", length=len(secret))
    digest = hmac.digest(secret, f"ownlet {purpose} {salt}".encode(), "sha256")
    return (int.from_bytes(digest[:8], "big") >> 11) * 2.0**-53


def dump_manifest(manifest: Manifest, key: Ed25519PrivateKey | None = None) -> bytes:
    """Return the manifest's file.

    Args:
        manifest: what the registry says.
        key: to sign with; None leaves it unsigned.
    """
    plain = {"format": _FORMAT, **asdict(manifest)}
    return sealed_json(plain if key is None else {**plain, "signature": sign(sealed_json(plain), key, _PURPOSE)})


def is_signed(content: bytes) -> bool:
    """Say whether a manifest's file carries a signature, which nobody has verified.

    Raises:
        StateError: altered or torn.
    """
    return "signature" in _opened(content)


def parse_manifest(content: bytes, public_keys: Sequence[bytes] | None = None) -> Manifest:
    """Read what ``dump_manifest`` wrote.

    Args:
        content: of the file.
        public_keys: those that the app pins, of which one must have signed; None reads signed and unsigned alike.

    Raises:
        StateError: altered, torn, not signed by a pinned key, or with values that cannot be.
    """
    plain = _opened(content)
    signature = plain.pop("signature", None)
    if public_keys is not None:
        verify(sealed_json({"format": _FORMAT, **plain}), signature, public_keys, _PURPOSE, "manifest")
    try:
        experiment, count = plain.pop("experiment"), plain.pop("count")
        return Manifest(
            stable=_offer(plain.pop("stable")),
            candidate=_offer(plain.pop("candidate")),
            experiment=None if experiment is None else _experiment(experiment),
            count=None if count is None else CountTerms(**count),
            **plain,
        )
    except (ConfigError, TypeError, KeyError, AttributeError) as error:
        raise StateError(f"manifest must hold what a registry says, got {error}") from error


def _opened(content: bytes) -> dict[str, Any]:
    try:
        return opened_json(content, MANIFEST_FILE, _FORMAT)
    except StoreError as error:
        raise StateError(f"manifest must be what the registry wrote: {error}") from error


def _experiment(plain: dict[str, Any]) -> Experiment:
    return Experiment(a=_offer(plain.pop("a")), b=_offer(plain.pop("b")), **plain)


def _offer(plain: dict[str, Any] | None) -> Offer | None:
    return None if plain is None else Offer(**plain)


def _require_percent(percent: float) -> None:
    number = isinstance(percent, int | float) and not isinstance(percent, bool)
    require(number and 0 <= percent <= 100, "percent must be in 0..100", percent=percent)
