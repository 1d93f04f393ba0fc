"""The core of a user-level run: what the measured audits run, and what of the run they leave out, and why they may.

The server's optimiser, its schedule, FedSVD and early stopping only work on what has been released. Ranks and a bound
on whole replies only shorten what a user adds, and so do rounds that train A and B in turn. ``sparse`` sends some of
the numbers of the dense sum, with their noise, and what a device kept of earlier rounds (error feedback) is clipped
together with its next delta. A clip norm that follows the data has a charge of its own for the count that moves it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ownlet.shared.config import FederationConfig
from ownlet.shared.server_config import AdaptiveClip, Robust, ServerOptimizer
from ownlet.shared.wire_config import FLOAT32, WireConfig

__all__ = ["core_of", "left_out"]


def core_of(config: FederationConfig) -> FederationConfig:
    """Return the run without what the module says."""
    return replace(
        config,
        server_optimizer=ServerOptimizer(),
        server_momentum=0.0,
        schedule="constant",
        warmup_rounds=0,
        patience=0,
        svd_every=0,
        alternate=False,
        target_epsilon=math.inf,
        adaptive_clip=AdaptiveClip(),
        robust=Robust(),
        ranks=(),
        wire=_core_of_wire(config.wire),
    )


def _core_of_wire(wire: WireConfig) -> WireConfig:
    return FLOAT32 if wire.name == "sparse" else replace(wire, error_feedback=False)


def left_out(config: FederationConfig) -> tuple[str, ...]:
    """Return the names of settings of a run that its measured audits leave out, but for the usual momentum."""
    core = core_of(config)
    names = ("server_optimizer", "svd_every", "alternate", "adaptive_clip", "robust", "ranks", "wire")
    return tuple(name for name in names if getattr(core, name) != getattr(config, name))
