import os

import numpy as np
import pytest
import torch

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.shared.config import Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.engine_mechanism import canary_windows
from ownlet.simulations.audit.noise_attack import TorchNoise, attack_noise_source, search_seeds
from ownlet.simulations.audit.one_run import released_sums

PLAN = Plan(steps=1, clip_norm=0.5, noise_multiplier=1.0, learning_rate=0.1)


class Silenced(AesNoise):
    def gaussian(self, size, std):
        return np.zeros(size, np.float32)


def released(tiny, source, num_windows=3):
    windows = canary_windows(num_windows, 50, 5)
    return released_sums(OpacusEngine(tiny.model, tiny.spec), tiny.vector, windows, PLAN, source)[0]


def test_torchs_cpu_generator_has_no_more_than_32_bits_of_seed() -> None:
    first, second = (torch.randn(64, generator=torch.Generator().manual_seed(5 + high)) for high in (0, 7 * 2**32))
    assert torch.equal(first, second)


def test_the_seed_of_torchs_noise_is_found_and_lays_the_gradient_bare(tiny) -> None:
    secret = 2**31 + 2345
    release = released(tiny, TorchNoise(secret))
    gradient = released(tiny, Silenced(bytes(32)))  # what the noise was to hide
    assert np.linalg.norm(release - gradient) > 5 * np.linalg.norm(gradient)
    found = search_seeds(release, PLAN.noise_std, range(2**31, 2**31 + 2**16), before_mask=3)  # coins of 3 windows
    assert found.seed == secret
    assert found.tried == 2346
    np.testing.assert_allclose(found.bare, gradient, atol=1e-5)
    assert not found.check().passed


def test_the_same_attack_finds_nothing_on_noise_of_the_operating_system(tiny) -> None:
    found = search_seeds(released(tiny, AesNoise()), PLAN.noise_std, range(2**12), before_mask=3)
    assert (found.seed, found.bare, found.tried) == (None, None, 2**12)
    assert found.check().passed


def test_sources_are_attacked_by_one_function() -> None:
    weak = attack_noise_source(TorchNoise(60_000), first_seed=57_344)
    assert weak.seed == 60_000
    assert np.linalg.norm(weak.bare) == pytest.approx(1.0, abs=1e-4)  # the made-up gradient sum
    hours = weak.hours_for_all
    assert f"{hours:,.0f} hours" in weak.check().statement


def test_our_noise_has_a_key_of_256_bits_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    first, second = AesNoise().gaussian(64, 1.0), AesNoise().gaussian(64, 1.0)
    assert not np.array_equal(first, second)
    monkeypatch.setattr(os, "urandom", urandom)
    keyed = AesNoise().gaussian(64, 1.0)
    assert asked == [32]
    np.testing.assert_array_equal(keyed, AesNoise(bytes([1]) * 32).gaussian(64, 1.0))


def test_every_bit_of_the_key_counts() -> None:
    key = bytes(range(32))
    base = AesNoise(key).gaussian(16, 1.0)
    for bit in range(256):
        other = bytearray(key)
        other[bit // 8] ^= 1 << bit % 8
        assert not np.array_equal(AesNoise(bytes(other)).gaussian(16, 1.0), base)


def test_a_release_too_short_to_judge_is_refused() -> None:
    with pytest.raises(ConfigError, match="16"):
        search_seeds(np.zeros(8), 1.0, range(4))


@pytest.mark.slow
def test_all_of_2_to_the_20_seeds_leave_our_noise_alone() -> None:
    assert attack_noise_source(AesNoise(), size="thorough").seed is None
