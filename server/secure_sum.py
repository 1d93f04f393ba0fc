"""The server's side of one secure sum: five questions, and the sum of those that survived.

Every method takes what came back from the clients, checks it, and returns what to ask next; a client whose answer is
missing or wrong has dropped out from there on. Where too few are left the sum ends with an error, and what the server
has seen by then are uniform numbers. Masked vectors are added up as they come and not kept.

The protocol is described in ``device/secure_client.py``, the messages in ``shared/secure_sum/messages.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.errors import FederationError
from ownlet.shared.secure_sum.graph import hangs_together, neighbours_of
from ownlet.shared.secure_sum.keys import is_signed, is_usable, mask_key, public_of
from ownlet.shared.secure_sum.masks import Words, centred, expand_mask, pair_mask, unpack_words
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
    bitmap_of,
    seed_commitment,
    share_digest,
)
from ownlet.shared.secure_sum.shamir import join_shares
from ownlet.shared.secure_sum.terms import SumTerms
from ownlet.shared.secure_sum.vouching import voucher_key

__all__ = ["SecureSum", "SumResult"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SumResult:
    """What a secure sum ends with.

    Args:
        total: (size,) the sum of the survivors' vectors, in -2^(bits-1) to 2^(bits-1) - 1.
        survivors: whose vectors are in it, as the roster numbers them.
        num_clients: n, how many were in the roster.
    """

    total: NDArray[np.int64]
    survivors: tuple[int, ...]
    num_clients: int


class SecureSum:
    """The state of one sum; the methods are called once each, in the order in which they stand here."""

    def __init__(self, make_terms: Callable[[int], tuple[SumTerms, bytes]]) -> None:
        """Open a session.

        Args:
            make_terms: the number of clients that advertised keys -> terms, and what the sum is about.
        """
        self._make_terms = make_terms
        self._session = os.urandom(32)
        self.refused: list[str] = []  # why answers did not count: stage and client, never data

    def invite(self) -> Invite:
        """Return what every client is asked first."""
        return Invite(session=self._session)

    def rosters(self, adverts: Mapping[int, Advert]) -> dict[int, Roster]:
        """Give every client a number, and tell it of its neighbours.

        Args:
            adverts: by any name of the client, such as its node id.

        Returns:
            the same name -> roster; ``roster.index`` is the client's number from here on.

        Raises:
            ConfigError: too few clients for the terms.
        """
        good: dict[int, Advert] = {}
        for name, advert in adverts.items():
            if problem := self._problem_of(advert, list(good.values())):
                self.refused.append(f"advert, client {name}: {problem}")
            else:
                good[name] = advert
        self._terms, self._about = self._make_terms(len(good))
        self._adverts = list(good.values())
        first = self._roster(0, ())
        self._transcript = first.transcript
        self._neighbours = neighbours_of(self._terms.num_clients, self._terms.degree, self._transcript)
        return {name: self._roster(index, self._neighbours[index]) for index, name in enumerate(good)}

    def _problem_of(self, advert: Advert, others: Sequence[Advert]) -> str | None:
        keys = (advert.mask_key, advert.channel_key)
        if advert.identity in {other.identity for other in others}:
            return "its identity must be its own"
        if advert.voucher:  # clients check it, too; one that is wrong shall cost its sender, not the sum
            point = voucher_key(advert.voucher, self._session, advert.identity)
            if point is None or any(other.voucher.startswith(point) for other in others):
                return "the key that vouches for it must be its own"
        if not is_signed(advert.identity, advert.signature, SIGNED_ADVERT, self._session, *keys):
            return "its keys must be signed by its identity"
        return None if all(is_usable(key) for key in keys) else "its keys must be points of large order"

    def _roster(self, index: int, peers: tuple[int, ...]) -> Roster:
        vouchers = tuple(advert.voucher for advert in self._adverts)
        shown = [self._adverts[peer] for peer in peers] or [self._adverts[0]] * self._terms.degree
        return Roster(
            session=self._session,
            terms=self._terms,
            about=self._about,
            identities=tuple(advert.identity for advert in self._adverts),
            index=index,
            mask_keys=tuple(advert.mask_key for advert in shown),
            channel_keys=tuple(advert.channel_key for advert in shown),
            signatures=tuple(advert.signature for advert in shown),
            vouchers=vouchers if any(vouchers) else (),
        )

    def inboxes(self, shares: Mapping[int, Shares]) -> dict[int, Inbox]:
        """Hand sealed shares on.

        Args:
            shares: client -> what it dealt out.

        Raises:
            FederationError: fewer clients than the terms ask for.
        """
        self._shares = {client: dealt for client, dealt in shares.items() if self._is_whole(client, dealt)}
        self._require(len(self._shares), self._terms.least, "sent shares")
        return {client: self._inbox(client) for client in self._shares}

    def _is_whole(self, client: int, dealt: Shares) -> bool:
        whole = len(dealt.sealed) == self._terms.degree
        if not whole:
            self.refused.append(f"shares, client {client}: there must be one for each neighbour")
        return whole

    def _inbox(self, client: int) -> Inbox:
        senders = tuple(peer for peer in self._neighbours[client] if peer in self._shares)
        place = [self._neighbours[peer].index(client) for peer in senders]
        sealed = tuple(self._shares[peer].sealed[at] for peer, at in zip(senders, place, strict=True))
        return Inbox(session=self._session, senders=senders, sealed=sealed)

    def survivors(self, masked: Mapping[int, Masked]) -> dict[int, Survivors]:
        """Add up what came, and say whose vectors are in the sum.

        Raises:
            FederationError: fewer than the terms ask for, or a group of them has no edge to the others.
        """
        self._sum: Words = np.zeros(self._terms.size, dtype=np.uint32)
        self._survivors: set[int] = set()
        for client, message in masked.items():
            try:
                self._sum += unpack_words(message.data, self._terms.bits, self._terms.size)
                self._survivors.add(client)
            except FederationError as error:
                self.refused.append(f"masked vector, client {client}: {error}")
        self._require(len(self._survivors), self._terms.least, "sent a masked vector")
        if not hangs_together(self._neighbours, self._survivors):
            raise FederationError("survivors must hang together, got a group without an edge to the others")
        self._bitmap = bitmap_of(self._survivors, self._terms.num_clients)
        return dict.fromkeys(sorted(self._survivors), Survivors(session=self._session, bitmap=self._bitmap))

    def agreement(self, confirmations: Mapping[int, Confirmation]) -> dict[int, Agreement]:
        """Hand the signatures on, as many as a client asks for.

        Raises:
            FederationError: too few valid ones.
        """
        good = {}
        for client, confirmation in confirmations.items():
            identity = self._adverts[client].identity
            if is_signed(identity, confirmation.signature, SIGNED_SURVIVORS, self._transcript, self._bitmap):
                good[client] = confirmation.signature
            else:
                self.refused.append(f"confirmation, client {client}: it must sign the survivors that it was told of")
        self._require(len(good), self._terms.agreement, "signed the survivors")
        signers = tuple(good)[: self._terms.agreement]
        signatures = tuple(good[signer] for signer in signers)
        return dict.fromkeys(good, Agreement(session=self._session, signers=signers, signatures=signatures))

    def unmask(self, reveals: Mapping[int, Reveal]) -> SumResult:
        """Take the masks off the sum.

        Raises:
            FederationError: too few right shares of a mask.
        """
        told_keys = {by: dict(zip(told.key_owners, told.key_shares, strict=True)) for by, told in reveals.items()}
        told_seeds = {by: dict(zip(told.seed_owners, told.seed_shares, strict=True)) for by, told in reveals.items()}
        dropped = sorted(set(self._shares) - self._survivors)
        keys = {owner: self._secret(owner, told_keys, self._shares[owner].key_digests) for owner in dropped}
        seeds = {owner: self._secret(owner, told_seeds, self._shares[owner].seed_digests) for owner in self._survivors}
        total, size = self._sum.copy(), self._terms.size
        for client, seed in seeds.items():
            if seed_commitment(self._transcript, seed) != self._shares[client].seed_commitment:
                raise FederationError(f"client {client} must deal out shares of what it committed to")
            total -= expand_mask(seed, size)
        for client, private in keys.items():
            if public_of(private) != self._adverts[client].mask_key:
                raise FederationError(f"client {client} must deal out shares of the key that it advertised")
            for peer in self._survivors & set(self._neighbours[client]):
                key = mask_key(private, self._adverts[peer].mask_key, self._transcript, client, peer)
                total += pair_mask(key, size, client, peer)  # cancels what the survivor added
        return SumResult(
            total=centred(total, self._terms.bits),
            survivors=tuple(sorted(self._survivors)),
            num_clients=self._terms.num_clients,
        )

    def _secret(self, owner: int, told: Mapping[int, Mapping[int, bytes]], digests: tuple[bytes, ...]) -> bytes:
        """Return the secret that an owner dealt out, from those shares that are what it dealt out."""
        right = {}
        for peer, digest in zip(self._neighbours[owner], digests, strict=True):
            share = told.get(peer, {}).get(owner)
            if share is not None and share_digest(self._transcript, share) == digest:
                right[peer + 1] = share
            elif share is not None:
                self.refused.append(f"reveal, client {peer}: its share of client {owner} must be the one it was dealt")
        self._require(len(right), self._terms.threshold, f"gave a right share of client {owner}")
        return join_shares(right, self._terms.threshold)

    @staticmethod
    def _require(count: int, least: int, what: str) -> None:
        if count < least:
            raise FederationError(f"secure sum must have {least} clients that {what}, got {count}")
