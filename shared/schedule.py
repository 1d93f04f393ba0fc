"""Learning-rate schedules: a factor between 0 and 1 that depends on public numbers only.

Linear warm-up, then one of three ways down: none, a line, or half a cosine (Loshchilov and Hutter 2017,
https://arxiv.org/abs/1608.03983, equation 5 without restarts).
"""

from __future__ import annotations

import math

from ownlet.shared.errors import require

__all__ = ["SCHEDULES", "schedule_factor"]

SCHEDULES = ("constant", "linear", "cosine")


def schedule_factor(schedule: str, step: int, total: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Return what a learning rate is multiplied by.

    Args:
        schedule: one of ``SCHEDULES``.
        step: which step, from 0. The first one after warm-up has factor 1, the one after the last has ``floor``.
        total: steps in all, warm-up included.
        warmup: steps that rise linearly to 1.
        floor: where the way down ends.

    Raises:
        ConfigError: no such schedule.
    """
    require(schedule in SCHEDULES, f"schedule must be one of {SCHEDULES}", schedule=schedule)
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, total - warmup))
    down = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return floor + (1 - floor) * down[schedule]
