"""Content vectors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ownlet.shared.content import content_vectors
from ownlet.shared.errors import ConfigError
from ownlet.shared.interactions import Item


def item(number: int, title: str = "", *genres: str) -> Item:
    return Item(number=number, id=str(number), title=title, genres=genres)


FILMS = [
    item(1, "Solaris (1972)", "Drama", "Sci-Fi"),
    item(2, "Stalker (1979)", "Drama", "Sci-Fi"),
    item(3, "Mamma Mia! (2008)", "Musical"),
    item(4),
]


def test_rows_have_length_one_and_padding_and_unknown_items_are_zero():
    vectors = content_vectors(FILMS, dim=32)
    assert vectors.shape == (5, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 1, 1, 1, 0], atol=1e-6)


def test_items_that_share_genres_and_decade_are_closer_than_those_that_share_nothing():
    vectors = content_vectors(FILMS, dim=512)
    # genres and decade agree, words do not: (1 + 1 + 0) / 3 up to collisions
    assert vectors[1] @ vectors[2] == pytest.approx(2 / 3, abs=0.1)
    assert abs(vectors[1] @ vectors[3]) < 0.2


def test_only_words_after_case_and_stop_words_count():
    a, b, c = content_vectors([item(1, "THE Matrix"), item(2, "matrix"), item(3, "Matrix: Reloaded")], dim=256)[1:]
    np.testing.assert_array_equal(a, b)
    assert 0 < a @ c < 1


def test_a_vector_depends_on_its_own_item_only():
    alone = content_vectors([FILMS[2]])
    np.testing.assert_array_equal(alone[1], content_vectors(FILMS)[3])


def test_signed_hashing_keeps_inner_products_right_on_average():
    # Weinberger et al. 2009, lemma 2: E <a, b>_hashed = <a, b> = 0 for disjoint words; the variance is about 1 / dim.
    items = [item(n, f"word{n}") for n in range(1, 401)]
    vectors = content_vectors(items, dim=64)[1:]
    products = (vectors @ vectors.T)[np.triu_indices(400, 1)]
    assert abs(products.mean()) < 0.01
    assert products.var() == pytest.approx(1 / 64, rel=0.2)


def test_vectors_are_the_same_in_another_process_with_another_hash_seed():
    code = (
        "from ownlet.shared.content import content_vectors; from ownlet.shared.interactions import Item;"
        "item = Item(number=1, id='1', title='Solaris (1972)', genres=('Drama', 'Sci-Fi'));"
        "print(content_vectors([item]).tobytes().hex())"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == content_vectors(FILMS[:1]).tobytes().hex()


def test_no_items_leave_only_padding_and_no_width_is_refused():
    assert content_vectors([], dim=8).tolist() == [[0.0] * 8]
    with pytest.raises(ConfigError, match="dim must be at least 1, got dim=0"):
        content_vectors(FILMS, dim=0)
