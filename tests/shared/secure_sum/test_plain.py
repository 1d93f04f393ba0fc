from dataclasses import dataclass, replace

import pytest

from ownlet.shared.errors import FederationError
from ownlet.shared.secure_sum.messages import Inbox, Roster, bitmap_of, members_of
from ownlet.shared.secure_sum.plain import from_plain, to_plain
from ownlet.shared.secure_sum.terms import choose_terms

ROSTER = Roster(
    session=b"s" * 32,
    terms=choose_terms(3, dropout=0.0, colluding=0.0, size=4, bits=16),
    about=b"anything",
    identities=(b"a" * 32, b"b" * 32, b"c" * 32),
    index=1,
    mask_keys=(b"m" * 32,) * 2,
    channel_keys=(b"c" * 32,) * 2,
    signatures=(b"g" * 64,) * 2,
)


def test_a_message_comes_back_from_its_plain_form():
    plain = to_plain(ROSTER)
    assert plain["terms.num_clients"] == 3
    assert plain["identities"] == [b"a" * 32, b"b" * 32, b"c" * 32]
    assert from_plain(Roster, plain) == ROSTER


@pytest.mark.parametrize(
    "change",
    [
        {"index": "1"},
        {"index": 1.0},
        {"index": True},
        {"index": 3},
        {"session": b"short"},
        {"identities": [b"a" * 32, "b" * 32, b"c" * 32]},
        {"identities": b"a" * 96},
        {"identities": [b"a" * 32, b"b" * 32]},
        {"mask_keys": [b"m" * 31, b"m" * 32]},
        {"terms.threshold": 1},
        {"terms.more": 1},
        {"more": 1},
    ],
)
def test_another_type_length_or_field_is_refused(change: dict[str, object]):
    with pytest.raises(FederationError, match="Roster must be readable"):
        from_plain(Roster, {**to_plain(ROSTER), **change})


def test_a_missing_field_is_refused():
    plain = to_plain(ROSTER)
    for name in ("about", "terms.bits"):
        with pytest.raises(FederationError, match="readable"):
            from_plain(Roster, {key: value for key, value in plain.items() if key != name})


def test_a_message_whose_lists_do_not_fit_each_other_is_refused():
    with pytest.raises(FederationError):
        from_plain(Inbox, {"session": b"s" * 32, "senders": [1], "sealed": []})
    with pytest.raises(FederationError, match="different"):
        from_plain(Inbox, {"session": b"s" * 32, "senders": [1, 1], "sealed": [bytes(82)] * 2})


def test_the_transcript_is_that_of_all_readers_and_of_no_other_sum():
    other_reader = replace(ROSTER, index=2, mask_keys=(b"n" * 32,) * 2)
    assert other_reader.transcript == ROSTER.transcript
    others = (
        replace(ROSTER, session=b"t" * 32),
        replace(ROSTER, about=b"else"),
        replace(ROSTER, terms=replace(ROSTER.terms, bits=24)),
        replace(ROSTER, identities=(b"b" * 32, b"a" * 32, b"c" * 32)),
    )
    assert len({other.transcript for other in others} | {ROSTER.transcript}) == 5


def test_bitmaps_name_the_members_and_nothing_else():
    for members in (set(), {0}, {7}, {0, 8, 9}):
        assert members_of(bitmap_of(members, 10), 10) == members
    assert members_of(b"\xff\x03", 10) == set(range(10))
    for bad in (b"", b"\x01", b"\x01\x00\x00", b"\x00\x04"):
        assert members_of(bad, 10) is None


@dataclass(frozen=True)
class Odd:
    name: str


def test_texts_are_told_from_bytes():
    assert from_plain(Odd, to_plain(Odd("a"))) == Odd("a")
    with pytest.raises(FederationError):
        from_plain(Odd, {"name": b"a"})
