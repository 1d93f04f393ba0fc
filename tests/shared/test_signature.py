"""Signatures hold for one content, one purpose and pinned keys, and for nothing else."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ownlet.shared.errors import ConfigError, StateError
from ownlet.shared.signature import check_public_keys, key_name, sign, verify

# RFC 8032, section 7.1, test 1: the secret key and its public key.
KEY = Ed25519PrivateKey.from_private_bytes(
    bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
)
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()


def test_a_signature_holds_under_any_of_the_pinned_keys():
    signature = sign(b"content", KEY, b"x")
    verify(b"content", signature, [PUBLIC], b"x", "thing")
    verify(b"content", signature, [OTHER, PUBLIC], b"x", "thing")
    assert signature["key"] == key_name(PUBLIC) != key_name(OTHER)


def test_other_content_and_another_purpose_are_refused():
    signature = sign(b"content", KEY, b"x")
    for content, purpose in ((b"contents", b"x"), (b"content", b"y"), (b"", b"x\x00content")):
        with pytest.raises(StateError, match=f"thing must be what key {key_name(PUBLIC)} signed"):
            verify(content, signature, [PUBLIC], purpose, "thing")


def test_a_key_that_is_not_pinned_is_refused_also_under_the_name_of_one_that_is():
    signature = sign(b"content", KEY, b"x")
    with pytest.raises(
        StateError, match=f"must be signed by a pinned key, {key_name(OTHER)}, got key {key_name(PUBLIC)}"
    ):
        verify(b"content", signature, [OTHER], b"x", "thing")
    with pytest.raises(StateError, match="got other content or an altered signature"):
        verify(b"content", {**signature, "key": key_name(OTHER)}, [OTHER], b"x", "thing")


@pytest.mark.parametrize("signature", [None, 5, "text", [], {}, {"key": None}, {"key": 7, "ed25519": "00"}])
def test_what_is_no_signature_is_refused(signature: object):
    with pytest.raises(StateError, match="thing must be signed by a pinned key"):
        verify(b"content", signature, [PUBLIC], b"x", "thing")


@pytest.mark.parametrize("raw", ["", "00" * 64, "zz", None, 5, "ab" * 63])
def test_a_signature_of_other_bytes_is_refused(raw: object):
    with pytest.raises(StateError, match="got other content or an altered signature"):
        verify(b"content", {"key": key_name(PUBLIC), "ed25519": raw}, [PUBLIC], b"x", "thing")


def test_keys_that_cannot_be_pinned_are_named():
    check_public_keys([PUBLIC, OTHER])
    with pytest.raises(ConfigError, match="public keys must be at least one where any is pinned"):
        check_public_keys([])
    with pytest.raises(ConfigError, match="public key must have 32 bytes"):
        check_public_keys([PUBLIC.hex()])  # type: ignore[list-item]
