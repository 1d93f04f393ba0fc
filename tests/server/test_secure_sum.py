"""The whole protocol, clients and server, without Flower: sums, dropouts, lies."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from ownlet.device import secure_client as client
from ownlet.server.secure_sum import SecureSum, SumResult
from ownlet.shared.errors import ConfigError, FederationError, PrivacyError
from ownlet.shared.secure_sum import keys
from ownlet.shared.secure_sum.messages import SIGNED_ADVERT, SIGNED_SURVIVORS, Agreement, Inbox, Survivors, bitmap_of
from ownlet.shared.secure_sum.terms import SumTerms, choose_terms
from ownlet.shared.secure_sum.vouching import Vouching

SIZE = 23


def same(stage: str, messages: dict[int, Any]) -> dict[int, Any]:
    return messages


@dataclass
class Run:
    """A sum over clients that may drop out before they answer a stage; ``tamper`` sees what goes in both directions."""

    num_clients: int
    dropout: float = 0.25
    colluding: float = 0.0
    bits: int = 24
    lost: dict[str, Collection[int]] = field(default_factory=dict)
    tamper: Callable[[str, dict[int, Any]], dict[int, Any]] = same
    make_terms: Callable[[int], tuple[SumTerms, bytes]] | None = None
    vouching: dict[int, Vouching] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    refusals: dict[int, Exception] = field(default_factory=dict)

    def known(self, name: int) -> frozenset[bytes] | None:
        return self.vouching[name].peers if name in self.vouching else None

    def values(self, name: int) -> NDArray[np.int64]:
        limit = 2 ** (self.bits - 1)
        return np.random.default_rng(name).integers(-limit, limit, SIZE)

    def terms(self, number: int) -> tuple[SumTerms, bytes]:
        chosen = choose_terms(number, dropout=self.dropout, colluding=self.colluding, size=SIZE, bits=self.bits)
        return chosen, b"about"

    def sum(self) -> SumResult:
        self.server = server = SecureSum(self.make_terms or self.terms)
        self.identities = identities = {name: keys.new_identity() for name in range(self.num_clients)}
        invites, vouching = dict.fromkeys(range(self.num_clients), server.invite()), self.vouching.get
        adverts = self.ask("advert", invites, lambda name, got: client.advertise(got, identities[name], vouching(name)))
        rosters = self.tamper("roster", server.rosters(adverts))
        self.index = {name: roster.index for name, roster in rosters.items()}
        shares = self.ask("shares", rosters, lambda name, got: client.join(self.states[name], got, self.known(name)))
        inboxes = self.named(server.inboxes(self.numbered(shares)))
        masked = self.ask("masked", inboxes, self.masked)
        calls = self.named(server.survivors(self.numbered(masked)))
        confirmed = self.ask("confirm", calls, lambda name, got: client.confirm(self.states[name], got))
        proofs = self.named(server.agreement(self.numbered(confirmed)))
        reveals = self.ask(
            "reveal", proofs, lambda name, got: (self.states[name], client.reveal(self.states[name], got))
        )
        return server.unmask(self.numbered(reveals))

    def masked(self, name: int, inbox: Any) -> tuple[Any, Any]:
        state = self.states[name]
        return client.mask(state, client.open_inbox(state, inbox), self.values(name))

    def ask(
        self, stage: str, questions: dict[int, Any], answer: Callable[[int, Any], tuple[Any, Any]]
    ) -> dict[int, Any]:
        answers = {}
        for name, question in self.tamper(f"to {stage}", dict(questions)).items():
            if name in self.lost.get(stage, ()):
                continue
            try:
                self.states[name], answers[name] = answer(name, question)
            except (FederationError, PrivacyError) as error:
                self.refusals[name] = error
        return self.tamper(stage, answers)

    def numbered(self, messages: dict[int, Any]) -> dict[int, Any]:
        return {self.index[name]: message for name, message in messages.items()}

    def named(self, messages: dict[int, Any]) -> dict[int, Any]:
        return {name: messages[at] for name, at in self.index.items() if at in messages}

    def signature(self, name: int, bitmap: bytes | None = None) -> bytes:
        """Return a client's signature over survivors, its own if no others are given."""
        state = self.states[name]
        return keys.sign(self.identities[name], SIGNED_SURVIVORS, state.transcript, bitmap or state.bitmap)

    def plain_sum(self, names: Collection[int]) -> list[int]:
        """Sum modulo 2^bits, nearest to zero, with Python's integers."""
        modulus = 2**self.bits
        totals = [sum(int(self.values(name)[at]) for name in names) for at in range(SIZE)]
        return [(total + modulus // 2) % modulus - modulus // 2 for total in totals]


@pytest.mark.parametrize(
    "num_clients", [3, 4, 9, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in range(5, 20) if n != 9)]
)
def test_the_sum_is_the_plain_sum_modulo_two_to_the_bits(num_clients: int):
    run = Run(num_clients)
    result = run.sum()
    assert result.total.tolist() == run.plain_sum(range(num_clients))
    assert result.survivors == tuple(range(num_clients))
    assert run.server.refused == []


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_every_modulus_gives_the_sum(bits: int):
    run = Run(5, bits=bits)
    assert run.sum().total.tolist() == run.plain_sum(range(5))


@pytest.mark.parametrize("num_clients", [0, 1, 2])
def test_fewer_than_three_clients_have_no_sum_to_hide_in(num_clients: int):
    with pytest.raises(ConfigError, match="at least 3"):
        Run(num_clients).sum()


STAGES = ("advert", "shares", "masked", "confirm", "reveal")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("lost", [(0,), (2, 7)])
def test_dropouts_at_any_stage_leave_the_sum_of_those_whose_vectors_came(stage: str, lost: tuple[int, ...]):
    run = Run(9, lost={stage: lost})  # of 9 clients 2 may drop out
    counted = range(9) if stage in ("confirm", "reveal") else [name for name in range(9) if name not in lost]
    assert run.sum().total.tolist() == run.plain_sum(counted)


def test_dropouts_at_several_stages_add_up_within_the_tolerance():
    run = Run(16, lost={"shares": (1,), "masked": (2,), "confirm": (3,), "reveal": (4,)})
    result = run.sum()
    assert result.total.tolist() == run.plain_sum([name for name in range(16) if name not in (1, 2)])
    assert len(result.survivors) == 14


@pytest.mark.parametrize(
    ("stage", "rule"),
    [
        ("shares", "12 clients that sent shares, got 11"),
        ("masked", "12 clients that sent a masked vector, got 11"),
        ("confirm", "9 clients that signed the survivors, got 8"),
        ("reveal", "8 clients that gave a right share"),
    ],
)
def test_beyond_the_tolerance_the_sum_ends_with_an_error_and_no_secret_is_revealed(stage: str, rule: str):
    revealed = []

    def watch(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        if at == "reveal":
            revealed.append(len(messages))
        return messages

    lost = {"shares": 5, "masked": 5, "confirm": 8, "reveal": 9}[stage]
    run = Run(16, lost={stage: range(lost)}, tamper=watch)
    with pytest.raises(FederationError, match=rule):
        run.sum()
    assert revealed == ([] if stage != "reveal" else [7])  # 7 shares of each secret: one too few


def test_before_the_end_the_server_holds_only_uniform_numbers():
    """The same inputs twice: what is sent has no bit in common beyond chance, and zeros look like anything else."""
    seen: list[bytes] = []

    def watch(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        if at == "masked":
            seen.extend(message.data for message in messages.values())
        return messages

    for _ in range(2):
        run = Run(4, tamper=watch)
        run.values = lambda name: np.zeros(SIZE, np.int64)  # type: ignore[method-assign]
        assert not run.sum().total.any()
    assert len(set(seen)) == 8
    ones = np.unpackbits(np.frombuffer(b"".join(seen), np.uint8)).mean()
    assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(8 * SIZE * 24)


def change(stage: str, alter: Callable[[Any], Any], victims: Collection[int] = (0,)) -> Any:
    def tamper(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        if at != stage:
            return messages
        return {name: alter(message) if name in victims else message for name, message in messages.items()}

    return tamper


def wrong(parts: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return tuple(part[:-1] + bytes([part[-1] ^ 1]) for part in parts)


def test_wrong_shares_are_found_by_the_digests_and_cost_only_their_sender():
    run = Run(9, tamper=change("reveal", lambda told: replace(told, seed_shares=wrong(told.seed_shares)), (0, 1)))
    assert run.sum().total.tolist() == run.plain_sum(range(9))
    assert len(run.server.refused) == 16
    assert all("must be the one it was dealt" in reason for reason in run.server.refused)


def test_too_many_wrong_shares_end_the_sum():
    tamper = change("reveal", lambda told: replace(told, key_shares=wrong(told.key_shares)), range(5))
    run = Run(9, lost={"masked": (8,)}, tamper=tamper)
    with pytest.raises(FederationError, match="right share of client 8"):
        run.sum()


def test_shares_altered_on_their_way_are_not_used_and_not_given_away():
    run = Run(9, tamper=change("shares", lambda dealt: replace(dealt, sealed=wrong(dealt.sealed))))
    with pytest.raises(FederationError, match="right share of client 0"):
        run.sum()  # nobody can open what client 0 dealt out, so nobody has a share of it


def test_a_client_that_can_open_too_few_shares_sends_nothing():
    swap = change("to masked", lambda inbox: replace(inbox, sealed=inbox.sealed[1:] + inbox.sealed[:1]))
    run = Run(9, tamper=swap)
    assert run.sum().total.tolist() == run.plain_sum(range(1, 9))
    assert "from 5 neighbours, got 0" in str(run.refusals[0])


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (lambda advert: replace(advert, mask_key=keys.public_of(keys.new_private())), "signed by its identity"),
        (lambda advert: replace(advert, signature=bytes(64)), "signed by its identity"),
        (lambda advert: replace(advert, identity=keys.public_identity(keys.new_identity())), "signed by its identity"),
    ],
)
def test_an_advert_that_its_identity_did_not_sign_is_left_out(alter: Callable[[Any], Any], reason: str):
    run = Run(6, tamper=change("advert", alter))
    assert run.sum().total.tolist() == run.plain_sum(range(1, 6))
    assert 0 not in run.index
    assert reason in run.server.refused[0]


def test_an_identity_that_comes_twice_and_a_useless_key_are_left_out():
    private = keys.new_identity()
    useless = bytes(32)
    server = SecureSum(Run(5).terms)
    adverts = {name: client.advertise(server.invite(), keys.new_identity())[1] for name in range(3)}
    for name in (7, 8):
        adverts[name] = client.advertise(server.invite(), private)[1]
    other = keys.new_identity()
    signature = keys.sign(other, SIGNED_ADVERT, server.invite().session, useless, useless)
    adverts[9] = replace(
        adverts[0],
        identity=keys.public_identity(other),
        mask_key=useless,
        channel_key=useless,
        signature=signature,
    )
    assert sorted(server.rosters(adverts)) == [0, 1, 2, 7]
    assert ["identity must be its own" in server.refused[0], "large order" in server.refused[1]] == [True, True]


@pytest.fixture(scope="module")
def vouching() -> dict[int, Vouching]:
    """The keys of six clients that know each other."""
    made = {name: ec.generate_private_key(ec.SECP384R1()) for name in range(6)}
    form = (serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    peers = frozenset(key.public_key().public_bytes(*form) for key in made.values())
    return {name: Vouching(key=key, peers=peers) for name, key in made.items()}


def test_clients_that_vouch_for_their_identities_add_up_as_others_do(vouching: dict[int, Vouching]):
    run = Run(6, vouching=vouching, lost={"masked": (3,)})
    assert run.sum().total.tolist() == run.plain_sum({0, 1, 2, 4, 5})


def test_clients_that_know_each_other_give_nothing_where_the_server_invents_one(vouching: dict[int, Vouching]):
    run = Run(7, vouching=vouching)  # nobody vouches for the seventh
    with pytest.raises(FederationError, match="clients that sent shares, got 1"):
        run.sum()
    assert set(run.refusals) == set(range(6))
    assert all("vouched for by keys among the peers" in str(error) for error in run.refusals.values())


def test_clients_that_know_each_other_refuse_an_identity_that_the_server_put_in_anothers_place(
    vouching: dict[int, Vouching],
):
    def in_the_middle(stage: str, messages: dict[int, Any]) -> dict[int, Any]:
        if stage != "roster":
            return messages
        index, own = messages[2].index, keys.public_identity(keys.new_identity())
        changed = {}
        for name, roster in messages.items():
            identities = list(roster.identities)
            identities[index] = roster.identities[index] if name == 2 else own
            changed[name] = replace(roster, identities=tuple(identities))
        return changed

    run = Run(6, vouching=vouching, tamper=in_the_middle)
    with pytest.raises(FederationError, match="clients that sent shares, got 1"):
        run.sum()
    assert all("got another for index=2" in str(error) for error in run.refusals.values())


def test_a_voucher_that_is_wrong_or_of_a_key_that_vouched_already_costs_only_its_sender(vouching: dict[int, Vouching]):
    run = Run(6, vouching=vouching, tamper=change("advert", lambda advert: replace(advert, voucher=bytes(145))))
    assert run.sum().total.tolist() == run.plain_sum(range(1, 6))
    assert run.server.refused == ["advert, client 0: the key that vouches for it must be its own"]
    run = Run(6, vouching={**vouching, 5: vouching[4]})
    assert run.sum().total.tolist() == run.plain_sum(range(5))
    assert run.server.refused == ["advert, client 5: the key that vouches for it must be its own"]


def test_a_vector_of_another_length_is_a_dropout():
    run = Run(9, tamper=change("masked", lambda told: replace(told, data=told.data[:-1])))
    assert run.sum().total.tolist() == run.plain_sum(range(1, 9))
    assert "must have 69 bytes, got 68" in run.server.refused[0]


def test_a_client_that_dealt_out_shares_of_something_else_ends_the_sum():
    run = Run(9, tamper=change("shares", lambda dealt: replace(dealt, seed_commitment=bytes(32))))
    with pytest.raises(FederationError, match="client 0 must deal out shares of what it committed to"):
        run.sum()


# A server that lies.


def lying(stage: str, lie: Callable[[int, Any], Any]) -> Any:
    def tamper(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        return {name: lie(name, message) for name, message in messages.items()} if at == stage else messages

    return tamper


@pytest.mark.parametrize(("split", "proved"), [(2, 1), (4, 0), (5, 0), (7, 1)])
def test_of_two_stories_about_who_dropped_out_at_most_one_gets_any_shares(split: int, proved: int):
    """Some are told that client 8 survived, others that it dropped out: both kinds of shares would lay it open."""
    without = bitmap_of(set(range(8)), 9)
    told: dict[int, Any] = {}

    def lie(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        if at == "confirm":
            told.update(messages)
        if at != "to confirm":
            return messages
        return {name: replace(call, bitmap=without) if name < split else call for name, call in messages.items()}

    run = Run(9, colluding=0.2, tamper=lie, lost={"reveal": range(9)})  # what they reveal is asked below
    with pytest.raises(FederationError):
        run.sum()
    states = {name: state for name, state in run.states.items() if isinstance(state, client.Confirmed)}
    stories = {
        state.bitmap: {name for name in told if states[name].bitmap == state.bitmap} for state in states.values()
    }
    assert sorted(map(len, stories.values())) == sorted((split, 9 - split))
    gave = set()
    for _name, state in states.items():
        for signers in (*stories.values(), set(told)):  # the best that the server can show: one story's, or all
            shown = {other: run.signature(other) for other in signers}
            agreement = Agreement(session=state.session, signers=tuple(shown), signatures=tuple(shown.values()))
            with suppress(PrivacyError):
                client.reveal(state, agreement)
                gave.add(state.bitmap)
    assert len(gave) == proved


def test_survivors_that_leave_a_client_alone_are_refused():
    """On a circle of degree 2, dropping both neighbours of a client would lay its vector open."""
    terms = replace(choose_terms(8, dropout=0.4, colluding=0.0, size=SIZE, bits=24), degree=2, threshold=2)
    run = Run(8, make_terms=lambda number: (terms, b""))
    circle: list[tuple[int, ...]] = []

    def isolate(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        if at != "to confirm":
            return messages
        from ownlet.shared.secure_sum.graph import neighbours_of

        circle.extend(neighbours_of(8, 2, run.states[0].transcript))
        alone = set(range(8)) - set(circle[0])
        return {name: replace(told, bitmap=bitmap_of(alone, 8)) for name, told in messages.items()}

    run.tamper = isolate
    with pytest.raises(FederationError):
        run.sum()
    refused = {str(error) for name, error in run.refusals.items() if name not in circle[0]}
    assert refused == {"survivors must hang together, got a group without an edge to the others"}
    assert all("include the reader" in str(run.refusals[name]) for name in circle[0])


@pytest.mark.parametrize(
    ("bitmap", "rule"),
    [
        (bitmap_of(set(range(6)), 9), "at least 7, got 6"),
        (bitmap_of(set(range(1, 9)), 9), "include the reader"),
        (b"\xff\xff", "of this sum"),
        (b"\xff", "of this sum"),
    ],
)
def test_a_set_of_survivors_that_breaks_the_terms_is_not_signed(bitmap: bytes, rule: str):
    run = Run(9)
    run.lost = {"confirm": range(9)}
    with pytest.raises(FederationError):
        run.sum()
    state = run.states[0]
    with pytest.raises(PrivacyError, match=rule):
        client.confirm(state, Survivors(session=state.session, bitmap=bitmap))


def test_a_survivor_that_sent_no_shares_is_refused():
    run = Run(9, lost={"shares": (3,), "confirm": range(9)})
    with pytest.raises(FederationError):
        run.sum()
    state = run.states[0]
    with pytest.raises(PrivacyError, match="must have sent shares"):
        client.confirm(state, Survivors(session=state.session, bitmap=bitmap_of(set(range(9)), 9)))


@pytest.mark.parametrize("lost", [(), (8,)])
def test_of_each_neighbour_one_secret_is_revealed_and_never_both(lost: tuple[int, ...]):
    told: dict[int, Any] = {}

    def watch(at: str, messages: dict[int, Any]) -> dict[int, Any]:
        told.update(messages if at == "reveal" else {})
        return messages

    Run(9, lost={"masked": lost}, tamper=watch).sum()
    for reveal in told.values():
        assert set(reveal.key_owners) == set(lost)
        assert not set(reveal.key_owners) & set(reveal.seed_owners)
        assert len(reveal.key_owners) + len(reveal.seed_owners) == 8


def test_an_agreement_of_too_few_of_others_or_of_copies_is_refused():
    run = Run(9, lost={"reveal": range(9)})
    with pytest.raises(FederationError):
        run.sum()
    state = run.states[0]
    assert state.terms.agreement == 5
    good = {name: run.signature(name) for name in range(5)}

    def told(signatures: dict[int, bytes]) -> Agreement:
        return Agreement(session=state.session, signers=tuple(signatures), signatures=tuple(signatures.values()))

    for bad in (
        {name: good[name] for name in range(4)},
        {**good, 4: good[3]},
        {**good, 4: bytes(64)},
        dict(zip(range(4, 9), good.values(), strict=True)),
    ):
        with pytest.raises(PrivacyError, match="signed by 5 of them"):
            client.reveal(state, told(bad))
    with pytest.raises(ConfigError, match="different"):
        Agreement(session=state.session, signers=(0,) * 5, signatures=(good[0],) * 5)
    assert len(client.reveal(state, told(good)).seed_owners) == 8


def test_a_message_of_another_session_is_refused_at_every_stage():
    first, second = Run(4), Run(4)
    messages: dict[str, dict[int, Any]] = {}

    def keep(at: str, told: dict[int, Any]) -> dict[int, Any]:
        messages[at] = told
        return told

    first.tamper = keep
    first.sum()
    for stage in ("shares", "masked", "confirm", "reveal"):
        second = Run(4, tamper=lying(f"to {stage}", lambda name, told, at=stage: messages[f"to {at}"][name]))
        with pytest.raises((FederationError, KeyError)):
            second.sum()
        assert len(second.refusals) == 4
        assert all("session" in str(error) for error in second.refusals.values())


def test_a_roster_that_was_changed_is_refused():
    def swap_keys(name: int, roster: Any) -> Any:
        stranger = keys.public_of(keys.new_private())
        return replace(roster, mask_keys=(stranger, *roster.mask_keys[1:]))

    lies: dict[str, Callable[[int, Any], Any]] = {
        "signed by it": swap_keys,
        "own identity": lambda name, roster: replace(roster, index=(roster.index + 1) % 4),
        "be different": lambda name, roster: replace(roster, identities=roster.identities[:1] * 4),
    }
    for rule, lie in lies.items():
        run = Run(4, tamper=lying("roster", lie))
        with pytest.raises(FederationError, match="sent shares, got 0"):
            run.sum()
        assert all(rule in str(error) for error in run.refusals.values())


def test_clients_that_were_told_other_terms_do_not_understand_each_other():
    def weaker(name: int, roster: Any) -> Any:
        return replace(roster, terms=replace(roster.terms, num_colluding=0)) if name < 4 else roster

    run = Run(9, colluding=0.2, tamper=lying("roster", weaker))
    with pytest.raises(FederationError, match="sent a masked vector"):
        run.sum()
    assert all("that open" in str(error) for error in run.refusals.values())


def test_a_sender_that_is_no_neighbour_is_refused():
    run = Run(4, lost={"masked": range(4)})
    with pytest.raises(FederationError):
        run.sum()
    state = run.states[0]
    assert isinstance(state, client.Joined)
    with pytest.raises(PrivacyError, match="neighbours"):
        client.open_inbox(state, Inbox(session=state.session, senders=(0,), sealed=(bytes(82),)))
    with pytest.raises(FederationError, match="shape"):
        client.mask(state, client.Entrusted(senders=(), shares={}), np.zeros(3, np.int64))


def test_a_sparse_graph_gives_the_sum_and_bears_dropouts():
    terms = replace(choose_terms(24, dropout=0.25, colluding=0.0, size=SIZE, bits=24), degree=8, threshold=5)
    run = Run(24, make_terms=lambda number: (terms, b""), lost={"masked": (3, 11)})
    result = run.sum()
    assert result.total.tolist() == run.plain_sum([name for name in range(24) if name not in (3, 11)])
    assert {len(state.owners) for state in run.states.values() if isinstance(state, client.Confirmed)} <= {6, 7, 8}


def test_what_a_client_keeps_after_masking_are_no_keys_of_its_own():
    run = Run(4, lost={"confirm": range(4)})
    with pytest.raises(FederationError):
        run.sum()
    assert isinstance(run.states[0], client.Sent)
    assert not {"mask_private", "channel_private", "seed"} & set(vars(run.states[0]))
