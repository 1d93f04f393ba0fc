import numpy as np
import pytest

from ownlet.simulations.text_cache import cache_key, cached_vectors

TEXTS = ("alien", "moon")
VECTORS = np.arange(6, dtype=np.float32).reshape(2, 3)


class Encoder:
    """Gives fixed vectors and counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return VECTORS


def test_texts_are_encoded_once(tmp_path):
    encode = Encoder()
    for _ in range(3):
        np.testing.assert_array_equal(cached_vectors(tmp_path / "new", "f", TEXTS, encode), VECTORS)
    assert encode.calls == 1
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("fingerprint", "texts"), [("g", TEXTS), ("f", ("moon", "alien")), ("f", ("alienmoon", "")), ("f", TEXTS[:1])]
)
def test_another_encoder_or_other_texts_have_another_key(fingerprint, texts):
    assert cache_key(fingerprint, texts) != cache_key("f", TEXTS)


def _flip(content):
    changed = bytearray(content)
    changed[-1] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "damage", [lambda c: c[: len(c) // 2], lambda c: b"", _flip, lambda c: b"not safetensors at all"]
)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    cached_vectors(tmp_path, "f", TEXTS, Encoder())
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    for calls in (1, 0):  # the second time it is whole again
        encode = Encoder()
        np.testing.assert_array_equal(cached_vectors(tmp_path, "f", TEXTS, encode), VECTORS)
        assert encode.calls == calls


def test_a_file_of_other_vectors_under_the_right_name_is_not_believed(tmp_path):
    cached_vectors(tmp_path, "other", TEXTS, lambda: VECTORS + 1)
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / f"{cache_key('f', TEXTS)[:32]}.safetensors")
    np.testing.assert_array_equal(cached_vectors(tmp_path, "f", TEXTS, Encoder()), VECTORS)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    np.testing.assert_array_equal(cached_vectors(tmp_path / "file", "f", TEXTS, Encoder()), VECTORS)
    assert "could not be cached" in caplog.text
