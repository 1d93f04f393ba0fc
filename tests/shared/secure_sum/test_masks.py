import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.secure_sum.masks import centred, expand_mask, pack_words, pair_mask, unpack_words


def key(name: object) -> bytes:
    return hashlib.sha256(repr(name).encode()).digest()


def test_a_mask_is_the_keystream_of_aes_block_by_block():
    block = Cipher(algorithms.AES(key(1)), modes.ECB()).encryptor()
    stream = b"".join(block.update(counter.to_bytes(16, "big")) for counter in range(3))
    expected = [int.from_bytes(stream[at : at + 4], "little") for at in range(0, 40, 4)]
    assert expand_mask(key(1), 10).tolist() == expected


def test_a_pairs_masks_cancel_and_other_pairs_do_not():
    one, other = pair_mask(key(1), 1000, 3, 7), pair_mask(key(1), 1000, 7, 3)
    assert not (one + other).any()
    assert (one != other).mean() > 0.99
    assert (pair_mask(key(2), 1000, 7, 3) + one).any()


def test_masked_zeros_are_uniform_and_the_whole_key_counts():
    low, high = expand_mask(key(3), 200_000) & 0xFF, expand_mask(key(3), 200_000) >> np.uint32(24)
    for part in (low, high):
        assert stats.chisquare(np.bincount(part, minlength=256)).pvalue > 1e-4
    last_bit = key(3)[:-1] + bytes([key(3)[-1] ^ 1])  # a generator that folded its seed would not see it
    assert (expand_mask(last_bit, 1000) == expand_mask(key(3), 1000)).sum() < 3


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_vectors_come_back_modulo_two_to_the_bits(bits: int):
    words = np.random.default_rng(0).integers(0, 2**32, 101, dtype=np.uint32)
    data = pack_words(words, bits)
    assert len(data) == 101 * bits // 8
    np.testing.assert_array_equal(unpack_words(data, bits, 101), words.astype(np.int64) % 2**bits)


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_centred_numbers_are_those_nearest_to_zero(bits: int):
    half = 2 ** (bits - 1)
    values = np.array([0, 1, -1, half - 1, -half, half, 2 * half + 5], dtype=np.int64)
    words = (values & 0xFFFFFFFF).astype(np.uint32)
    assert centred(words, bits).tolist() == [0, 1, -1, half - 1, -half, -half, 5]


def test_another_length_or_width_is_refused():
    with pytest.raises(FederationError, match="must have 6 bytes, got 5"):
        unpack_words(bytes(5), 24, 2)
    with pytest.raises(ConfigError, match="bits must be"):
        pack_words(np.zeros(2, np.uint32), 12)
