import hashlib
import hmac

import pytest

from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.seal import Keys, Seal

KEY = bytes(range(32))


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 with SHA-256, no salt and one block, from the standard library alone."""
    extracted = hmac.new(bytes(32), key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()


def test_keys_are_hkdf_of_the_app_key():
    keys = Keys.of(KEY)
    assert keys.ledger == hkdf(KEY, b"ownlet ledger 1")
    assert keys.state == hkdf(KEY, b"ownlet state 1")


def test_without_an_app_key_there_are_no_keys_and_bytes_pass_through():
    keys = Keys.of(None)
    seal = Seal(keys.state)
    assert (keys.ledger, keys.state, seal.seals) == (b"", b"", False)
    assert seal.seal(b"event", b"history") == b"event"
    assert seal.open(b"event", b"history") == b"event"


@pytest.mark.parametrize("length", [1, 16, 31, 33])
def test_a_key_of_another_length_is_refused_without_showing_it(length: int):
    with pytest.raises(ConfigError, match=f"key must have 32 bytes, got length={length}"):
        Keys.of(b"s" * length)
    with pytest.raises(ConfigError, match=f"state_key must have 32 bytes, got length={length}"):
        Seal(b"s" * length)


def test_an_empty_key_is_a_mistake_of_the_app_and_not_no_key():
    with pytest.raises(ConfigError, match="key must have 32 bytes, got length=0"):
        Keys.of(b"")


def test_keys_do_not_show_in_their_repr():
    assert repr(Keys.of(KEY)) == "Keys()"


@pytest.mark.parametrize("plain", [b"", b"x", b"event" * 1000])
def test_what_was_sealed_opens_to_the_same_bytes(plain: bytes):
    seal = Seal(Keys.of(KEY).state)
    sealed = seal.seal(plain, b"history")
    assert len(sealed) == len(plain) + 28
    assert len(plain) < 8 or plain not in sealed  # a byte is among 28 random ones often enough
    assert seal.open(sealed, b"history") == plain


def test_the_same_bytes_never_look_the_same_twice():
    seal = Seal(KEY)
    assert len({seal.seal(b"event", b"history") for _ in range(100)}) == 100


def test_another_key_or_purpose_does_not_open():
    sealed = Seal(Keys.of(KEY).state).seal(b"event", b"history")
    with pytest.raises(DataError, match="sealed history must open, got another key or altered bytes"):
        Seal(Keys.of(bytes(32)).state).open(sealed, b"history")
    with pytest.raises(DataError, match="sealed adapter must open"):
        Seal(Keys.of(KEY).state).open(sealed, b"adapter")


def test_every_single_flipped_bit_is_noticed():
    seal = Seal(KEY)
    sealed = seal.seal(b"event", b"history")
    for bit in range(8 * len(sealed)):
        altered = bytearray(sealed)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DataError):
            seal.open(bytes(altered), b"history")


def test_every_truncation_is_noticed():
    seal = Seal(KEY)
    sealed = seal.seal(b"event", b"history")
    for length in range(len(sealed)):
        with pytest.raises(DataError):
            seal.open(sealed[:length], b"history")
