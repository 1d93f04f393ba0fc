import contextlib
import itertools

import pytest
import sympy

from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.secure_sum.shamir import PRIME, SHARE_BYTES, join_shares, split_secret

SECRET = bytes(range(32))


def test_the_field_is_the_least_prime_above_all_32_bytes():
    assert sympy.nextprime(2**256) == PRIME


def test_any_threshold_many_shares_give_the_secret_back():
    shares = dict(zip((1, 2, 5, 9, 700), split_secret(SECRET, 3, [1, 2, 5, 9, 700]), strict=True))
    for points in itertools.chain(itertools.combinations(shares, 3), itertools.combinations(shares, 5)):
        assert join_shares({point: shares[point] for point in points}, 3) == SECRET


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_extreme_secrets_and_thresholds_come_back(secret: bytes):
    assert join_shares({4: split_secret(secret, 1, [4])[0]}, 1) == secret
    shares = split_secret(secret, 20, range(1, 21))
    assert join_shares(dict(enumerate(shares, start=1)), 20) == secret
    assert {len(share) for share in shares} == {SHARE_BYTES}


def test_shares_lie_on_the_line_that_an_independent_interpolation_gives():
    one, two, three = (int.from_bytes(share, "big") for share in split_secret(SECRET, 2, [1, 2, 3]))
    assert (2 * two - one - three) % PRIME == 0  # three points of a line
    assert (2 * one - two) % PRIME == int.from_bytes(SECRET, "big")


def test_fewer_shares_than_the_threshold_fit_every_secret():
    share = int.from_bytes(split_secret(SECRET, 2, [1, 2])[0], "big")
    for other in (bytes(32), b"\x07" * 32):  # there is a second share that makes it this secret
        second = (2 * share - int.from_bytes(other, "big")) % PRIME
        both = {1: share.to_bytes(SHARE_BYTES, "big"), 2: second.to_bytes(SHARE_BYTES, "big")}
        assert join_shares(both, 2) == other


def test_too_few_and_foreign_shares_are_refused_and_wrong_ones_give_another_secret():
    shares = dict(enumerate(split_secret(SECRET, 3, [1, 2, 3]), start=1))
    with pytest.raises(FederationError, match="at least 3, got 2"):
        join_shares({1: shares[1], 2: shares[2]}, 3)
    wrong = bytes([shares[2][0] ^ 1]) + shares[2][1:]
    with contextlib.suppress(FederationError):
        assert join_shares({**shares, 2: wrong}, 3) != SECRET
    with pytest.raises(FederationError, match="those of 32 bytes"):
        join_shares({1: (2**256).to_bytes(SHARE_BYTES, "big")}, 1)


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(b"short", 1, [1]), (SECRET, 3, [1, 2]), (SECRET, 0, [1]), (SECRET, 2, [1, 1]), (SECRET, 1, [0, 1])],
)
def test_what_cannot_be_shared_is_refused(secret: bytes, threshold: int, points: list[int]):
    with pytest.raises(ConfigError):
        split_secret(secret, threshold, points)
