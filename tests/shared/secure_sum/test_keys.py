import pytest

from ownlet.shared.errors import FederationError
from ownlet.shared.secure_sum import keys

TRANSCRIPT = b"t" * 32


def pair() -> tuple[bytes, bytes]:
    private = keys.new_private()
    return private, keys.public_of(private)


def test_both_ends_of_a_pair_get_the_same_keys_and_nobody_else():
    (a, public_a), (b, public_b), (c, _) = pair(), pair(), pair()
    assert keys.mask_key(a, public_b, TRANSCRIPT, 1, 2) == keys.mask_key(b, public_a, TRANSCRIPT, 2, 1)
    assert keys.channel_key(a, public_b, TRANSCRIPT, 1, 2) == keys.channel_key(b, public_a, TRANSCRIPT, 1, 2)
    different = {
        keys.mask_key(a, public_b, TRANSCRIPT, 1, 2),
        keys.mask_key(c, public_b, TRANSCRIPT, 1, 2),
        keys.mask_key(a, public_b, b"u" * 32, 1, 2),
        keys.mask_key(a, public_b, TRANSCRIPT, 1, 3),
        keys.channel_key(a, public_b, TRANSCRIPT, 1, 2),
        keys.channel_key(a, public_b, TRANSCRIPT, 2, 1),
    }
    assert len(different) == 6


def test_what_is_sealed_opens_with_its_key_only_and_unaltered_only():
    (a, _), (_, public_b) = pair(), pair()
    key = keys.channel_key(a, public_b, TRANSCRIPT, 1, 2)
    sealed = keys.seal(key, b"two shares")
    assert keys.open_sealed(key, sealed) == b"two shares"
    assert len(sealed) == len(b"two shares") + keys.TAG_BYTES
    assert keys.open_sealed(keys.channel_key(a, public_b, TRANSCRIPT, 2, 1), sealed) is None
    for at in (0, len(sealed) - 1):
        assert keys.open_sealed(key, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
    assert keys.open_sealed(key, b"") is None


def test_a_signature_is_of_one_identity_purpose_and_division_into_parts():
    private = keys.new_identity()
    identity, signature = keys.public_identity(private), keys.sign(private, b"for", b"ab", b"c")
    assert keys.is_signed(identity, signature, b"for", b"ab", b"c")
    assert not keys.is_signed(identity, signature, b"for", b"a", b"bc")
    assert not keys.is_signed(identity, signature, b"against", b"ab", b"c")
    assert not keys.is_signed(keys.public_identity(keys.new_identity()), signature, b"for", b"ab", b"c")
    assert not keys.is_signed(identity, bytes(64), b"for", b"ab", b"c")
    assert not keys.is_signed(b"\xff" * 32, signature, b"for", b"ab", b"c")


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_that_gives_everybody_the_same_secret_is_refused(point: bytes):
    assert not keys.is_usable(point)
    with pytest.raises(FederationError, match="large order"):
        keys.mask_key(keys.new_private(), point, TRANSCRIPT, 1, 2)
    assert keys.is_usable(pair()[1])
