"""Which settings of a federated run go together; ``FederationConfig`` itself says which values each may have.

Every rule has its reason: two settings that are right alone, and whose promise or arithmetic breaks together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ownlet.shared.errors import require

if TYPE_CHECKING:
    from ownlet.shared.config import FederationConfig

__all__ = ["check_federation"]


def check_federation(config: FederationConfig) -> None:
    """Raise for the first rule that a run breaks.

    Raises:
        ConfigError: settings that do not go together.
    """
    for check in (_unit, _noise_plan, _robust, _secure, _wire, _stragglers, _alternate):
        check(config)


def _unit(config: FederationConfig) -> None:
    require(
        config.unit == "user" or config.adaptive_clip.quantile == 0,
        "quantile of adaptive_clip must be 0 where unit is not user",
        quantile=config.adaptive_clip.quantile,
    )
    if config.unit == "window":
        require(
            config.plan.noise_multiplier > 0,
            "noise_multiplier of the plan must be positive where unit is window",
            noise_multiplier=0,
        )
        require(
            config.windows.context_length == 0,
            "context_length must be 0 where unit is window",
            context_length=config.windows.context_length,
        )
    elif config.unit == "user":
        require(
            math.isfinite(config.clip_norm), "clip_norm must be finite where unit is user", clip_norm=config.clip_norm
        )


def _noise_plan(config: FederationConfig) -> None:
    if not config.correlated:
        return
    require(config.unit == "user", "noise_plan must be independent where unit is not user", unit=config.unit)
    require(config.turns == 0, "turns must be 0 where noise_plan is blt, which has its own order", turns=config.turns)
    require(
        config.adaptive_clip.quantile == 0,
        "quantile of adaptive_clip must be 0 where noise_plan is blt: its noise spans rounds of one clip norm",
        quantile=config.adaptive_clip.quantile,
    )
    require(
        config.svd_every == 0,
        "svd_every must be 0 where noise_plan is blt: noise cannot take itself back in turned coordinates",
        svd_every=config.svd_every,
    )
    require(
        config.noise_plan.min_separation <= config.rounds,
        f"min_separation must be at most rounds, {config.rounds}",
        min_separation=config.noise_plan.min_separation,
    )


def _robust(config: FederationConfig) -> None:
    name = config.robust.name
    require(
        name not in ("median", "trimmed-mean") or config.unit != "user" or config.noise_multiplier == 0,
        "robust must not be median or trimmed-mean under unit user with noise: one user can move them by more than "
        "the clip norm, so that noise would not cover it; norm-bound goes with it",
        robust=name,
    )
    require(
        name == "none" or config.adaptive_clip.quantile == 0,
        "quantile of adaptive_clip must be 0 where replies are not simply added up",
        robust=name,
    )
    require(
        name == "none" or not config.ranks,
        "robust must be none where devices differ in rank: a weaker one's zeros are not its opinion",
        robust=name,
    )
    require(
        name == "none" or not config.secure.enabled,
        "robust must be none under secure aggregation, where nobody sees a single reply",
        robust=name,
    )


def _secure(config: FederationConfig) -> None:
    if not config.secure.enabled:
        return
    require(config.unit != "none", "unit must be user or window under secure aggregation", unit=config.unit)
    require(
        config.adaptive_clip.quantile == 0,
        "quantile of adaptive_clip must be 0 under secure aggregation",
        quantile=config.adaptive_clip.quantile,
    )
    require(not config.correlated, "noise must be independent under secure aggregation", noise_plan=config.noise_plan)


def _wire(config: FederationConfig) -> None:
    wire = config.wire
    require(
        not config.secure.enabled or wire.name == "float32",
        "name of wire must be float32 under secure aggregation, which codes deltas as whole numbers of its own",
        wire=wire.name,
    )
    require(
        not wire.error_feedback or config.svd_every == 0,
        "error_feedback of wire must be false where svd_every turns the coordinates that it was kept in",
        svd_every=config.svd_every,
    )
    if wire.name != "sparse":
        return
    require(
        config.unit != "window",
        "name of wire must not be sparse where unit is window: each number sent carries the noise of all",
        unit=config.unit,
    )
    require(
        not (config.correlated or config.counts or config.robust.name != "none"),
        "name of wire must not be sparse with correlated noise, an adaptive clip or a robust combiner, which take "
        "every number of every round for sent",
        wire=wire.name,
    )


def _stragglers(config: FederationConfig) -> None:
    over = config.stragglers.over_selection
    require(
        over == 1 or not (config.turns or config.correlated or config.buffer.size),
        "over_selection must be 1 where cohorts are not Poisson samples",
        over_selection=over,
    )
    promised = config.unit == "user" and config.noise_multiplier > 0
    require(
        not config.stragglers.take_first or not (promised or config.secure.enabled or config.buffer.size),
        "take_first must be false under user-level noise, secure aggregation and in buffered rounds: a user who is "
        "earlier takes another's place, which moves the sum by more than the clip norm; a deadline goes with them",
        take_first=True,
    )
    if config.buffer.size == 0:
        return
    require(
        not promised,
        "size of buffer must be 0 under user-level noise: one user's arrival decides which other updates share a "
        "buffer, so that it moves sums by more than the clip norm; the unit window goes with it",
        size=config.buffer.size,
    )
    require(
        not (config.secure.enabled or config.ranks or config.counts or config.robust.name != "none"),
        "size of buffer must be 0 with secure aggregation, ranks, an adaptive clip or a robust combiner",
        size=config.buffer.size,
    )


def _alternate(config: FederationConfig) -> None:
    if not config.alternate:
        return
    require(
        not config.correlated,
        "alternate must be false where noise_plan is blt: noise on A cannot take back what was added to B",
        noise_plan=config.noise_plan.name,
    )
    require(config.svd_every == 0, "svd_every must be 0 where rounds alternate and train A", svd_every=config.svd_every)
    require(
        config.adaptive_clip.quantile == 0,
        "quantile of adaptive_clip must be 0 where rounds alternate: deltas of A and of B differ in length",
        quantile=config.adaptive_clip.quantile,
    )
    require(not config.ranks, "ranks must be equal where rounds alternate", ranks=config.ranks)
    require(
        config.buffer.size == 0,
        "size of buffer must be 0 where rounds alternate: an update that comes late is of the other part",
        size=config.buffer.size,
    )
    require(
        not config.wire.error_feedback,
        "error_feedback of wire must be false where rounds alternate: what was left of B is nothing to add to A",
        error_feedback=config.wire.error_feedback,
    )
