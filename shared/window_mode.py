"""Defaults of local (window-level) privacy; ``docs/quality.md`` has what is measured and what is not.

With N devices that each add noise of standard deviation sigma times the clip to every one of P numbers, the average has
a signal-to-noise ratio of ``|g| sqrt(N) / (sigma sqrt(P))``, where g is the mean clipped gradient in units of the clip.
So P is small, every device is asked equally often, and the learning rate is given in units of the clip.
"""

from __future__ import annotations

import math

from ownlet.shared.config import AdapterConfig, FederationConfig, Plan, WindowConfig

__all__ = ["WINDOW_ADAPTER", "window_federation"]

WINDOW_ADAPTER = AdapterConfig(method="lora-frozen-a", target_modules=("down",), rank=1, alpha=2.0)
"""128 numbers in a base of width 64 with two blocks."""


def window_federation(
    noise_multiplier: float,
    *,
    rounds: int = 10,
    turns: int = 1,
    clip_norm: float = 0.1,
    step: float = 0.3,
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
        step: how far a gradient of length C moves the adapter: the learning rate times C.
        windows: how histories are cut.
        dp_delta: at which epsilon is reported.
        target_epsilon: the run stops before a round that would exceed it.
        seed: see ``FederationConfig``.
    """
    return FederationConfig(
        unit="window",
        rounds=rounds,
        turns=turns,
        clip_norm=4 * step,  # of what is not noise; more windows than four are rare
        noise_multiplier=0.0,
        server_momentum=0.9,
        dp_delta=dp_delta,
        target_epsilon=target_epsilon,
        seed=seed,
        plan=Plan(steps=1, learning_rate=step / clip_norm, clip_norm=clip_norm, noise_multiplier=noise_multiplier),
        windows=windows or WindowConfig(),
    )
