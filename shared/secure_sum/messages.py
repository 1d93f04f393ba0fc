"""What clients and server say to each other in one secure sum, in order.

    server                         client
    Invite                      -> Advert             keys, signed
    Roster                      -> Shares             of two secrets, sealed for each neighbour
    Inbox                       -> Masked             the masked vector
    Survivors                   -> Confirmation       a signature over the set of survivors
    Agreement                   -> Reveal             a share of ONE secret of each neighbour

The first four are rounds 0 to 3 and the last is round 4 of the protocol with consistency check in Bonawitz et al.
2017 (https://eprint.iacr.org/2017/281, figure 4). Clients are numbered 0..n-1 in the order of the roster. Fields are
checked when a message is made, so one that was read has the right lengths, whoever sent it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from ownlet.shared.errors import require
from ownlet.shared.secure_sum.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from ownlet.shared.secure_sum.shamir import SHARE_BYTES
from ownlet.shared.secure_sum.terms import SumTerms
from ownlet.shared.secure_sum.vouching import VOUCHER_BYTES

__all__ = [
    "DIGEST_BYTES",
    "SEALED_BYTES",
    "SIGNED_ADVERT",
    "SIGNED_SURVIVORS",
    "Advert",
    "Agreement",
    "Confirmation",
    "Inbox",
    "Invite",
    "Masked",
    "Reveal",
    "Roster",
    "Shares",
    "Survivors",
    "bitmap_of",
    "members_of",
    "seed_commitment",
    "share_digest",
]

DIGEST_BYTES = 16  # nobody gains from two shares with one digest, so 128 bits are enough
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
SIGNED_ADVERT = b"ownlet secure sum advert 1"  # what a signature is for, so that none serves two ends
SIGNED_SURVIVORS = b"ownlet secure sum survivors 1"


def _lengths(name: str, parts: tuple[bytes, ...], length: int, count: int | None = None) -> None:
    good = all(len(part) == length for part in parts) and (count is None or len(parts) == count)
    require(good, f"{name} must be of {length} bytes each", name=name, count=len(parts))


@dataclass(frozen=True, kw_only=True)
class Invite:
    """The start: 32 random bytes that name the session."""

    session: bytes

    def __post_init__(self) -> None:
        _lengths("session", (self.session,), KEY_BYTES)


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A client's public keys.

    Args:
        identity, mask_key, channel_key: the keys.
        signature: of the identity over session, mask key and channel key.
        voucher: says whose the identity is (``vouching``), or is empty.
    """

    identity: bytes
    mask_key: bytes
    channel_key: bytes
    signature: bytes
    voucher: bytes = b""

    def __post_init__(self) -> None:
        _lengths("keys", (self.identity, self.mask_key, self.channel_key), KEY_BYTES)
        _lengths("signature", (self.signature,), SIGNATURE_BYTES)
        _lengths("voucher", (self.voucher,) if self.voucher else (), VOUCHER_BYTES)


@dataclass(frozen=True, kw_only=True)
class Roster:
    """Who takes part, and the keys of the reader's neighbours.

    Args:
        session: as in the invite.
        terms: the public numbers.
        about: what is added up and how it is coded; opaque here, but all clients must have seen the same.
        identities: n identities in order.
        index: the reader's number.
        mask_keys, channel_keys, signatures: from the adverts of the reader's neighbours, in their order.
        vouchers: of all identities, in order, empty for a client that gave none; none at all where no client did.
    """

    session: bytes
    terms: SumTerms
    about: bytes
    identities: tuple[bytes, ...]
    index: int
    mask_keys: tuple[bytes, ...]
    channel_keys: tuple[bytes, ...]
    signatures: tuple[bytes, ...]
    vouchers: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _lengths("session", (self.session,), KEY_BYTES)
        _lengths("vouchers", tuple(filter(None, self.vouchers)), VOUCHER_BYTES)
        require(len(self.vouchers) in (0, len(self.identities)), "vouchers must be for all", count=len(self.vouchers))
        _lengths("identities", self.identities, KEY_BYTES, self.terms.num_clients)
        _lengths("keys", self.mask_keys + self.channel_keys, KEY_BYTES, 2 * self.terms.degree)
        _lengths("signatures", self.signatures, SIGNATURE_BYTES, self.terms.degree)
        require(0 <= self.index < self.terms.num_clients, "index must be below num_clients", index=self.index)

    @property
    def transcript(self) -> bytes:
        """The hash of everything that all clients must have in common; it seeds the graph and binds every key."""
        digest = hashlib.sha256(b"ownlet secure sum 1" + self.session)
        digest.update(json.dumps(asdict(self.terms), sort_keys=True).encode())
        digest.update(hashlib.sha256(self.about).digest() + b"".join(self.identities))
        return digest.digest()


