"""One client of a secure sum: five answers, each from the state that the one before it left.

Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281, figure 4, with the consistency check) on the sparse graph of
Bell et al. 2020 (https://eprint.iacr.org/2020/704). A state is a frozen value that holds what later answers need and
no more: the private keys are gone once the vector is masked. There is no way back, so no message can be answered
twice.

What the client insists on, whatever the server says:

* the terms make sense, its own identity is in the roster, and neighbours signed the keys that the server hands on;
* where it knows the keys of the others, each identity of the roster is vouched for by another of these;
* the survivors are at least ``terms.least``, hang together in the graph, and it is one of them;
* more than half of all clients, and then some for those who may collude, signed the very set of survivors that it
  signed itself: of two different sets at most one can get there;
* of a neighbour it gives away a share of the mask key or one of the self-mask's seed. Which one follows from the set
  that it signed, and not from anything that the server asks for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import FederationError, PrivacyError
from ownlet.shared.secure_sum.graph import hangs_together, neighbours_of
from ownlet.shared.secure_sum.keys import (
    channel_key,
    is_signed,
    mask_key,
    new_private,
    open_sealed,
    public_identity,
    public_of,
    seal,
    sign,
)
from ownlet.shared.secure_sum.masks import Words, expand_mask, pack_words, pair_mask
from ownlet.shared.secure_sum.messages import (
    SIGNED_ADVERT,
    SIGNED_SURVIVORS,
    Advert,
    Agreement,
    Confirmation,
    Inbox,
    Invite,
    Masked,
    Reveal,
    Roster,
    Shares,
    Survivors,
    members_of,
    seed_commitment,
    share_digest,
)
from ownlet.shared.secure_sum.shamir import SHARE_BYTES, split_secret
from ownlet.shared.secure_sum.terms import SumTerms
from ownlet.shared.secure_sum.vouching import Vouching, check_vouchers

__all__ = [
    "Advertised",
    "Confirmed",
    "Entrusted",
    "Joined",
    "Sent",
    "advertise",
    "confirm",
    "join",
    "mask",
    "open_inbox",
    "reveal",
]


@dataclass(frozen=True, kw_only=True)
class Advertised:
    """After the keys are out. Everything but the session is secret."""

    session: bytes
    identity: bytes
    mask_private: bytes
    channel_private: bytes


@dataclass(frozen=True, kw_only=True)
class Joined:
    """After the shares are out; ``peers`` are the neighbours, and the keys are in their order."""

    session: bytes
    identity: bytes
    mask_private: bytes
    channel_private: bytes
    seed: bytes
    terms: SumTerms
    about: bytes
    transcript: bytes
    identities: tuple[bytes, ...]
    index: int
    peers: tuple[int, ...]
    mask_keys: tuple[bytes, ...]
    channel_keys: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Entrusted:
    """What neighbours sent.

    Args:
        senders: neighbours that sent something, whose pair masks are added.
        shares: sender -> its two shares, of those whose shares could be opened.
    """

    senders: tuple[int, ...]
    shares: dict[int, bytes]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """After the masked vector is out: only what neighbours entrusted is kept.

    Args:
        masked_with: neighbours with which it shares a mask.
        owners, key_shares, seed_shares: of those whose shares could be opened.
    """

    session: bytes
    identity: bytes
    terms: SumTerms
    transcript: bytes
    identities: tuple[bytes, ...]
    index: int
    masked_with: tuple[int, ...]
    owners: tuple[int, ...]
    key_shares: tuple[bytes, ...]
    seed_shares: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """After a set of survivors was signed."""

    session: bytes
    terms: SumTerms
    transcript: bytes
    identities: tuple[bytes, ...]
    bitmap: bytes
    owners: tuple[int, ...]
    key_shares: tuple[bytes, ...]
    seed_shares: tuple[bytes, ...]


def advertise(invite: Invite, identity: bytes, vouching: Vouching | None = None) -> tuple[Advertised, Advert]:
    """Make the keys of a session.

    Args:
        invite: names the session.
        identity: the client's private identity, from ``keys.new_identity``; for this session only.
        vouching: with which the client says whose the identity is; None leaves that to the server.
    """
    mask_private, channel_private = new_private(), new_private()
    mask_public, channel_public = public_of(mask_private), public_of(channel_private)
    state = Advertised(
        session=invite.session, identity=identity, mask_private=mask_private, channel_private=channel_private
    )
    signature = sign(identity, SIGNED_ADVERT, invite.session, mask_public, channel_public)
    public = public_identity(identity)
    voucher = b"" if vouching is None else vouching.voucher(invite.session, public)
    advert = Advert(
        identity=public, mask_key=mask_public, channel_key=channel_public, signature=signature, voucher=voucher
    )
    return state, advert


def join(state: Advertised, roster: Roster, known: frozenset[bytes] | None = None) -> tuple[Joined, Shares]:
    """Check the roster, and deal out shares of the mask key and of a new seed for the own mask.

    Args:
        state: of the client.
        roster: from the server.
        known: the keys that may vouch for identities (``Vouching.peers``); None takes the server's word.

    Raises:
        PrivacyError: another session, an identity twice or that nobody known vouches for, not the own one, or keys that
            a neighbour did not sign.
        FederationError: a neighbour's key is not usable.
    """
    _same(state.session, roster.session)
    if len(set(roster.identities)) != len(roster.identities):
        raise PrivacyError("identities must be different, got one twice")
    if roster.identities[roster.index] != public_identity(state.identity):
        raise PrivacyError(f"roster must have the own identity in its place, got another at index={roster.index}")
    if known is not None:
        check_vouchers(known, state.session, roster.identities, roster.vouchers)
    transcript, terms = roster.transcript, roster.terms
    peers = neighbours_of(terms.num_clients, terms.degree, transcript)[roster.index]
    keys = zip(peers, roster.mask_keys, roster.channel_keys, roster.signatures, strict=True)
    for peer, mask_public, channel_public, signature in keys:
        if not is_signed(roster.identities[peer], signature, SIGNED_ADVERT, state.session, mask_public, channel_public):
            raise PrivacyError(f"keys of a neighbour must be signed by it, got others for index={peer}")
    joined = Joined(
        session=state.session,
        identity=state.identity,
        mask_private=state.mask_private,
        channel_private=state.channel_private,
        seed=os.urandom(32),
        terms=terms,
        about=roster.about,
        transcript=transcript,
        identities=roster.identities,
        index=roster.index,
        peers=peers,
        mask_keys=roster.mask_keys,
        channel_keys=roster.channel_keys,
    )
    return joined, _deal(joined)


def _deal(state: Joined) -> Shares:
    points = [peer + 1 for peer in state.peers]
    of_key = split_secret(state.mask_private, state.terms.threshold, points)
    of_seed = split_secret(state.seed, state.terms.threshold, points)
    sealed = []
    for peer, public, key_share, seed_share in zip(state.peers, state.channel_keys, of_key, of_seed, strict=True):
        key = channel_key(state.channel_private, public, state.transcript, state.index, peer)
        sealed.append(seal(key, key_share + seed_share))
    return Shares(
        sealed=tuple(sealed),
        key_digests=tuple(share_digest(state.transcript, share) for share in of_key),
        seed_digests=tuple(share_digest(state.transcript, share) for share in of_seed),
        seed_commitment=seed_commitment(state.transcript, state.seed),
    )


def open_inbox(state: Joined, inbox: Inbox) -> Entrusted:
    """Open the shares that neighbours sent; only with enough of them is there anything to train for.

    Args:
        state: of the client.
        inbox: from the server.

    Raises:
        PrivacyError: another session, a sender that is no neighbour, or too few shares that open.
    """
    _same(state.session, inbox.session)
    if not set(inbox.senders) <= set(state.peers):
        raise PrivacyError(f"senders must be neighbours, got others for index={state.index}")
    shares = _opened(state, inbox)
    if len(shares) < state.terms.threshold:
        raise PrivacyError(f"shares must be from {state.terms.threshold} neighbours, got {len(shares)} that open")
    return Entrusted(senders=inbox.senders, shares=shares)


def mask(state: Joined, entrusted: Entrusted, values: NDArray[np.int64]) -> tuple[Sent, Masked]:
    """Mask a vector, with the pair masks of the neighbours whose shares have come.

    Args:
        state: of the client.
        entrusted: from ``open_inbox`` with this state.
        values: (terms.size,) whole numbers; what is out of the modulus wraps around.

    Raises:
        FederationError: values of another size.
    """
    if values.shape != (state.terms.size,):
        raise FederationError(f"values must have shape ({state.terms.size},), got shape={values.shape}")
    size, own = state.terms.size, state.index
    masked: Words = (values & 0xFFFFFFFF).astype(np.uint32) + expand_mask(state.seed, size)
    for peer in entrusted.senders:
        public = state.mask_keys[state.peers.index(peer)]
        masked += pair_mask(mask_key(state.mask_private, public, state.transcript, own, peer), size, own, peer)
    sent = Sent(
        session=state.session,
        identity=state.identity,
        terms=state.terms,
        transcript=state.transcript,
        identities=state.identities,
        index=own,
        masked_with=entrusted.senders,
        owners=tuple(entrusted.shares),
        key_shares=tuple(shares[:SHARE_BYTES] for shares in entrusted.shares.values()),
        seed_shares=tuple(shares[SHARE_BYTES:] for shares in entrusted.shares.values()),
    )
    return sent, Masked(data=pack_words(masked, state.terms.bits))


def _opened(state: Joined, inbox: Inbox) -> dict[int, bytes]:
    """Return sender -> its two shares; one that does not open costs its sender, not this client."""
    found = {}
    for peer, sealed in zip(inbox.senders, inbox.sealed, strict=True):
        public = state.channel_keys[state.peers.index(peer)]
        plain = open_sealed(channel_key(state.channel_private, public, state.transcript, peer, state.index), sealed)
        if plain is not None:
            found[peer] = plain
    return found


def confirm(state: Sent, survivors: Survivors) -> tuple[Confirmed, Confirmation]:
    """Sign the set of survivors, once, if nobody's vector could be read off their sum.

    Raises:
        PrivacyError: another session, or a set that this client must not agree to.
    """
    _same(state.session, survivors.session)
    terms = state.terms
    members = members_of(survivors.bitmap, terms.num_clients)
    if members is None or state.index not in members:
        raise PrivacyError(f"survivors must be of this sum and include the reader, got others for index={state.index}")
    if len(members) < terms.least:
        raise PrivacyError(f"survivors must be at least {terms.least}, got {len(members)}")
    neighbours = neighbours_of(terms.num_clients, terms.degree, state.transcript)
    if not (members & set(neighbours[state.index])) <= set(state.masked_with):
        raise PrivacyError("survivors must have sent shares, got a neighbour that did not")
    if not hangs_together(neighbours, members):
        raise PrivacyError("survivors must hang together, got a group without an edge to the others")
    confirmed = Confirmed(
        session=state.session,
        terms=terms,
        transcript=state.transcript,
        identities=state.identities,
        bitmap=survivors.bitmap,
        owners=state.owners,
        key_shares=state.key_shares,
        seed_shares=state.seed_shares,
    )
    return confirmed, Confirmation(signature=sign(state.identity, SIGNED_SURVIVORS, state.transcript, survivors.bitmap))


def reveal(state: Confirmed, agreement: Agreement) -> Reveal:
    """Give away one share of each neighbour, if enough clients signed the survivors that this one signed.

    Raises:
        PrivacyError: another session, or too few valid signatures from survivors.
    """
    _same(state.session, agreement.session)
    members = members_of(state.bitmap, state.terms.num_clients) or set()
    valid = sum(
        signer in members
        and is_signed(state.identities[signer], signature, SIGNED_SURVIVORS, state.transcript, state.bitmap)
        for signer, signature in zip(agreement.signers, agreement.signatures, strict=True)
    )
    if valid < state.terms.agreement:
        raise PrivacyError(f"survivors must be signed by {state.terms.agreement} of them, got {valid}")
    owned = list(zip(state.owners, state.key_shares, state.seed_shares, strict=True))
    dropped = [(owner, share) for owner, share, _ in owned if owner not in members]
    survived = [(owner, share) for owner, _, share in owned if owner in members]
    return Reveal(
        key_owners=tuple(owner for owner, _ in dropped),
        key_shares=tuple(share for _, share in dropped),
        seed_owners=tuple(owner for owner, _ in survived),
        seed_shares=tuple(share for _, share in survived),
    )


def _same(own: bytes, told: bytes) -> None:
    if own != told:
        raise PrivacyError("message must be of this session, got one of another")
