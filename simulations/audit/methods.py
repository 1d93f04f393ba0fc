"""Which measured audits fit a subject, and on what they are run.

* A window-level run: its engine, with its base, adapter method and plan; component and one-run audit.
* A user-level run: the server's rounds, with its engine, base and terms; component audit and canary clients, and
  membership inference on its own users.
* A bundle: its program, opened alone as a device opens it. Where its run is not at window level, devices add no noise
  by the run's terms; then the program's clipping and noise are audited under ``REFERENCE``, and the report says so.
* A ledger: nothing. It records charges; what trained is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from ownlet.shared.config import FederationConfig, Plan
from ownlet.simulations.audit.bundle import audit_bundle, plan_of_bundle
from ownlet.simulations.audit.canary_clients import audit_canary_clients
from ownlet.simulations.audit.component import QUICK, THOROUGH, Trials, audit_engine
from ownlet.simulations.audit.core import left_out
from ownlet.simulations.audit.engine_mechanism import claim_of_plan
from ownlet.simulations.audit.measure import Audit
from ownlet.simulations.audit.membership import audit_membership_run
from ownlet.simulations.audit.one_run import audit_one_run, audit_one_run_bundle
from ownlet.simulations.audit.result import AuditResult, AuditSize
from ownlet.simulations.audit.subject import BundleSubject, FleetSubject, LedgerSubject, RunSubject, Subject
from ownlet.simulations.audit.trainer import Trainer, trainer_of
from ownlet.simulations.audit.user_level import audit_user_level
from ownlet.simulations.progress import Progress

__all__ = ["REFERENCE", "Effort", "Fitting", "audits_for"]

REFERENCE = Plan(steps=20, sample_rate=0.1, expected_batch=4.0, clip_norm=0.5, noise_multiplier=1.1)
"""What a program is audited with whose own terms add no noise on the device."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured, and who watches.

    Args:
        thorough: run the longer audits.
        seed: of canaries and coins.
        progress: told of each audit's stages.
    """

    thorough: bool
    seed: int
    progress: Progress

    @property
    def trials(self) -> Trials:
        """Of a component audit."""
        return THOROUGH if self.thorough else QUICK

    @property
    def size(self) -> AuditSize:
        """Of the other audits."""
        return "thorough" if self.thorough else "quick"


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """The audits that fit a subject.

    Args:
        audits: to be run in this order.
        skipped: plain sentences on what is not measured, and why, or on what is measured in its place.
    """

    audits: tuple[Audit, ...] = ()
    skipped: tuple[str, ...] = ()


def audits_for(subject: Subject, effort: Effort, base: Path | None = None) -> Fitting:
    """Return the audits that fit a subject; nothing is loaded before one of them is run.

    Args:
        subject: what is audited.
        effort: how much is measured.
        base: of a run, where it is not where the settings say.
    """
    match subject:
        case RunSubject():
            return _of_run(subject, effort, base)
        case BundleSubject():
            return _of_bundle(subject, effort)
        case LedgerSubject() | FleetSubject():
            return Fitting(
                skipped=(
                    "Nothing was measured: a ledger records what was charged, and what trained on the device is not in "
                    "it. Audit the bundle that the device runs.",
                )
            )


def _of_run(subject: RunSubject, effort: Effort, base: Path | None) -> Fitting:
    terms = replace(subject.terms, rounds=max(1, len(subject.rows)))
    if why := _why_not(terms):
        return Fitting(skipped=(f"Nothing was measured: {why}.",))
    trainer = cache(partial(trainer_of, subject, base))
    if terms.unit == "user":
        return _of_server(subject, terms, trainer, effort)
    name, taken = f"{subject.engine} engine", _participations(subject)
    return Fitting(
        audits=(
            Audit(
                name=f"component audit of the {name}",
                run=lambda: _audit_engine(trainer(), terms, name, taken, effort),
            ),
            Audit(
                name=f"one-run audit of the {name}",
                run=lambda: _audit_one_run(trainer(), terms, name, effort),
            ),
        )
    )


def _of_server(subject: RunSubject, terms: FederationConfig, trainer: Callable[[], Trainer], effort: Effort) -> Fitting:
    """Return the audits of a user-level run; the last one looks for the run's own users, in its own data."""
    name, kept = f"server, {subject.engine} engine", subject.checkpoint
    audits, skipped = [], []
    if names := left_out(terms):
        skipped.append(
            f"Measured without {', '.join(names)}: these work on what was released, make what a user adds smaller, or "
            "are charged by themselves (docs/audit.md)."
        )
    if terms.secure.enabled:
        skipped.append(
            "The parts of a round were not measured one by one: that audit knows noise which the server adds, and here "
            "nodes add it. The federated audit runs whole rounds, masks and shares of noise included."
        )
    else:
        audits.append(
            Audit(
                name=f"component audit of the {name}",
                run=lambda: _audit_server(trainer(), terms, name, effort),
            )
        )
    audits.append(
        Audit(
            name=f"federated audit of the {name}",
            run=lambda: _audit_canary_clients(trainer(), terms, name, effort),
        )
    )
    if kept is not None:
        audits.append(
            Audit(
                name="membership inference on the run's adapter",
                run=lambda: audit_membership_run(
                    trainer().config,
                    kept.adapters[0],
                    kept.participations,
                    size=effort.size,
                    seed=effort.seed,
                    progress=effort.progress,
                ),
            )
        )
    return Fitting(audits=tuple(audits), skipped=tuple(skipped))


