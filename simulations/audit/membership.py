"""Membership inference: whether an adapter gives away whose events it was trained on.

The attack of Yeom et al. 2018 (https://arxiv.org/abs/1709.01604) with the base as its reference: a user's score is how
much the adapter lowers the mean loss of that user's training windows. It is told at low false positive rates, where
an attack is worth most to an attacker (Carlini et al. 2022, https://arxiv.org/abs/2112.03570).

Who the non-members are decides whether any of this means something: members and others must come from the same
distribution, or the attack separates populations and not memberships. Two ways are fair. A run's own users that its
cohorts never asked: the server's coins chose them, blindly (``audit_membership_run``). Where there are too few of them,
as in most runs, the audit runs the same rounds again and leaves users out by its own coins (``audit_membership``).
Public users are not used: the base was trained on them.

This is a sanity figure. The attack sees the last adapter only, and real users in place of canaries, so it finds little;
a small number here proves nothing. The lower bound on epsilon uses a threshold chosen on one half of the users and
counted on the other, by Clopper and Pearson, which treats users' scores as independent: given the adapter those of the
others are, those of members only nearly so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

from ownlet.device.client import make_client_app
from ownlet.device.train import Engine
from ownlet.shared.adapter import AdapterSpec, Vector, initial_adapter
from ownlet.shared.config import FederationConfig, WindowConfig
from ownlet.shared.errors import require
from ownlet.shared.lora import applied
from ownlet.shared.objectives import softmax_loss
from ownlet.shared.recommender import Recommender, module_of, scores
from ownlet.shared.windows import WindowStack
from ownlet.simulations.audit.rates import epsilon_of_counts, epsilon_of_rates, rate_interval
from ownlet.simulations.audit.result import AuditResult, AuditSize, Check
from ownlet.simulations.audit.user_level import claim_of_federation
from ownlet.simulations.federated_run import FederatedRunConfig, load_parts, make_engine
from ownlet.simulations.grid import InProcessGrid
from ownlet.simulations.progress import Progress, Silent
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

__all__ = ["audit_membership", "audit_membership_run", "membership_result", "user_scores"]

NUM_USERS: dict[AuditSize, int] = {"quick": 1000, "thorough": 10_000}
FEWEST_OTHERS = 200  # never asked users that a finished run must have, or it is run again
_FALSE_RATES = (0.01, 0.001)
_BATCH = 256  # windows at a time

Floats = NDArray[np.float64]


class _Chosen:
    """Hosts some users of a store under new numbers; a ``device.client.Shard``."""

    def __init__(
        self, engine: Engine, store: EventStore, windows: WindowConfig, held_out: int, users: NDArray[np.int64]
    ) -> None:
        self.engine, self._store, self._users = engine, store, users
        self._windows, self._held_out = windows, held_out

    @property
    def base_hash(self) -> str:
        return self.engine.spec.base_hash

    def windows(self, users: Sequence[int]) -> WindowStack:
        asked = np.asarray(users, np.int64)
        if ((asked < 0) | (asked >= len(self._users))).any():
            raise KeyError(users)
        return self._store.windows(self._users[asked], self._windows, held_out=self._held_out)


def audit_membership(
    model: Recommender,
    engine: Engine,
    store: EventStore,
    config: FederationConfig,
    *,
    num_users: int | None = None,
    held_out: int = 0,
    start: Vector | None = None,
    name: str = "membership inference",
    size: AuditSize = "quick",
    seed: int = 0,
    noise_seed: int | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AuditResult:
    """Run rounds over a random half of the users, and ask whether the adapter tells the halves apart.

    Args:
        model: the frozen base, with the engine's adapter attached.
        engine: trains the users.
        store: the users.
        config: the run, of unit ``user``, with noise and Poisson cohorts.
        num_users: devices are the users 0..num_users-1 of the store; by default all.
        held_out: this many of each user's last events are not trained on.
        start: (P,) the adapter to start from; by default a fresh one.
        name: for the report.
        size: at most 1,000 or 10,000 users in both halves together.
        seed: of who is left out.
        noise_seed: of cohorts and noise, for tests; by default both come from the operating system.
        confidence: of the lower bound.
        progress: told of rounds.

    Raises:
        ConfigError: another unit, or no noise.
    """
    spec, rng = engine.spec, np.random.default_rng([seed, 4])
    known = store.num_users if num_users is None else num_users
    users = rng.permutation(known)[: NUM_USERS[size]]
    users = users[[len(windows) > 0 for windows in store.windows(users, config.windows, held_out=held_out)]]
    members = rng.random(len(users)) < 0.5
    require(2 <= members.sum() <= len(users) - 2, "users must be some dozens", users=len(users))
    start = initial_adapter(spec, seed) if start is None else start
    claim = claim_of_federation(config)
    shard = _Chosen(engine, store, config.windows, held_out, users[members])
    grid = InProcessGrid(make_client_app(lambda context: shard, simulated=True), 1)
    with (progress or Silent()).stage(f"{name}: rounds without half of the users", config.rounds) as step:
        result = simulate(
            engine,
            store,
            start,
            replace(config, patience=0, seed=noise_seed),
            num_users=int(members.sum()),
            grid=grid,
            on_round=lambda record, vector: step(f"round {record.round}"),
        )
    stack = store.windows(users, config.windows, held_out=held_out)
    gains = user_scores(model, spec, start, result.vector, stack)
    found = membership_result(name, gains[members], gains[~members], config, seed=seed, confidence=confidence)
    return replace(found, claim=replace(claim, steps=max(1, len(result.rounds))))


def audit_membership_run(
    config: FederatedRunConfig,
    vector: Vector,
    participations: NDArray[np.int64],
    *,
    size: AuditSize = "quick",
    seed: int = 0,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AuditResult:
    """Ask whether a finished run's adapter tells the users that were asked from those that never were.

    Where fewer than 200 users were never asked, the rounds are run again without half of the users.

    Args:
        config: of the run, with its base and data.
        vector: (P,) the last adapter, from the run's checkpoint.
        participations: (num_users,) how often each device was asked, from the run's checkpoint.
        size: how many users are looked at.
        seed: of which users are.
        confidence: of the lower bound.
        progress: told of rounds, where they are run again.

    Raises:
        DataError: base or data cannot be read.
        ConfigError: not a run of unit ``user`` with noise.
    """
    fleet, model, spec = load_parts(config)
    federation = config.federation
    start = _start_of(spec, vector, federation.seed or 0)
    if int((participations == 0).sum()) < FEWEST_OTHERS:
        return audit_membership(
            model,
            make_engine(replace(config, engine="cohort"), model, spec, start, config.base.parent),
            fleet.store,
            federation,
            num_users=fleet.num_users,
            held_out=fleet.held_out,
            start=start,
            name="membership inference, rounds run again",
            size=size,
            seed=seed,
            confidence=confidence,
            progress=progress,
        )
    rng, most = np.random.default_rng([seed, 5]), NUM_USERS[size] // 2
    groups = []
    for asked in (True, False):
        users = rng.permutation(np.flatnonzero((participations > 0) == asked))[:most]
        stack = fleet.store.windows(users, federation.windows, held_out=fleet.held_out)
        groups.append(user_scores(model, spec, start, vector, stack.take(np.flatnonzero(stack.counts > 0))))
    name = "membership inference, users never asked"
    return membership_result(name, groups[0], groups[1], federation, seed=seed, confidence=confidence)


def user_scores(model: Recommender, spec: AdapterSpec, start: Vector, vector: Vector, stack: WindowStack) -> Floats:
    """Return how much lower each user's mean loss is with the adapter than at the start, (users,).

    Args:
        model: the frozen base, with the adapter attached.
        spec: the adapter's spec.
        start: (P,) the adapter before the rounds.
        vector: (P,) the adapter after them.
        stack: the windows of each user, at least one.
    """
    gained = _losses(model, spec, start, stack) - _losses(model, spec, vector, stack)
    means: Floats = np.bincount(stack.owner, weights=gained, minlength=len(stack)) / stack.counts
    return means


@torch.no_grad()
def _losses(model: Recommender, spec: AdapterSpec, vector: Vector, stack: WindowStack) -> Floats:
    """Return the loss of every window, (windows,)."""
    found = np.zeros(len(stack.windows))
    with applied(module_of(model), spec.split(torch.from_numpy(vector))):
        for at in range(0, len(found), _BATCH):
            part = stack.windows[at : at + _BATCH]
            context = None if part.context is None else torch.from_numpy(part.context)
            table = scores(model, torch.from_numpy(part.history), context)
            losses = softmax_loss(table, torch.from_numpy(part.target), torch.from_numpy(part.valid))
            found[at : at + _BATCH] = losses.numpy()
    return found


def membership_result(
    name: str,
    members: Floats,
    others: Floats,
    config: FederationConfig,
    *,
    seed: int = 0,
    confidence: float = 0.95,
) -> AuditResult:
    """Return what the scores of members and others say.

    Args:
        name: for the report.
        members: (n,) scores of users who were trained on.
        others: (k,) scores of users who were not, of the same distribution.
        config: of the run: what it claims.
        seed: of the halves in which the threshold is chosen and counted.
        confidence: of the lower bound and of the intervals.
    """
    require(min(len(members), len(others)) >= 2, "groups must have at least two users", members=len(members))
    claim = claim_of_federation(config)
    area = float(stats.mannwhitneyu(members, others).statistic) / (len(members) * len(others))
    figures = {"members": len(members), "non_members": len(others), "auc": area}
    for wanted in _FALSE_RATES:
        caught = int((members > _threshold(others, wanted)).sum())
        low, high = rate_interval(caught, len(members), confidence)
        label = f"tpr_at_fpr_{wanted:g}"
        figures |= {label: caught / len(members), f"{label}_low": low, f"{label}_high": high}
    lower = _lower_bound(members, others, claim.dp_delta, seed, confidence)
    statement = (
        f"A sanity figure, not a proof: by how much the adapter lowers their loss, {len(members)} users who were "
        f"trained on are told from {len(others)} who were not with an AUC of {area:.3f} (0.5 is guessing), and "
        f"{figures['tpr_at_fpr_0.01']:.1%} of them at 1 % false alarms. That implies epsilon of at least {lower:.2f}; "
        f"{claim.epsilon:.2f} is claimed. A real attacker may do better."
    )
    check = Check(
        name="membership-bound",
        passed=lower <= claim.epsilon,
        statement=statement,
        measured=lower,
        claimed=claim.epsilon,
    )
    return AuditResult(
        method="membership",
        subject=name,
        claim=claim,
        epsilon_lower=lower,
        confidence=confidence,
        checks=(check,),
        scores={"in": tuple(members.tolist()), "out": tuple(others.tolist())},
        figures=figures,
    )


def _threshold(others: Floats, false_rate: float) -> float:
    """Return the score that at most this share of the others exceeds: the largest where they are too few for it."""
    return float(np.sort(others)[len(others) - 1 - int(false_rate * len(others))])


def _lower_bound(members: Floats, others: Floats, dp_delta: float, seed: int, confidence: float) -> float:
    """Choose the threshold on one half of each group and count on the other."""
    rng = np.random.default_rng([seed, 6])
    (chosen_in, counted_in), (chosen_out, counted_out) = (
        np.array_split(rng.permutation(group), 2) for group in (members, others)
    )
    thresholds = np.quantile(chosen_out, np.linspace(0.02, 0.98, 49))
    trial, count = len(chosen_in) + 2, len(chosen_out) + 2  # as if one more had been right and one wrong: no infinities
    found = [
        epsilon_of_rates(((chosen_in > bar).sum() + 1) / trial, ((chosen_out > bar).sum() + 1) / count, dp_delta)
        for bar in thresholds
    ]
    bar = thresholds[int(np.argmax(found))]
    caught, alarms = int((counted_in > bar).sum()), int((counted_out > bar).sum())
    return epsilon_of_counts(caught, len(counted_in), alarms, len(counted_out), dp_delta, confidence)


def _start_of(spec: AdapterSpec, vector: Vector, seed: int) -> Vector:
    """Return an adapter that changes nothing: that of the run without what it trained, where A was not trained."""
    if spec.train_a:
        return initial_adapter(spec, seed)
    start = vector.copy()
    start[spec.trainable] = 0
    return start
