"""Adapters per domain on top of a finished run: rounds of its kind over each domain's devices, judged in public."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ownlet.shared.config import AdapterConfig, FederationConfig
from ownlet.shared.domains import save_domains
from ownlet.shared.errors import ConfigError, DataError, require
from ownlet.shared.methods import rounds_for
from ownlet.shared.metrics import Metric, paired_difference
from ownlet.shared.privacy import noise_multiplier_for
from ownlet.simulations.audit.subject import RunSubject, open_subject
from ownlet.simulations.audit.trainer import trainer_of
from ownlet.simulations.domains import (
    composed_epsilon,
    domain_ranks,
    event_domains,
    federate_domains,
    no_worse_on_public,
    user_domains,
)
from ownlet.simulations.evaluate import model_ranks
from ownlet.simulations.progress import Progress
from ownlet.simulations.setting import keep_columns, prepare
from ownlet.simulations.store import EventStore

__all__ = ["DomainRow", "DomainRunConfig", "DomainsDone", "domain_terms", "run_domains"]


@dataclass(frozen=True, kw_only=True)
class DomainRunConfig:
    """What is run.

    Args:
        run: folder of the finished run of ``ownlet simulate`` whose adapter all domains start from.
        by: a column of the data, or ``period``. A device takes part in the rounds of the domain of the last event that
            it trains on; its question is answered in the domain of the moment that it is asked at, as an app would.
        period_days: length of a period.
        rounds: of every domain.
        target_epsilon: of every domain's rounds, without those of the run before; infinity where that had no noise.
        min_devices: a domain with fewer keeps the run's adapter.
        base: of the run, where it is not where the settings say.
        seed: of cohorts and noise, so that a simulation can be repeated.
    """

    run: Path
    by: str
    period_days: float = 30.0
    rounds: int = 10
    target_epsilon: float = 2.0
    min_devices: int = 50
    base: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.period_days > 0, "period_days must be positive", period_days=self.period_days)


@dataclass(frozen=True, kw_only=True)
class DomainRow:
    """What came of a domain.

    Args:
        domain: its name.
        devices: that its rounds were over, or would have been.
        questions: devices' last events that were asked for in it.
        served: whether an adapter of its own serves it.
        gain: NDCG@10 of what serves it over the run's adapter, on those questions; None where there are none.
    """

    domain: str
    devices: int
    questions: int
    served: bool
    gain: Metric | None


@dataclass(frozen=True, kw_only=True)
class DomainsDone:
    """The result.

    Args:
        rows: per domain, the largest first.
        epsilon: what a user spent in its domain's rounds, at most.
        composed: the same with the run before.
        gain: NDCG@10 over all devices.
        late: the same with every question answered by the adapter of the period before; None where domains are no
            periods.
    """

    rows: tuple[DomainRow, ...]
    epsilon: float
    composed: float
    gain: Metric
    late: Metric | None = None


def run_domains(config: DomainRunConfig, out: Path, progress: Progress) -> DomainsDone:
    """Federate every domain's devices from a run's adapter on, and write the file that devices activate domains from.

    Args:
        config: what.
        out: the file of all adapters.
        progress: told of the domains' rounds.

    Raises:
        DataError: the folder is no run, or its base or data cannot be read.
        ConfigError: the run published nothing, its devices had no Poisson cohorts, its sums were secure, or the data
            lacks the column or times.
    """
    subject = open_subject(config.run)
    if not isinstance(subject, RunSubject):
        raise DataError(f"run must be a finished run of `ownlet simulate`, got {config.run}")
    if subject.adapter is None:
        raise ConfigError(f"run must have published an adapter that domains start from, got none in {config.run}")
    trainer = trainer_of(subject, config.base)
    terms = domain_terms(config, subject.terms, trainer.config.adapter)
    columns = [] if config.by == "period" else [(config.by, config.by)]
    model, spec, shared = trainer.model, trainer.engine.spec, trainer.vector
    setting = prepare(keep_columns(trainer.config.data, columns), model.config.context)
    period_seconds = round(config.period_days * 86_400)
    of_event = event_domains(setting.data, config.by, period_seconds=period_seconds)
    users = setting.device_users.tolist()
    of_device = user_domains(setting.data, users, of_event, before=1)
    of_question = user_domains(setting.data, users, of_event)
    public = of_event[setting.judging_events].astype(str).tolist()
    sizes = Counter(of_device)
    large = sum(size >= config.min_devices for size in sizes.values())
    with progress.stage(f"rounds of {large} domains", max(1, large * config.rounds)) as step:
        done = federate_domains(
            trainer.engine,
            EventStore.of(setting.devices, setting.device_context),
            of_device,
            shared,
            terms,
            shared_version=subject.adapter[2],
            min_devices=config.min_devices,
            publishable=no_worse_on_public(model, spec, shared, setting.judging, public),
            on_round=step,
        )
    before = model_ranks(model, setting.test, spec=spec, vectors=shared)
    after = domain_ranks(model, setting.test, of_question, done.adapters)
    names = np.array(of_question, dtype=object)
    rows = []
    for name in sorted({*of_device, *of_question}, key=lambda domain: (-sizes[domain], domain)):
        mine = names == name
        rows.append(
            DomainRow(
                domain=name,
                devices=sizes[name],
                questions=int(mine.sum()),
                served=name in done.adapters.vectors,
                gain=paired_difference(after[mine], before[mine])["ndcg@10"] if mine.any() else None,
            )
        )
    late = None
    if config.by == "period":
        earlier = replace(setting.data, times=setting.data.times - period_seconds)
        one_before = user_domains(earlier, users, event_domains(earlier, "period", period_seconds=period_seconds))
        served_late = domain_ranks(model, setting.test, one_before, done.adapters)
        late = paired_difference(served_late, before)["ndcg@10"]
    save_domains(out, done.adapters)
    private = terms.unit == "user" and terms.noise_multiplier > 0
    return DomainsDone(
        rows=tuple(rows),
        epsilon=done.epsilon if private else math.inf,
        composed=composed_epsilon(subject.terms, terms) if private else math.inf,
        gain=paired_difference(after, before)["ndcg@10"],
        late=late,
    )


def domain_terms(config: DomainRunConfig, before: FederationConfig, adapter: AdapterConfig) -> FederationConfig:
    """Return the settings of every domain's rounds: those of the run, with as many rounds and the noise they take.

    Args:
        config: what is run.
        before: of the run; as it was asked for, without what its method adds.
        adapter: of the run.

    Raises:
        ConfigError: the run had no Poisson cohorts or no central noise, its sums were secure, or the target is
            infinite.
    """
    require(
        before.unit in ("user", "none") and not before.turns and not before.correlated,
        "run must have Poisson cohorts and noise of the server, or none",
        unit=before.unit,
    )
    require(
        not before.secure.enabled,
        "run must be one without secure aggregation: a domain is one node here, and every sum of one node is void",
        secure_aggregation=True,
    )
    plain = replace(before, rounds=config.rounds, patience=0, target_epsilon=math.inf, seed=config.seed)
    terms = rounds_for(adapter, plain)
    if before.unit == "none" or before.noise_multiplier == 0:
        return terms
    require(math.isfinite(config.target_epsilon), "target_epsilon must be finite", target_epsilon=config.target_epsilon)
    sigma = noise_multiplier_for(
        target_epsilon=config.target_epsilon,
        dp_delta=terms.dp_delta,
        cohort_rate=terms.asked_rate,
        rounds=config.rounds,
    )
    return replace(terms, noise_multiplier=sigma, target_epsilon=config.target_epsilon)
