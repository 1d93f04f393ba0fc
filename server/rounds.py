"""The rounds of a federated run: sample, charge, ask, admit, add up, noise, step, save.

Two things hold in every round. Check fully, then commit: whatever goes wrong with nodes or replies, the adapter is the
one before the round or the one after it. Charge before asking: a round that turns out void stays charged, because which
replies fail can depend on data, and because devices that add their own noise have sent theirs. A server that dies in
the middle of a round asks the same cohort again when it is back (``server/begun.py``); only under secure aggregation is
that round void, because two sums with two draws of the nodes' noise would have to be charged twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from ownlet.server.adaptive_clip import check_split
from ownlet.server.ask import Answers, ask, unanswered
from ownlet.server.begun import begin_round, begun_cohort, forget_begun
from ownlet.server.buffered import Flight, ask_buffered, draw_idle
from ownlet.server.checkpoint import RoundResult, ServerState, load_checkpoint, save_checkpoint, spent_event
from ownlet.server.clock import SYSTEM_CLOCK, Clock
from ownlet.server.cohorts import check_separation, draw_cohort, round_noise
from ownlet.server.early_stop import Judge, best_of, why_stop
from ownlet.server.fedsvd import turn
from ownlet.server.nodes import Nodes, Presence
from ownlet.server.optimizer import server_step
from ownlet.server.release import release, skip
from ownlet.server.replies import Mailbox
from ownlet.server.secure_charge import charge_realised
from ownlet.shared.adapter import AdapterSpec, Vector
from ownlet.shared.alternate import part_of_round, places_of_part, spec_of_part
from ownlet.shared.config import FederationConfig
from ownlet.shared.errors import require
from ownlet.shared.privacy import epsilon, event_to_json
from ownlet.shared.ranks import check_ranks, rank_weights, users_of_rank

__all__ = ["FederationResult", "OnRound", "run_rounds"]

OnRound = Callable[[RoundResult, Vector], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FederationResult:
    """What a run ended with.

    Args:
        vector: (P,) the last global adapter, or the best one where the config has ``patience``.
        version: how many rounds changed it.
        rounds: one record per round, in order.
        epsilon: spent in all, at the config's ``dp_delta`` and in its unit; rounds after the best are in it.
        stopped: why the run ended before ``config.rounds``, or None.
        event: canonical JSON of the privacy event that epsilon is computed from.
    """

    vector: Vector
    version: int
    rounds: tuple[RoundResult, ...]
    epsilon: float
    stopped: str | None
    event: str


def run_rounds(
    grid: Grid,
    config: FederationConfig,
    spec: AdapterSpec,
    vector: Vector,
    num_users: int,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_round: OnRound | None = None,
    judge: Judge | None = None,
    presence: Presence | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> FederationResult:
    """Run federated rounds until ``config.rounds`` are done, the next one would cost too much, or patience is over.

    Args:
        grid: the way to the nodes.
        config: the public numbers of the run.
        spec: of the adapter.
        vector: (P,) the adapter to start from.
        num_users: N, the public size of the population; users are 0..N-1.
        checkpoint: where the state is saved after each round.
        resume: go on from ``checkpoint`` if that file exists. With a seed the result is that of an uninterrupted run.
        on_round: called after every round with its record and the adapter, once both are saved.
        judge: looks at adapters on held-out public users; needed where the config has ``patience``.
        presence: which nodes a round waits for; by default any one.
        clock: that deadlines are measured by.

    Returns:
        The last adapter, or the best one where the config has ``patience``, and a record of every round.

    Raises:
        AdapterError: the vector does not fit the spec.
        ConfigError: the config has ``patience`` and nobody judges, too few users for its noise on their count, or
            rounds that alternate over an adapter of which one part is frozen.
        FederationError: too few nodes connect in time, or the checkpoint is of another run.
    """
    check_split(config, num_users)
    check_ranks(spec, config.ranks)
    if config.alternate:
        spec_of_part(spec, "a")  # raises where there is none
    state = ServerState.start(config, spec, vector, num_users)
    if resume and checkpoint is not None and checkpoint.exists():
        state = load_checkpoint(checkpoint, config, spec, num_users)
    elif checkpoint is not None:  # so that a round that has begun belongs to a config; it also ends an earlier run
        forget_begun(checkpoint)
        save_checkpoint(checkpoint, config, spec, state)
    nodes, mailbox = Nodes(grid, config.reply_timeout_seconds, presence or Presence()), Mailbox(grid, clock)
    flight = Flight(grid, clock)
    start_quality = judge(0, vector) if judge is not None else None
    require(
        config.patience == 0 or start_quality is not None,
        "judge must look at the start where a run has patience",
        patience=config.patience,
    )
    stopped = None
    while len(state.results) < config.rounds:
        if start_quality is not None and (why := why_stop(best_of(start_quality, state.results), config.patience)):
            stopped = why
            break
        number, started = len(state.results) + 1, clock.now()
        again = begun_cohort(checkpoint, number) if checkpoint is not None else None
        cohort = again
        if cohort is None and config.buffer.size:
            cohort = draw_idle(config, num_users, number, state.participations, flight.busy())
        elif cohort is None:
            cohort = draw_cohort(config, num_users, number, state.participations, state.groups)
        check_separation(config, cohort, number, state.last_asked)
        charged = state.asked(cohort, number)
        event = spent_event(config, number, charged.participations, state.noise.factor, state.realised)
        spent = epsilon(event, config.dp_delta)
        if spent > config.target_epsilon:
            stopped = f"round {number} would spend epsilon {spent:.3f}, more than the target {config.target_epsilon:g}"
            _log.warning("stopped: %s", stopped)
            break
        if again is not None and (config.secure.enabled or config.buffer.size):  # what was under way is lost
            answers = unanswered(cohort)
        else:
            if checkpoint is not None:
                begin_round(checkpoint, number, cohort)
            if config.buffer.size:
                answers = ask_buffered(nodes, flight, config, spec, charged, cohort, number)
            else:
                answers = ask(nodes, config, spec, charged, cohort, number, num_users, mailbox)
        seconds = clock.now() - started
        state = _close_round(config, spec, charged, answers, num_users, number, spent, seconds)
        if config.secure.enabled:
            state = charge_realised(config, state, answers.noise_multiplier)
        if judge is not None:
            state = _judged(state, judge, start_quality)
        if checkpoint is not None:
            save_checkpoint(checkpoint, config, spec, state)
        if on_round is not None:
            on_round(state.results[-1], state.vector)
    keeps_best = config.patience > 0
    event = spent_event(config, len(state.results), state.participations, state.noise.factor, state.realised)
    return FederationResult(
        vector=state.best if keeps_best else state.vector,
        version=state.best_version if keeps_best else state.version,
        rounds=state.results,
        epsilon=state.results[-1].epsilon if state.results else 0.0,
        stopped=stopped,
        event=event_to_json(event),
    )


def _judged(state: ServerState, judge: Judge, start_quality: float | None) -> ServerState:
    """Return the state with the last round judged, and its adapter as the best where it is."""
    last = replace(state.results[-1], quality=judge(state.results[-1].round, state.vector))
    judged = replace(state, results=(*state.results[:-1], last))
    if start_quality is not None and best_of(start_quality, judged.results).round == last.round:
        return replace(judged, best=state.vector, best_version=state.version)
    return judged


def _close_round(
    config: FederationConfig,
    spec: AdapterSpec,
    state: ServerState,
    answers: Answers,
    num_users: int,
    number: int,
    spent: float,
    seconds: float,
) -> ServerState:
    wanted = config.buffer.size or len(answers.asked)
    void = answers.total is None or answers.num_admitted < config.quorum * wanted
    part = part_of_round(config.alternate, number)
    update_norm, clip_norm = 0.0, config.delta_bound(spec_of_part(spec, part).num_trainable, state.clip_norm)
    source = round_noise(config, "server", number)
    if answers.total is None or void:
        state = skip(config, state, num_users, source)
    else:
        average, state = release(answers.total, config, state, num_users, source, places_of_part(spec, part))
        if config.ranks:
            average = average * rank_weights(spec, users_of_rank(config.ranks, num_users))
        vector, optimizer = server_step(spec, state.vector, state.optimizer, average, config, number)
        if config.svd_every and (state.version + 1) % config.svd_every == 0:
            vector, optimizer = turn(spec, vector, optimizer, config.server_optimizer)
        state = replace(state, vector=spec.check(vector), optimizer=optimizer, version=state.version + 1)
        update_norm = float(np.linalg.norm(average))
    result = RoundResult(
        round=number,
        version=state.version,
        void=void,
        num_asked=sum(len(users) for users in answers.asked.values()),
        num_nodes=len(answers.asked),
        num_admitted=answers.num_admitted,
        admitted=answers.admitted,
        rejected=answers.rejected,
        num_missing=answers.num_missing,
        epsilon=spent,
        update_norm=update_norm,
        seconds=seconds,
        clip_norm=clip_norm,
        bytes_up=answers.bytes_up,
        bytes_down=answers.bytes_down,
        num_late=answers.num_late,
    )
    return replace(state, results=(*state.results, result))
