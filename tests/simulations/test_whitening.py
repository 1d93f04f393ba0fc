import numpy as np

from ownlet.simulations.whitening import fit_whitening


def cone(texts, width=6):
    """Vectors of length 1 that share a large part, and differ more in some directions than in others."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(texts, width)) * np.arange(1, width + 1) + 20
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_what_is_whitened_has_mean_0_and_equal_spread_before_it_is_scaled():
    vectors = cone(400)
    whitening = fit_whitening(vectors)
    mapped = (vectors - whitening.mean) @ whitening.matrix
    np.testing.assert_allclose(mapped.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(mapped, rowvar=False, bias=True), np.eye(6), atol=1e-2)
    found = whitening(vectors)
    np.testing.assert_allclose(found, mapped / np.linalg.norm(mapped, axis=1, keepdims=True), atol=1e-5)
    assert abs(found @ found.T)[~np.eye(400, dtype=bool)].mean() < 0.5 < (vectors @ vectors.T).min()


def test_rows_without_text_stay_zero_and_take_no_part():
    vectors = cone(40)
    padded = np.concatenate([np.zeros((3, 6), np.float32), vectors])
    whitening = fit_whitening(padded)
    np.testing.assert_array_equal(whitening.mean, fit_whitening(vectors).mean)
    found = whitening(padded)
    assert not found[:3].any()
    np.testing.assert_allclose(np.linalg.norm(found[3:], axis=1), 1, atol=1e-5)


def test_few_texts_have_few_directions():
    assert fit_whitening(cone(8)).matrix.shape == (6, 2)
    assert fit_whitening(cone(2)).matrix.shape == (6, 1)


def test_texts_that_are_all_alike_are_left_as_they_are():
    same = np.tile(cone(1), (9, 1))
    for vectors in (same, same[:1]):
        np.testing.assert_allclose(fit_whitening(vectors)(vectors), vectors, atol=1e-6)
