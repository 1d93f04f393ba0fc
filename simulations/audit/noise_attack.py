"""Brute force on noise: what a released delta tells where its noise came from a small seed.

torch's CPU generator is a Mersenne twister that is started from 32 bits: whatever ``manual_seed`` is given, and however
a process starts it, there are 2^32 streams. Whoever holds a release tries them all. For the right one, release
minus noise is a gradient sum, short; for every other it is longer than the release. Then the noise is gone, and with it
the whole guarantee, though accounting, sensitivity and the noise's distribution are all as they should be: no other
audit can see it. ``AesNoise`` has a key of 256 bits from the operating system, so that there is nothing to try.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ownlet.shared.errors import require
from ownlet.shared.noise import NoiseSource
from ownlet.simulations.audit.result import AuditSize, Check
from ownlet.simulations.progress import Progress, Silent

__all__ = ["SEED_BITS", "SeedSearch", "TorchNoise", "attack_noise_source", "search_seeds"]

SEED_BITS: dict[AuditSize, int] = {"quick": 16, "thorough": 20}
EFFECTIVE_BITS = 32  # of torch's CPU generator
_PREFIX = 64  # numbers that a seed is judged by before all are looked at; a multiple of torch's blocks of 16
_SHORT = 0.5  # of the noise's mean square: what is left for the right seed is below, for another it is about 2


class TorchNoise:
    """Noise and coins from torch's CPU generator, as most training code draws them: what must not be released."""

    def __init__(self, seed: int) -> None:
        """Start the generator."""
        self._generator = torch.Generator().manual_seed(seed)

    def poisson_mask(self, size: int, rate: float) -> NDArray[np.bool_]:
        """Return (size,) independent coins, true with probability ``rate``."""
        mask: NDArray[np.bool_] = (torch.rand(size, generator=self._generator) < rate).numpy()
        return mask

    def gaussian(self, size: int, std: float) -> NDArray[np.float32]:
        """Return (size,) independent normals with the given standard deviation."""
        drawn: NDArray[np.float32] = (torch.randn(size, generator=self._generator) * std).numpy()
        return drawn

    def negatives(self, windows: int, number: int, num_items: int) -> NDArray[np.int64]:
        """Return (windows, number) independent item numbers."""
        drawn: NDArray[np.int64] = torch.randint(1, num_items + 1, (windows, number), generator=self._generator).numpy()
        return drawn


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedSearch:
    """What trying seeds found.

    Args:
        seed: the one that explains the release, or None.
        bare: (n,) the release without its noise, where a seed was found: the gradient sum.
        tried: how many seeds were tried.
        seconds: of computing, on one core.
    """

    seed: int | None
    bare: NDArray[np.float64] | None
    tried: int
    seconds: float

    @property
    def hours_for_all(self) -> float:
        """How long one core takes at the measured speed for all 2^32 seeds: an extrapolation, and not a measurement."""
        return self.seconds / self.tried * 2.0**EFFECTIVE_BITS / 3600

    def check(self) -> Check:
        """Return what this says of the noise's source."""
        hours = f"{self.hours_for_all:,.0f} hours"
        speed = f"All 2^{EFFECTIVE_BITS} seeds of torch's CPU generator would take one core {hours}."
        if self.seed is None:
            statement = f"No seed of the {self.tried:,} that were tried explains the noise of a release. {speed}"
        else:
            statement = f"Seed {self.seed} reproduces the noise of a release, which bares what it hid. {speed}"
        return Check(name="noise-source", passed=self.seed is None, statement=statement, measured=float(self.tried))


def search_seeds(
    release: NDArray[np.floating], noise_std: float, seeds: Iterable[int], *, before_mask: int = 0
) -> SeedSearch:
    """Try seeds of torch's CPU generator until one explains the noise of a release.

    Args:
        release: (n,) the first step's sum, gradients plus noise; at least 16 numbers.
        noise_std: of the noise: a public number.
        seeds: to try.
        before_mask: so many coins were drawn from the same generator before the noise.

    Returns:
        what was found; ``tried`` counts the seeds up to there.
    """
    require(len(release) >= 16, "release must have at least 16 numbers", size=len(release))
    prefix = min(_PREFIX, len(release) - len(release) % 16)
    head = torch.from_numpy(np.asarray(release[:prefix], np.float64).astype(np.float32))
    bar = _SHORT * prefix * noise_std**2
    generator, started, tried = torch.Generator(), time.thread_time(), 0
    for seed in seeds:
        tried += 1
        generator.manual_seed(seed)
        if before_mask:
            torch.rand(before_mask, generator=generator)
        drawn = torch.randn(prefix, generator=generator)
        if float((head - noise_std * drawn).square().sum()) < bar:
            bare = _without_noise(release, noise_std, seed, before_mask)
            if float(np.square(bare).mean()) < _SHORT * noise_std**2:
                return SeedSearch(seed=seed, bare=bare, tried=tried, seconds=time.thread_time() - started)
    require(tried > 0, "seeds must be some", tried=tried)
    return SeedSearch(seed=None, bare=None, tried=tried, seconds=time.thread_time() - started)


def _without_noise(release: NDArray[np.floating], noise_std: float, seed: int, before_mask: int) -> NDArray[np.float64]:
    source = TorchNoise(seed)
    if before_mask:
        source.poisson_mask(before_mask, 0.5)
    bare: NDArray[np.float64] = release.astype(np.float64) - source.gaussian(len(release), noise_std)
    return bare


def attack_noise_source(
    source: NoiseSource,
    *,
    size: AuditSize = "quick",
    first_seed: int = 0,
    num_trainable: int = 1024,
    noise_multiplier: float = 1.0,
    progress: Progress | None = None,
) -> SeedSearch:
    """Let a source noise a made-up gradient sum of norm 1, and try to take the noise away again.

    Args:
        source: of the noise.
        size: 2^16 or 2^20 seeds: a part of torch's space, which is tried in full at home.
        first_seed: where the part begins.
        num_trainable: numbers in a release.
        noise_multiplier: of the noise.
        progress: told of the parts.
    """
    gradient = np.random.default_rng(0).normal(size=num_trainable)
    release = gradient / np.linalg.norm(gradient) + source.gaussian(num_trainable, noise_multiplier)
    parts = 2 ** (SEED_BITS[size] - 12)
    tried, seconds = 0, 0.0
    with (progress or Silent()).stage(f"2^{SEED_BITS[size]} seeds of the noise", parts) as step:
        for part in range(parts):
            start = first_seed + part * 2**12
            found = search_seeds(release, noise_multiplier, range(start, start + 2**12))
            tried, seconds = tried + found.tried, seconds + found.seconds
            step(f"{tried / max(seconds, math.ulp(1.0)):,.0f} seeds/s")
            if found.seed is not None:
                break
    return SeedSearch(seed=found.seed, bare=found.bare, tried=tried, seconds=seconds)