@dataclass(frozen=True, kw_only=True)
class Shares:
    """A client's shares for its neighbours, in their order, and what the server will check revealed ones against.

    Args:
        sealed: each the share of the mask key and that of the self-mask's seed, sealed for one neighbour.
        key_digests, seed_digests: of the same shares.
        seed_commitment: of the seed.
    """

    sealed: tuple[bytes, ...]
    key_digests: tuple[bytes, ...]
    seed_digests: tuple[bytes, ...]
    seed_commitment: bytes

    def __post_init__(self) -> None:
        _lengths("sealed", self.sealed, SEALED_BYTES)
        _lengths("digests", self.key_digests + self.seed_digests, DIGEST_BYTES, 2 * len(self.sealed))
        _lengths("seed_commitment", (self.seed_commitment,), KEY_BYTES)


@dataclass(frozen=True, kw_only=True)
class Inbox:
    """Shares for the reader from those neighbours that sent any: with these, and no others, it makes pair masks."""

    session: bytes
    senders: tuple[int, ...]
    sealed: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _lengths("sealed", self.sealed, SEALED_BYTES, len(self.senders))
        require(len(set(self.senders)) == len(self.senders), "senders must be different", senders=self.senders)


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A masked vector, packed."""

    data: bytes


@dataclass(frozen=True, kw_only=True)
class Survivors:
    """Whose masked vectors are in the sum, one bit for each client, lowest first."""

    session: bytes
    bitmap: bytes


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A client's signature over transcript and bitmap."""

    signature: bytes

    def __post_init__(self) -> None:
        _lengths("signature", (self.signature,), SIGNATURE_BYTES)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The proof that enough clients were told of the same survivors."""

    session: bytes
    signers: tuple[int, ...]
    signatures: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _lengths("signatures", self.signatures, SIGNATURE_BYTES, len(self.signers))
        require(len(set(self.signers)) == len(self.signers), "signers must be different", signers=self.signers)


@dataclass(frozen=True, kw_only=True)
class Reveal:
    """Shares of the mask keys of neighbours that dropped out, and of the self-masks of those that survived."""

    key_owners: tuple[int, ...]
    key_shares: tuple[bytes, ...]
    seed_owners: tuple[int, ...]
    seed_shares: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _lengths("key_shares", self.key_shares, SHARE_BYTES, len(self.key_owners))
        _lengths("seed_shares", self.seed_shares, SHARE_BYTES, len(self.seed_owners))


def bitmap_of(members: set[int], num_clients: int) -> bytes:
    """Write a set of clients as bits."""
    return sum(1 << member for member in members).to_bytes(-(-num_clients // 8), "little")


def members_of(bitmap: bytes, num_clients: int) -> set[int] | None:
    """Read what ``bitmap_of`` wrote; None where it is of another length or names others."""
    bits = int.from_bytes(bitmap, "little")
    if len(bitmap) != -(-num_clients // 8) or bits >> num_clients:
        return None
    return {member for member in range(num_clients) if bits >> member & 1}


def share_digest(transcript: bytes, share: bytes) -> bytes:
    """Return what a dealer says of a share in public; shares are uniform, so it tells nothing."""
    return hashlib.sha256(b"share" + transcript + share).digest()[:DIGEST_BYTES]


def seed_commitment(transcript: bytes, seed: bytes) -> bytes:
    """Return what a client says of its self-mask's seed in public."""
    return hashlib.sha256(b"seed" + transcript + seed).digest()
