import numpy as np
import pytest

from ownlet.shared.adapter import AdapterSpec, LayerShape
from ownlet.shared.delta import clip_to_norm, delta_of
from ownlet.shared.errors import ConfigError


def test_delta_is_local_minus_global_over_b_only():
    spec = AdapterSpec(layers=(LayerShape(name="x", in_features=3, out_features=2),), rank=1, alpha=1.0, base_hash="h")
    np.testing.assert_array_equal(
        delta_of(spec, np.array([9, 9, 9, 5, 7], "f4"), np.array([1, 1, 1, 2, 3], "f4")), [3, 4]
    )


def test_clipping_scales_long_deltas_and_leaves_short_ones_alone():
    long, short = np.array([3.0, 4.0], np.float32), np.array([0.3, 0.4], np.float32)
    np.testing.assert_allclose(clip_to_norm(long, 1.0), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(clip_to_norm(short, 1.0), short)
    np.testing.assert_array_equal(clip_to_norm(np.zeros(2, np.float32), 1.0), [0, 0])
    np.testing.assert_array_equal(clip_to_norm(long, np.inf), long)


def test_clipping_never_increases_the_norm():
    rng = np.random.default_rng(0)
    for _ in range(50):
        delta = (rng.standard_normal(300) * 10 ** rng.uniform(-3, 3)).astype(np.float32)
        clip = 10 ** rng.uniform(-3, 3)
        norm = np.linalg.norm(clip_to_norm(delta, clip).astype(np.float64))
        assert norm <= min(clip, np.linalg.norm(delta.astype(np.float64))) * (1 + 1e-6)


def test_clip_norm_must_be_positive():
    with pytest.raises(ConfigError, match="clip_norm must be positive, got clip_norm=0"):
        clip_to_norm(np.ones(2, np.float32), 0)
