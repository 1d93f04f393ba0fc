"""Defaults of local (window-level) privacy; ``docs/quality.md`` has the measurements behind them.

With N devices that each add noise of standard deviation sigma times the clip to every one of P numbers, the average has
a signal-to-noise ratio of ``|g| sqrt(N) / (sigma sqrt(P))``, where g is the mean clipped gradient in units of the clip.
Noise is spread over P directions, most of which hardly matter to the ranking, so fewer numbers are not better; how long
the noise is altogether is what must be bounded. So every device is asked equally often, the learning rate is given in
units of the clip, and it falls with sigma.
"""

from __future__ import annotations

import math

from ownlet.shared.config import FederationConfig, Plan, WindowConfig

__all__ = ["window_federation", "window_step"]

_LONGEST_STEP = 0.1
_NOISY_STEP = 0.06  # times 1 / sigma: measured on 3,000 devices (docs/quality.md)


def window_step(noise_multiplier: float) -> float:
    """Return how far a gradient of length C may move the adapter, at this noise: the learning rate times C."""
    return min(_LONGEST_STEP, _NOISY_STEP / noise_multiplier) if noise_multiplier > 0 else _LONGEST_STEP


def window_federation(
    noise_multiplier: float,
    *,
    rounds: int = 10,
    turns: int = 1,
    clip_norm: float = 0.1,
    step: float | None = None,
    windows: WindowConfig | None = None,
    dp_delta: float = 1e-5,
    target_epsilon: float = math.inf,
    seed: int | None = None,
) -> FederationConfig:
    """Return the settings of a run with unit ``window``.

    Args:
        noise_multiplier: sigma, of every window gradient sum.
        rounds: every device is in ``turns`` of them.
        turns: how often a device takes part.
        clip_norm: C, of a window's gradient.
        step: how far a gradient of length C moves the adapter: the learning rate times C; by default ``window_step``.
        windows: how histories are cut.
        dp_delta: at which epsilon is reported.
        target_epsilon: the run stops before a round that would exceed it.
        seed: see ``FederationConfig``.
    """
    step = window_step(noise_multiplier) if step is None else step
    return FederationConfig(
        unit="window",
        rounds=rounds,
        turns=turns,
        clip_norm=4 * _LONGEST_STEP,  # of what is not noise; more windows than four are rare
        noise_multiplier=0.0,
        server_momentum=0.9,
        dp_delta=dp_delta,
        target_epsilon=target_epsilon,
        seed=seed,
        plan=Plan(steps=1, learning_rate=step / clip_norm, clip_norm=clip_norm, noise_multiplier=noise_multiplier),
        windows=windows or WindowConfig(),
    )
