"""One adapter per domain (a region, a period): federated over that domain's devices alone, from the shared one on.

Every device belongs to one domain, so the runs have no users in common. Privacy is accounted per domain: what a user
spends in the runs is what its own domain's run spends, whatever the other runs do (parallel composition, McSherry 2009,
https://doi.org/10.1145/1559845.1559850, theorem 4; the unit is a user with all its events, the relation is to add or
remove one). Three things lie outside of it: which domain a user belongs to is known to the server; the shared run that
came first had the same users and adds up (``composed_epsilon``); a user who later takes part in a second domain's run
spends both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ownlet.device.train import Engine
from ownlet.server.checkpoint import RoundResult, spent_event
from ownlet.server.rounds import FederationResult
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.config import FederationConfig
from ownlet.shared.domains import DomainAdapters, period_domain
from ownlet.shared.errors import ConfigError, require
from ownlet.shared.interactions import Interactions
from ownlet.shared.model import SASRec
from ownlet.shared.privacy import compose_events, epsilon
from ownlet.simulations.evaluate import Cases, mean_ndcg, model_ranks
from ownlet.simulations.run import simulate
from ownlet.simulations.store import EventStore

__all__ = [
    "DomainRuns",
    "composed_epsilon",
    "domain_ranks",
    "event_domains",
    "federate_domains",
    "no_worse_on_public",
    "part_of",
    "user_domains",
]

Publishable = Callable[[str, Vector], bool]
"""Tells whether a domain's adapter (P,) may serve it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DomainRuns:
    """What the runs gave.

    Args:
        adapters: the default is the shared adapter; a domain is in it if its adapter may serve.
        results: domain -> its run, of every domain with enough devices.
    """

    adapters: DomainAdapters
    results: Mapping[str, FederationResult]

    @property
    def epsilon(self) -> float:
        """The most that any user spent in these runs: the largest of the domains, not their sum."""
        return max((result.epsilon for result in self.results.values()), default=0.0)


def event_domains(data: Interactions, by: str, *, period_seconds: int) -> NDArray[np.generic]:
    """Return the domain of each event, (num_events,): a column's value, or the period of its time.

    Args:
        data: all interactions.
        by: a column of ``data.context``, or ``period``: stretches of the calendar, named as ``period_domain`` does.
        period_seconds: length of a period.

    Raises:
        ConfigError: the data lacks the column, or times.
    """
    if by != "period":
        if by not in data.context:
            raise ConfigError(f"domain must be a column of the data, got {by!r} of {sorted(data.context)}")
        return data.context[by]
    require(period_seconds >= 1, "period_seconds must be at least 1", period_seconds=period_seconds)
    if not data.has_times:
        raise ConfigError(f"domain must be a column where the data has no times, got {by!r}")
    begins, place = np.unique(data.times // period_seconds * period_seconds, return_inverse=True)
    return np.array([period_domain(begin, period_seconds=period_seconds) for begin in begins.tolist()])[place]


def user_domains(
    data: Interactions, users: Sequence[int], domains: NDArray[np.generic], *, before: int = 0
) -> tuple[str, ...]:
    """Return the domain of each user: that of its last event, or of one of the events before.

    Args:
        data: all interactions.
        users: user numbers, each with more than ``before`` events.
        domains: of each event, from ``event_domains``.
        before: 0 is the last event, 1 the one before it, which is a device's last one where the last is its test.
    """
    return tuple(str(domains[data.offsets[user + 1] - 1 - before]) for user in users)


def federate_domains(
    engine: Engine,
    devices: EventStore,
    domains: Sequence[str],
    shared: Vector,
    config: FederationConfig,
    *,
    shared_version: int = 0,
    min_devices: int = 50,
    publishable: Publishable = lambda domain, vector: True,
    on_round: Callable[[str], None] = lambda domain: None,
) -> DomainRuns:
    """Run the rounds of every domain, each over its own devices, each from the shared adapter.

    Args:
        engine: trains the users.
        devices: their histories.
        domains: one per device.
        shared: (P,) the adapter to start from, and the default afterwards.
        config: of each run; with a seed, every domain has one of its own.
        shared_version: of the shared adapter.
        min_devices: a domain with fewer keeps the shared adapter: noise is per run, so few devices drown in it.
        publishable: a domain whose adapter may not serve keeps the shared one.
        on_round: told of the domain after each round.

    Raises:
        ConfigError: not one domain per device.
        FederationError: no round could be run.
    """
    fits = len(domains) == devices.num_users
    require(fits, f"domains must be one per device, {devices.num_users}", domains=len(domains))
    of_device = np.array(domains, dtype=object)
    results: dict[str, FederationResult] = {}
    for number, domain in enumerate(sorted(set(domains))):
        members = np.flatnonzero(of_device == domain)
        if len(members) >= min_devices:
            own = config if config.seed is None else replace(config, seed=config.seed + number)
            store = part_of(devices, members)
            results[domain] = simulate(engine, store, shared, own, on_round=partial(_tell, on_round, domain))
    adapters = DomainAdapters(
        spec=engine.spec,
        default=shared,
        vectors={name: result.vector for name, result in results.items() if publishable(name, result.vector)},
        version=shared_version + max((result.version for result in results.values()), default=0),
    )
    return DomainRuns(adapters=adapters, results=results)


def _tell(on_round: Callable[[str], None], domain: str, result: RoundResult, vector: Vector) -> None:
    on_round(domain)


def composed_epsilon(shared: FederationConfig, domain: FederationConfig) -> float:
    """Return what a user spends who may be in all rounds of the shared run and of its domain's, at the latter's delta.

    Args:
        shared: of the run that made the shared adapter; unit ``user``.
        domain: of the domain's run; unit ``user``.

    Raises:
        ConfigError: another unit.
    """
    for config in (shared, domain):
        require(config.unit == "user", "unit must be user", unit=config.unit)
    events = [spent_event(c, c.rounds, np.array([c.turns])) for c in (shared, domain)]
    return epsilon(compose_events(*events), domain.dp_delta)


def no_worse_on_public(
    model: SASRec, spec: AdapterSpec, shared: Vector, cases: Cases, domains: Sequence[str]
) -> Publishable:
    """Let an adapter serve its domain if NDCG@10 on that domain's held-out public cases is no lower than before.

    It reads public users and adapters that were released already, so it costs no privacy. A domain without public cases
    keeps the shared adapter.

    Args:
        model: the base, prepared with ``attach``.
        spec: the adapter's spec.
        shared: (P,) what serves otherwise.
        cases: of held-out public users.
        domains: of each case.
    """
    of_case = np.array(domains, dtype=object)

    def publishable(domain: str, vector: Vector) -> bool:
        mine = cases.at(np.flatnonzero(of_case == domain))
        if not len(mine):
            return False
        return mean_ndcg(model, mine, spec=spec, vector=vector) >= mean_ndcg(model, mine, spec=spec, vector=shared)

    return publishable


def domain_ranks(
    model: SASRec, cases: Cases, domains: Sequence[str | None], adapters: DomainAdapters
) -> NDArray[np.int64]:
    """Rank every case's target with the adapter of the case's domain, (n,)."""
    return model_ranks(model, cases, spec=adapters.spec, vectors=adapters.stack(domains))


def part_of(store: EventStore, users: NDArray[np.int64]) -> EventStore:
    """Return a store in memory of some users of another, with their context."""
    context = store.context
    moments = None if context is None else [context[store.offsets[u] : store.offsets[u + 1]] for u in users]
    return EventStore.of([store.history(int(user)) for user in users], moments)
