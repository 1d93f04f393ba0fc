"""The job behind ``ownlet evaluate``: what a base, and an adapter on it, are worth on a split, and to whom.

Questions are one per user. The answers of most-popular, item-kNN, base and adapter are measured on the same ones, by
accuracy (with intervals), by what their lists are like, and by segment. Before anything is answered, the events that
base and adapter were trained on are held against the questions, as far as their run folders tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.adapter import hash_state, load_adapter
from ownlet.shared.errors import DataError, require
from ownlet.shared.interactions import History, Interactions
from ownlet.shared.list_metrics import coverage, gini, item_events, item_users, novelty
from ownlet.shared.lora import attach_spec
from ownlet.shared.metrics import Metric, average, paired_difference, summarise
from ownlet.shared.splits import global_time_split, seconds_of, session_split
from ownlet.simulations.baselines import item_knn, most_popular
from ownlet.simulations.evaluate import Answers, Cases, first_event_cases, model_answers, scorer_answers
from ownlet.simulations.leakage import check_leakage
from ownlet.simulations.moments import event_context
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.progress import Progress
from ownlet.simulations.provenance import Training, adapter_training, base_training, check_catalogue, recorded_data
from ownlet.simulations.recbole import recbole_metrics
from ownlet.simulations.segments import (
    FloorRow,
    Segments,
    activity_segments,
    check_floor,
    context_segments,
    genre_segments,
    item_segments,
    user_segments,
)
from ownlet.simulations.setting import DataConfig, Moments, keep_columns, load_interactions

__all__ = ["Evaluation", "EvaluationConfig", "EvaluationRow", "questions", "run_evaluation", "segments_of"]

SplitName = Literal["leave-one-out", "time", "session"]
_K = 10
_MOST_CONTEXT_VALUES = 20  # a column with more, such as an exact time, divides users into nothing


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated.

    Args:
        base: file of the base.
        adapter: file of an adapter on it.
        data: which interactions; None for those that the base's run folder names.
        split: ``leave-one-out`` asks for the last event of every user, ``time`` for the first event from a date on,
            ``session`` for the first event of the last session.
        date: of ``time``.
        gap_hours: of ``session``: longer gaps end a session.
    """

    base: Path
    adapter: Path | None = None
    data: DataConfig | None = None
    split: SplitName = "leave-one-out"
    date: str | None = None
    gap_hours: float = 24.0

    def __post_init__(self) -> None:
        require((self.split == "time") == (self.date is not None), "date must be given with split time", date=self.date)
        require(self.gap_hours >= 0, "gap_hours must not be negative", gap_hours=self.gap_hours)


