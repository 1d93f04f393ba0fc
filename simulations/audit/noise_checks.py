"""The noise of releases, measured: its size per tensor, its shape, its independence, and that nothing else is in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.bounds import repeat_of, std_p_value, std_upper
from ownlet.simulations.audit.mechanism import Mechanism
from ownlet.simulations.audit.result import Check
from ownlet.simulations.audit.sources import Recorded

__all__ = ["NoiseFound", "measure_noise", "noise_checks", "replay_checks"]

_NONE = 1e-5  # of the promised standard deviation: less is rounding
_REPLAYED = 1e-3  # likewise: how far a release may be from what the source drew
_SHAPE_NUMBERS = 20_000  # the distribution test is told of no more, so that rounding does not fail it
_SAME = 0.99  # a correlation from which on noise is a copy


@dataclass(frozen=True, kw_only=True)
class NoiseFound:
    """What releases without a unit to tell apart consist of.

    Args:
        empty: (releases, P) without data, from two sources, one after the other.
        with_data: (releases, P) with all units, minus their mean.
    """

    empty: NDArray[np.float64]
    with_data: NDArray[np.float64]

    def upper(self, part: slice, alpha: float) -> float:
        """Return an upper bound on a tensor's standard deviation, wrong with probability at most alpha."""
        empty, data = self.empty[:, part], self.with_data[:, part]
        return min(
            std_upper(float(np.square(empty).sum()), empty.size, alpha / 2),
            std_upper(float(np.square(data).sum()), data.size - data.shape[1], alpha / 2),
        )


