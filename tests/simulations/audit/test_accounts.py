from dataclasses import replace
from typing import Any

import pytest

from ownlet.shared.privacy import epsilon, user_level_event
from ownlet.simulations.audit import prv
from ownlet.simulations.audit.accounts import accountant_checks, rounds_check
from ownlet.simulations.audit.promise import promises_of
from ownlet.simulations.audit.subject import RunSubject, open_subject

from .conftest import USER, WINDOW, MakeRun


def run_of(make_run: MakeRun, terms: Any) -> RunSubject:
    subject = open_subject(make_run(terms))
    assert isinstance(subject, RunSubject)
    return subject


@pytest.mark.parametrize("terms", [USER, replace(USER, turns=2), WINDOW])
def test_what_a_run_stated_follows_from_what_it_recorded(make_run: MakeRun, terms: Any) -> None:
    subject = run_of(make_run, terms)
    promises = promises_of(subject)
    check = rounds_check(subject.rows, promises[0])
    assert check.passed, check.statement
    assert check.measured == pytest.approx(check.claimed)
    (agree,) = accountant_checks(promises)
    assert agree.passed
    assert agree.name == f"{terms.unit}-accountants-agree"


def test_one_round_that_states_less_is_named(make_run: MakeRun) -> None:
    subject = run_of(make_run, USER)
    rows = [dict(row) for row in subject.rows]
    rows[2]["epsilon"] = epsilon(user_level_event(USER.cohort_rate, USER.noise_multiplier, 2), USER.dp_delta)
    check = rounds_check(rows, promises_of(subject)[0])
    assert not check.passed
    assert "After round 3" in check.statement


def test_under_turns_an_epsilon_may_neither_fall_nor_end_short(make_run: MakeRun) -> None:
    subject = run_of(make_run, replace(USER, turns=2))
    promise, rows = promises_of(subject)[0], [dict(row) for row in subject.rows]
    short = [{**row, "epsilon": min(row["epsilon"], 0.1)} for row in rows]
    assert "in all it is" in rounds_check(short, promise).statement
    falling = [*rows[:-2], {**rows[-2], "epsilon": 99.0}, rows[-1]]
    assert f"falls in round {len(rows)}" in rounds_check(falling, promise).statement


def test_an_accountant_that_says_too_little_is_contradicted(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    promises = promises_of(run_of(make_run, USER))
    monkeypatch.setattr(prv, "epsilon_of", lambda totals, dp_delta: promises[0].epsilon / 2)
    (check,) = accountant_checks(promises)
    assert not check.passed
