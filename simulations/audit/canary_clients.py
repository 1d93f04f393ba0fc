"""The federated audit: canary clients that send random directions take part in the real rounds, at user level.

Andrew et al. 2023 (https://arxiv.org/abs/2302.03098). Independent random directions in many dimensions are nearly
orthogonal to each other and to whatever users send, so one run with many canaries stands for many runs with one. What
is looked at is the cosine of the final movement of the adapter with each direction (section 3), or, for an attacker who
sees every round, the largest cosine with any round's release (section 4). Directions that nobody sent say how such
cosines are distributed without a canary: normal with mean 0 and variance 1/d, up to O(1/d).

Two numbers. ``epsilon_estimate`` is the paper's: both groups of cosines as two normals, and the epsilon at delta
between these. It is an estimate without a confidence, and can be above the truth. The lower bound is a proper one:
which of the directions are sent is decided by a fair coin each, an attacker guesses about the surest of them, and the
number of right guesses bounds epsilon as in the one-run audit, whatever the cosines depend on.

Canaries send ten times C, so that a node that forgets to clip is caught, too. They live in a shard of their own beside
the real users; server, messages, admission, aggregation and the client's clipping are the deployed code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats  # type: ignore[import-untyped]

from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig, Plan, WindowConfig
from ownlet.shared.noise import NoiseSource
from ownlet.shared.windows import Windows
from ownlet.simulations.audit.canaries import audit_start
from ownlet.simulations.audit.decode import membership_scores
from ownlet.simulations.audit.one_run import one_run_result
from ownlet.simulations.audit.result import AuditResult, AuditSize, Claim
from ownlet.simulations.audit.round_releases import plain_config, released_rounds
from ownlet.simulations.audit.user_level import claim_of_federation
from ownlet.simulations.progress import Progress, Silent
from ownlet.simulations.store import EventStore

__all__ = ["CanaryShard", "Observed", "audit_canary_clients", "epsilon_of_normals", "random_directions"]

Observed = Literal["rounds", "final"]
"""What the attacker sees: every round's adapter, or the last one only."""

NUM_DIRECTIONS: dict[AuditSize, int] = {"quick": 200, "thorough": 1000}
_LENGTH = 10.0  # of what a canary sends, in clip norms
_LARGEST_EPSILON = 1e4

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryWindows(Windows):
    """The windows of a client that has none, and sends a direction.

    Args:
        direction: (num_trainable,) its delta; zeros for one that is not there.
    """

    direction: Floats


class CanaryEngine:
    """Trains users as the inner engine does, and lets canaries move by their directions; a ``device.train.Engine``."""

    def __init__(self, inner: Engine) -> None:
        """Take the engine of the real users."""
        self._inner = inner

    @property
    def spec(self) -> AdapterSpec:
        """The adapter that the inner engine trains."""
        return self._inner.spec

    def train(
        self, vector: Vector, users: Sequence[Windows], plan: Plan, noises: Sequence[NoiseSource]
    ) -> NDArray[np.float32]:
        """Return each user's adapter; see ``device.train.Engine``."""
        trained = np.tile(vector, (len(users), 1))
        real = [at for at, windows in enumerate(users) if not isinstance(windows, CanaryWindows)]
        if real:
            chosen = [users[at] for at in real]
            trained[real] = self._inner.train(vector, chosen, plan, [noises[at] for at in real])
        for at, windows in enumerate(users):
            if isinstance(windows, CanaryWindows):
                trained[at, self.spec.trainable] += windows.direction.astype(np.float32)
        return trained


class CanaryShard:
    """Hosts the users of a store, and behind them one canary per direction; a ``device.client.Shard``."""

    def __init__(self, engine: Engine, store: EventStore, windows: WindowConfig, directions: Floats) -> None:
        """Host everybody.

        Args:
            engine: trains the store's users.
            store: the real users 0..N-1.
            windows: how their histories are cut.
            directions: (m, num_trainable) what canaries N..N+m-1 send; zeros for one that is not there.
        """
        self.engine = CanaryEngine(engine)
        self._store, self._windows, self._directions = store, windows, directions

    @property
    def base_hash(self) -> str:
        """The hash of the base that the engine holds."""
        return self.engine.spec.base_hash

    def windows(self, users: Sequence[int]) -> Sequence[Windows]:
        """Return each user's windows, those of canaries with their direction.

        Raises:
            KeyError: there is no such user.
        """
        known = self._store.num_users
        if any(not 0 <= user < known + len(self._directions) for user in users):
            raise KeyError(users)
        real = iter(self._store.windows(np.array([u for u in users if u < known], np.int64), self._windows))
        return [next(real) if user < known else self._canary(user - known) for user in users]

    def _canary(self, number: int) -> CanaryWindows:
        empty = np.zeros((0, self._windows.row_length))
        return CanaryWindows(
            history=empty.astype(np.int64),
            target=empty.astype(np.int64),
            valid=empty.astype(np.float32),
            direction=self._directions[number],
        )