@dataclass(frozen=True, kw_only=True)
class EvaluationRow:
    """One recommender.

    Args:
        label: ``popular``, ``item_knn``, ``base`` or ``adapter``.
        accuracy: ``hr@10``, ``ndcg@10`` and ``mrr@10``.
        novelty: mean self-information of its lists, in bits.
        coverage: share of the catalogue that is in a list.
        gini: of how often items are shown.
        gain: NDCG@10 minus the base's, paired; None for the base.
    """

    label: str
    accuracy: Mapping[str, Metric]
    novelty: Metric
    coverage: float
    gini: float
    gain: Metric | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found.

    Args:
        data: name of the data.
        num_cases: questions, one per user.
        rows: by recommender.
        floor: by segment: the adapter against the base, or without one item-kNN against the base.
        recbole: label -> RecBole's metrics.
        notes: what a reader of the figures must know.
    """

    data: str
    num_cases: int
    rows: tuple[EvaluationRow, ...]
    floor: tuple[FloorRow, ...]
    recbole: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


def run_evaluation(config: EvaluationConfig, progress: Progress) -> Evaluation:
    """Ask all recommenders the questions of a split.

    Args:
        config: what is evaluated.
        progress: told of questions.

    Returns:
        What was found.

    Raises:
        DataError: something cannot be read, nobody can be asked, or an answer was trained on.
        ConfigError: the data is not that of the base, or cannot be split in this way.
        AdapterError: the adapter does not fit the base.
    """
    source = config.data or recorded_data(config.base) or DataConfig()
    model = load_base(config.base)
    fields = model.config.context
    widened = keep_columns(source, [(field.name, field.name) for field in fields if field.kind == "column"])
    data = load_interactions(widened)
    check_catalogue(config.base, model.num_items, data.items)
    base_trained = base_training(config.base, data, source)
    cases = questions(data, config, base_trained, event_context(data, fields, dict(widened.columns)))
    notes = _check_training("base", base_trained, cases, config)
    if config.adapter is not None:
        notes += _check_training("adapter", adapter_training(config.adapter, data, source), cases, config)
    if (
        base_trained is not None
        and config.date is not None
        and _last_read(data, base_trained) >= seconds_of(config.date)
    ):
        notes += (f"The base has read other users' events from {config.date} on.",)
    read = cases.histories if base_trained is None else base_trained.histories

    def asked(label: str, ask: Callable[[Callable[[int], None]], Answers]) -> Answers:
        with progress.stage(f"{label}: {len(cases):,} questions", len(cases)) as step:
            return ask(lambda count: step("", count))

    popular, knn = most_popular(read, data.num_items), item_knn(read, data.num_items)
    answers = {
        "popular": asked("most popular", lambda told: scorer_answers(popular, cases, k=_K, on_cases=told)),
        "item_knn": asked("item-kNN", lambda told: scorer_answers(knn, cases, k=_K, on_cases=told)),
        "base": asked("base", lambda told: model_answers(model, cases, k=_K, on_cases=told)),
    }
    if config.adapter is not None:
        spec, vector, _ = load_adapter(config.adapter, base_hash=hash_state(model.state_dict()))
        attach_spec(model, spec)
        answers["adapter"] = asked(
            "adapter", lambda told: model_answers(model, cases, spec=spec, vectors=vector, k=_K, on_cases=told)
        )
    compared = ("item-kNN", "item_knn") if config.adapter is None else ("adapter", "adapter")
    events = item_events(read, data.num_items)
    return Evaluation(
        data=data.name,
        num_cases=len(cases),
        rows=_rows(answers, read, data.num_items),
        floor=check_floor(
            answers["base"].ranks, {compared[0]: answers[compared[1]].ranks}, segments_of(data, cases, events), k=_K
        ),
        recbole={label: recbole_metrics(found, events) for label, found in answers.items()},
        notes=notes,
    )


def questions(data: Interactions, config: EvaluationConfig, trained: Training | None, moments: Moments = None) -> Cases:
    """Return the questions of a split, at most one per user, whose histories are the beginnings of users' histories.

    Args:
        data: all interactions.
        config: the split.
        trained: what the base was trained on; only users who may be asked are. Everybody where that is unknown, and
            where the base has read nothing from the date of the split on.
        moments: per user (events, fields), the context of every event, where the base reads any.

    Raises:
        DataError: nobody can be asked.
        ConfigError: the data has no times and the split needs them.
    """
    if config.split == "time":
        assert config.date is not None
        parts = global_time_split(data, config.date)
        cases = first_event_cases(parts.train, parts.test)
    elif config.split == "session":
        sessions = session_split(data, gap_seconds=round(config.gap_hours * 3600))
        cases = first_event_cases(sessions.train, sessions.test)
    else:
        cases = first_event_cases([h[:-1] for h in data.histories], [h[-1:] for h in data.histories])
    assert cases.users is not None
    if trained is not None and not _ends_before(trained, config):
        cases = cases.at(np.flatnonzero(np.isin(cases.users, trained.askable)))
    assert cases.users is not None
    if not len(cases):
        raise DataError(f"split {config.split} must leave somebody to be asked, got nobody in {data.name}")
    if moments is None:
        return cases
    asked = zip(cases.users, cases.histories, strict=True)
    return replace(cases, context=tuple(moments[user][1 : len(history) + 1] for user, history in asked))


def segments_of(data: Interactions, cases: Cases, training_events: NDArray[np.int64]) -> Segments:
    """Return all segments that the data allows: activity, cold users and items, context columns, genres."""
    assert cases.users is not None
    found = activity_segments(cases) | user_segments(cases) | item_segments(cases, training_events)
    at = data.offsets[cases.users] + [len(history) for history in cases.histories]  # the event that is asked for
    for name, column in data.context.items():
        if len(np.unique(column)) <= _MOST_CONTEXT_VALUES:
            found |= context_segments(name, column[at])
    return found | genre_segments(cases, data.items)


def _ends_before(trained: Training, config: EvaluationConfig) -> bool:
    if config.date is None or trained.until_seconds is None:
        return False
    return trained.until_seconds <= seconds_of(config.date)


def _check_training(name: str, trained: Training | None, cases: Cases, config: EvaluationConfig) -> tuple[str, ...]:
    """Raise if a question's answer was trained on; say so where that cannot be known."""
    if trained is None:
        return (f"What the {name} was trained on is unknown here, so leakage was not checked.",)
    try:
        check_leakage(trained.histories, None, cases)
    except DataError as error:
        hint = " (for a split by time, train the base with --public-before)" if config.split == "time" else ""
        raise DataError(
            f"the {name} must not have been trained on answers of split {config.split}: {error}{hint}"
        ) from error
    return ()


def _last_read(data: Interactions, trained: Training) -> int:
    """Return the moment of the last event that was trained on."""
    lengths = np.array([len(history) for history in trained.histories])
    last = data.offsets[:-1] + lengths - 1
    return int(data.times[last[lengths > 0]].max(initial=0))


def _rows(answers: Mapping[str, Answers], read: tuple[History, ...], num_items: int) -> tuple[EvaluationRow, ...]:
    users = item_users(read, num_items)
    num_users = max(1, sum(len(history) > 0 for history in read))
    base = answers["base"].ranks
    return tuple(
        EvaluationRow(
            label=label,
            accuracy=summarise(found.ranks, _K),
            novelty=average(novelty(found.lists, users, num_users)),
            coverage=coverage(found.lists, num_items),
            gini=gini(found.lists, num_items),
            gain=None if label == "base" else paired_difference(found.ranks, base, _K)[f"ndcg@{_K}"],
        )
        for label, found in answers.items()
    )