def _why_not(terms: FederationConfig) -> str | None:
    """Return why nothing can be measured; None where something can."""
    if terms.unit == "none":
        return "a run of unit none adds no noise"
    if terms.unit == "user" and terms.noise_multiplier == 0:
        return "the rounds were run without noise"
    if terms.correlated:
        return "the audits of the server know independent noise, and the noise of these rounds is correlated"
    if terms.unit == "user" and terms.turns:
        return "the audits of the server know Poisson cohorts, and these were turns"
    return None


def _participations(subject: RunSubject) -> int:
    asked = subject.checkpoint.participations.max(initial=0) if subject.checkpoint is not None else subject.terms.turns
    return max(1, int(asked))


def _audit_canary_clients(trainer: Trainer, terms: FederationConfig, name: str, effort: Effort) -> AuditResult:
    return audit_canary_clients(
        trainer.engine,
        terms,
        vector=trainer.vector,
        name=name,
        size=effort.size,
        seed=effort.seed,
        progress=effort.progress,
    )


def _audit_server(trainer: Trainer, terms: FederationConfig, name: str, effort: Effort) -> AuditResult:
    return audit_user_level(
        trainer.engine,
        terms,
        num_items=trainer.num_items,
        vector=trainer.vector,
        name=name,
        trials=effort.trials,
        progress=effort.progress,
    )


def _audit_engine(
    trainer: Trainer, terms: FederationConfig, name: str, participations: int, effort: Effort
) -> AuditResult:
    return audit_engine(
        trainer.engine,
        terms.plan,
        num_items=trainer.num_items,
        window_length=terms.windows.row_length,
        name=name,
        vector=trainer.vector,
        claim=claim_of_plan(terms.plan, participations=participations, dp_delta=terms.dp_delta),
        trials=effort.trials,
        progress=effort.progress,
    )


def _audit_one_run(trainer: Trainer, terms: FederationConfig, name: str, effort: Effort) -> AuditResult:
    return audit_one_run(
        trainer.engine,
        terms.plan,
        num_items=trainer.num_items,
        window_length=terms.windows.row_length,
        name=name,
        vector=trainer.vector,
        dp_delta=terms.dp_delta,
        size=effort.size,
        seed=effort.seed,
        progress=effort.progress,
    )


def _of_bundle(subject: BundleSubject, effort: Effort) -> Fitting:
    terms = subject.manifest.federation
    own = plan_of_bundle(subject.manifest)
    plan = REFERENCE if own is None else own
    dp_delta = 1e-5 if terms is None else terms.dp_delta
    turns = max(1, terms.turns) if terms is not None and own is not None else 1
    said = (
        ()
        if own is not None
        else (
            "The program was audited at window level under a reference plan (q = "
            f"{plan.sample_rate:g}, sigma = {plan.noise_multiplier:g}, {plan.steps} steps), because the terms of this "
            "bundle have no noise of the device's own. That shows whether its training step clips and adds noise as it "
            "should. The noise of user-level rounds is the server's: audit the run for that.",
        )
    )
    return Fitting(
        audits=(
            Audit(
                name="component audit of the program",
                run=lambda: audit_bundle(
                    subject.path,
                    plan,
                    participations=turns,
                    dp_delta=dp_delta,
                    trials=effort.trials,
                    progress=effort.progress,
                ),
            ),
            Audit(
                name="one-run audit of the program",
                run=lambda: audit_one_run_bundle(
                    subject.path,
                    plan,
                    dp_delta=dp_delta,
                    size=effort.size,
                    seed=effort.seed,
                    progress=effort.progress,
                ),
            ),
        ),
        skipped=said,
    )