def audit_canary_clients(
    engine: Engine,
    config: FederationConfig,
    *,
    store: EventStore | None = None,
    vector: Vector | None = None,
    observe: Observed = "rounds",
    name: str = "canary clients",
    size: AuditSize = "quick",
    seed: int = 0,
    noise_seed: int | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AuditResult:
    """Audit the rounds of a user-level run with canary clients.

    Args:
        engine: trains the real users.
        config: the run: unit ``user``, Poisson cohorts, with noise. What ``audit/core.py`` says is
            left out.
        store: the real users; by default nobody but canaries.
        vector: (P,) the adapter to start from.
        observe: what the attacker sees.
        name: for the report.
        size: 200 or 1,000 directions, half of them sent; fewer where the adapter has too few numbers.
        seed: of directions and coins.
        noise_seed: of cohorts and noise, for tests; by default both come from the operating system.
        confidence: of the lower bound.
        progress: told of rounds.

    Raises:
        ConfigError: another unit, or no noise.
    """
    spec, store = engine.spec, EventStore.of([]) if store is None else store
    start, rng = audit_start(spec, vector, seed), np.random.default_rng([seed, 2])
    number = min(NUM_DIRECTIONS[size], max(2, spec.num_trainable // 2))
    directions, sent = random_directions(number, spec.num_trainable, rng), rng.random(number) < 0.5
    num_users = store.num_users + number
    plain = plain_config(config, start, num_users, seed=noise_seed)
    claim = claim_of_federation(plain)
    lengths = np.where(sent, _LENGTH * plain.clip_norm, 0.0)[:, None]  # (m, 1)
    shard = CanaryShard(engine, store, plain.windows, directions * lengths)
    with (progress or Silent()).stage(f"federated audit: {name}", plain.rounds) as step:
        releases = released_rounds(plain, shard, start, num_users, step)
    if observe == "final":
        scores = _final_scores(releases.sum(axis=0), directions, claim)
    else:
        scores = membership_scores(releases, plain.clip_norm * directions, claim)
    result = one_run_result(name, claim, scores, sent, confidence)
    cosines = _cosines(releases, directions, observe)
    figures = {
        "canaries": float(sent.sum()),
        "directions": number,
        "mean_cosine_sent": float(cosines[sent].mean()),
        "mean_cosine_unsent": float(cosines[~sent].mean()),
        "epsilon_estimate": _estimate(cosines[sent], cosines[~sent], spec.num_trainable, observe, claim.dp_delta),
    }
    return replace(result, method="federated", figures={**result.figures, **figures})


def random_directions(count: int, dimensions: int, rng: np.random.Generator) -> Floats:
    """Return (count, dimensions) independent directions of norm 1, every one equally likely."""
    drawn = rng.normal(size=(count, dimensions))
    directions: Floats = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return directions


def _final_scores(movement: Floats, directions: Floats, claim: Claim) -> Floats:
    """Return scores (m,) from the sum of all releases: how far beyond half of what a canary is expected to add.

    The threshold is fixed by the claim: a canary is in q T rounds on average, with C each time.
    """
    scores: Floats = directions @ movement / claim.clip_norm - claim.sample_rate * claim.steps / 2
    return scores


def _cosines(releases: Floats, directions: Floats, observe: Observed) -> Floats:
    """Return the paper's statistic of each direction, (m,)."""
    seen = releases.sum(axis=0, keepdims=True) if observe == "final" else releases
    cosines: Floats = directions @ seen.T / np.linalg.norm(seen, axis=1)  # (m, rounds or 1)
    largest: Floats = cosines.max(axis=1)
    return largest


def _estimate(sent: Floats, unsent: Floats, dimensions: int, observe: Observed, dp_delta: float) -> float:
    """Return the paper's estimate of epsilon, NaN where a group has fewer than two."""
    if len(sent) < 2 or len(unsent) < 2:
        return math.nan
    out = (0.0, dimensions**-0.5) if observe == "final" else (float(unsent.mean()), float(unsent.std(ddof=1)))
    return epsilon_of_normals(out, (float(sent.mean()), float(sent.std(ddof=1))), dp_delta)


def epsilon_of_normals(first: tuple[float, float], second: tuple[float, float], dp_delta: float) -> float:
    """Return the least epsilon at which two normals, each (mean, standard deviation), are (epsilon, dp_delta) close."""

    def excess(epsilon: float) -> float:
        return max(_hockey_stick(first, second, epsilon), _hockey_stick(second, first, epsilon)) - dp_delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0 and high < _LARGEST_EPSILON:
        high *= 2
    return high if high >= _LARGEST_EPSILON else float(optimize.brentq(excess, 0.0, high))


def _hockey_stick(p: tuple[float, float], q: tuple[float, float], epsilon: float) -> float:
    """Return the integral of max(0, p - e^epsilon q): p and q are compared where p > e^epsilon q, between two roots."""
    (mean, std), (other_mean, other_std) = p, q
    square = 0.5 * (other_std**-2 - std**-2)
    linear = mean / std**2 - other_mean / other_std**2
    constant = 0.5 * (other_mean**2 / other_std**2 - mean**2 / std**2) + math.log(other_std / std) - epsilon
    if abs(square) * max(std, other_std) ** 2 < 1e-9:  # equal spreads: one root
        if linear == 0:
            return 0.0
        root = -constant / linear
        edges = [(root, math.inf)] if linear > 0 else [(-math.inf, root)]
    else:
        inside = linear**2 - 4 * square * constant
        if inside <= 0:
            edges = [(-math.inf, math.inf)] if square > 0 else []
        else:
            low, high = sorted((-linear + sign * math.sqrt(inside)) / (2 * square) for sign in (-1, 1))
            edges = [(-math.inf, low), (high, math.inf)] if square > 0 else [(low, high)]
    mass = sum(_mass(p, *edge) for edge in edges)
    other = sum(_mass(q, *edge) for edge in edges)
    return mass - (math.exp(epsilon + math.log(other)) if other > 0 else 0.0)


def _mass(normal: tuple[float, float], low: float, high: float) -> float:
    """Return the chance of a normal to be between two numbers, without cancellation in the right tail."""
    left, right = ((edge - normal[0]) / normal[1] for edge in (low, high))
    if left > 0:
        left, right = -right, -left
    return float(stats.norm.cdf(right) - stats.norm.cdf(left))