def measure_noise(mechanism: Mechanism, releases: int) -> NoiseFound:
    """Release with the operating system's randomness, without and with data.

    Args:
        mechanism: what is audited.
        releases: of each kind.
    """
    nobody, everybody = np.zeros(mechanism.num_units, np.bool_), np.ones(mechanism.num_units, np.bool_)
    sources = [AesNoise()] * (releases - releases // 2) + [AesNoise()] * (releases // 2)
    empty = np.stack([mechanism.release(nobody, source) for source in sources])
    source = AesNoise()
    data = np.stack([mechanism.release(everybody, source) for _ in range(releases)])
    return NoiseFound(empty=empty, with_data=data - data.mean(axis=0))


def noise_checks(mechanism: Mechanism, found: NoiseFound, alarm: float) -> tuple[list[Check], bool]:
    """Test size, shape and independence.

    Args:
        mechanism: what is audited.
        found: its noise.
        alarm: the chance that a correct mechanism fails one of these checks, at the most.

    Returns:
        the checks, and whether some noise is a copy of other noise, so that a difference of releases has none.
    """
    claim = mechanism.claim
    std = claim.noise_multiplier * claim.clip_norm
    parts = _noised_tensors(mechanism)
    shape = _shape_check(found.empty[:, mechanism.noised], alarm / 4)
    independence, copied = _independence_check(found.empty, parts, alarm / 4)
    return [
        _size_check("noise", found.empty, found.empty.size, parts, std, alarm / 4),
        _size_check("noise-with-data", found.with_data, None, parts, std, alarm / 4),
        shape,
        independence,
    ], copied


def replay_checks(mechanism: Mechanism) -> list[Check]:
    """Hold releases against what a recording source drew: noise from elsewhere cannot be vouched for."""
    claim, units = mechanism.claim, mechanism.num_units
    std = claim.noise_multiplier * claim.clip_norm
    nobody, everybody = np.zeros(units, np.bool_), np.ones(units, np.bool_)
    first, again, unlucky, whole = (Recorded(AesNoise.seeded("audit", "replay")) for _ in range(4))
    once = mechanism.release(nobody, first)
    gap = max(_gap(mechanism, once, first.normals), float(np.abs(once - mechanism.release(nobody, again)).max()))
    batchless = _gap(mechanism, mechanism.release(everybody, unlucky, "none"), unlucky.normals)
    rows, steps = mechanism.training(whole), 0
    size = len(rows[0, mechanism.noised])
    if len(whole.normals) % size == 0:
        steps = len(whole.normals) // size
    drawn = whole.normals[: steps * size].reshape(steps, size)
    wanted = drawn if len(rows) == steps else drawn.sum(axis=0, keepdims=True)
    trained = float(np.abs(rows[:, mechanism.noised] - wanted).max()) if len(rows) == len(wanted) else math.inf
    return [
        _exact("replay", gap, std, "a release without data is the noise that was drawn from the audited source"),
        _exact("empty-batch", batchless, std, "a step whose batch is empty releases its noise all the same"),
        _exact("training", trained, std * max(1, steps) ** 0.5, f"a training releases the noise of its {steps} steps"),
    ]


def _gap(mechanism: Mechanism, release: NDArray[np.float64], drawn: NDArray[np.float64]) -> float:
    noised = release[mechanism.noised]
    return float(np.abs(noised - drawn).max()) if len(drawn) == len(noised) else math.inf


def _exact(name: str, gap: float, std: float, statement: str) -> Check:
    return Check(
        name=name, passed=gap <= _REPLAYED * std, statement=f"{statement}: the largest difference is {gap:.2g}",
        measured=gap, claimed=0.0,
    )  # fmt: skip


def _noised_tensors(mechanism: Mechanism) -> dict[str, slice]:
    noised = mechanism.noised
    return {
        name: part
        for name, part in mechanism.tensors.items()
        if noised.start <= part.start and part.stop <= noised.stop
    }


def _size_check(
    name: str, rows: NDArray[np.float64], degrees: int | None, parts: Mapping[str, slice], std: float, alarm: float
) -> Check:
    """Test the standard deviation of every tensor; without ``degrees`` the rows' mean was taken from the data."""
    worst, measured, where = math.inf, 0.0, ""
    for tensor, part in parts.items():
        values = rows[:, part]
        free = values.size if degrees is not None else values.size - values.shape[1]
        squares = float(np.square(values).sum())
        p_value = std_p_value(squares, free, std)
        if p_value < worst or not where:
            worst, measured, where = p_value, math.sqrt(squares / free), tensor
    kind = "without data" if degrees is not None else "with data"
    return Check(
        name=name,
        passed=worst >= alarm / len(parts),
        statement=f"noise {kind} has a standard deviation of {measured:.4g} in {where}, where it is farthest from the "
        f"promised {std:.4g}",
        measured=measured,
        claimed=std,
    )


def _shape_check(values: NDArray[np.float64], alarm: float) -> Check:
    flat = values.ravel()[:_SHAPE_NUMBERS]
    spread = float(flat.std())
    p_value = float(stats.kstest(flat / spread, "norm").pvalue) if spread > 0 else 0.0
    return Check(
        name="noise-shape",
        passed=p_value >= alarm,
        statement=f"noise is as a normal distribution has it (Kolmogorov-Smirnov p-value {p_value:.2g})",
        measured=p_value,
    )


def _independence_check(rows: NDArray[np.float64], parts: Mapping[str, slice], alarm: float) -> tuple[Check, bool]:
    """Look for noise that repeats, at any distance: between numbers, tensors, steps or trainings."""
    series = {"all": rows[:, min(p.start for p in parts.values()) : max(p.stop for p in parts.values())].ravel()}
    series |= {tensor: rows[:, part].ravel() for tensor, part in parts.items()}
    found = {name: repeat_of(values) for name, values in series.items()}
    name = min(found, key=lambda key: (found[key][2], -abs(found[key][0])))
    correlation, shift, p_value = found[name]
    copied = any(abs(r) >= _SAME and p < alarm / len(series) for r, _, p in found.values())
    check = Check(
        name="independence",
        passed=p_value >= alarm / len(series),
        statement=f"no noise repeats other noise: the most alike parts, {shift} numbers apart in {name}, have a "
        f"correlation of {correlation:.2g} (p-value {p_value:.2g})",
        measured=correlation,
        claimed=0.0,
    )
    return check, copied
