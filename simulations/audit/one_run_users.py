"""The one-run audit at user level: canaries are users with random histories, their contributions whole clipped deltas.

Which of them are there is decided by coins; one that is not has an empty history. The rounds are those of a deployment
(``round_releases``). See ``one_run`` for the bound, and ``canary_clients`` for canaries that send random directions in
place of what training gives.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ownlet.device.train import Engine, clipped_deltas
from ownlet.shared.adapter import Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.delta import clip_to_norm
from ownlet.shared.errors import PrivacyError
from ownlet.shared.noise import AesNoise
from ownlet.simulations.audit.canaries import audit_start, distinct_rows
from ownlet.simulations.audit.decode import membership_scores
from ownlet.simulations.audit.one_run import NUM_CANARIES, one_run_result
from ownlet.simulations.audit.result import AuditResult, AuditSize
from ownlet.simulations.audit.round_releases import plain_config, released_rounds
from ownlet.simulations.audit.user_level import claim_of_federation
from ownlet.simulations.progress import Progress, Silent
from ownlet.simulations.shard import StoreShard
from ownlet.simulations.store import EventStore

__all__ = ["audit_one_run_users"]

_LOUD = 2.0  # raw deltas are at least so many clip norms


def audit_one_run_users(
    engine: Engine,
    config: FederationConfig,
    *,
    num_items: int,
    vector: Vector | None = None,
    name: str = "user level, server",
    size: AuditSize = "quick",
    seed: int = 0,
    noise_seed: int | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit the rounds of a user-level run with canary users.

    Args:
        engine: trains the canary users.
        config: the run; see ``round_releases.plain_config``. The clip norm is lowered where deltas do not reach it, and
            every user trains on all of its windows.
        num_items: of the catalogue.
        vector: (P,) the adapter to start from.
        name: for the report.
        size: 200 or 1,000 canary users.
        seed: of histories and coins.
        noise_seed: of cohorts and noise, for tests; by default both come from the operating system.
        confidence: of the lower bound.
        progress: told of rounds.

    Raises:
        ConfigError: another unit, or no noise.
        PrivacyError: a canary user has no delta.
    """
    spec, windows = engine.spec, config.windows
    number = min(NUM_CANARIES[size], max(2, spec.num_trainable // 2))
    start, rng = audit_start(spec, vector, seed), np.random.default_rng([seed, 3])
    histories = list(rng.integers(1, num_items + 1, (2 * number, windows.window_length)))
    config = replace(config, plan=replace(config.plan, sample_rate=1.0))
    users, sources = range(2 * number), [AesNoise.seeded("canary user", user) for user in range(2 * number)]
    everybody = EventStore.of(histories).windows(np.arange(2 * number), windows)
    raw = clipped_deltas(engine, start, everybody, config.plan, sources, math.inf)  # (2m, num_trainable)
    norms = np.linalg.norm(raw, axis=1)
    if not (np.isfinite(norms).all() and norms.min() > 0):
        raise PrivacyError(f"canary users must have deltas, got one without among {len(users)}")
    kept = distinct_rows(raw / norms[:, None], number)
    config = replace(config, clip_norm=min(config.clip_norm, float(norms[kept].min()) / _LOUD))
    plain = plain_config(config, start, number, seed=noise_seed)
    included = rng.random(number) < 0.5
    nothing = np.zeros(0, np.int64)
    store = EventStore.of([histories[at] if there else nothing for at, there in zip(kept, included, strict=True)])
    with (progress or Silent()).stage(f"one-run audit: {name}", plain.rounds) as step:
        releases = released_rounds(plain, StoreShard(engine, store, windows), start, number, step)
    claim = claim_of_federation(plain)
    contributions = clip_to_norm(raw[kept], plain.clip_norm).astype(np.float64)
    return one_run_result(name, claim, membership_scores(releases, contributions, claim), included, confidence)
