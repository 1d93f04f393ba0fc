import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from ownlet.shared.secure_config import SecureConfig
from ownlet.simulations.audit.fields import FIELD_NAMES
from ownlet.simulations.audit.measure import Audit, run_audits
from ownlet.simulations.audit.plain import to_plain
from ownlet.simulations.audit.report import AuditReport, assemble_record
from ownlet.simulations.audit.result import AuditResult, Check, Claim
from ownlet.simulations.audit.subject import open_subject
from ownlet.simulations.progress import Silent

from .conftest import APP_KEY, NONE, USER, WINDOW, MakeRun
from .json_schema import errors_of

SCHEMA: dict[str, Any] = json.loads((files("ownlet.simulations.audit") / "audit.schema.json").read_text())
CLAIM = Claim(unit="user", sample_rate=1.0, noise_multiplier=4.0, clip_norm=0.3, steps=10)  # epsilon 3.341
RESULT = AuditResult(
    method="component",
    subject="server",
    claim=CLAIM,
    epsilon_lower=3.0,
    confidence=0.95,
    checks=(
        Check(name="noise", passed=True, statement="The noise is as large as claimed.", measured=1.0, claimed=1.0),
    ),
    scores={"in": (1.0, 2.0), "out": (-1.0, 0.5)},
    figures={"true_positives": 0.5},
)


def report_of(path: Path, key: bytes | None = None, **asked: Any) -> AuditReport:
    """Return the report of the record alone: what is measured has tests of its own."""
    return assemble_record(open_subject(path, key), path.name, clock=lambda: datetime(2026, 1, 2, tzinfo=UTC), **asked)


def test_every_field_is_there_in_its_order_with_a_value_and_a_statement(
    make_run: MakeRun, ledger_file: Path, tiny_bundle: Path
) -> None:
    runs = [report_of(make_run(terms, name=f"run-{at}")) for at, terms in enumerate((USER, WINDOW, NONE))]
    for report in (*runs, report_of(ledger_file, APP_KEY), report_of(tiny_bundle)):
        assert tuple(field.name for field in report.fields) == FIELD_NAMES
        assert all(field.value and field.statement.endswith((".", ")")) for field in report.fields)
        assert report.not_protected
        assert errors_of(json.loads(json.dumps(to_plain(report), allow_nan=False)), SCHEMA) == []


def test_the_schema_refuses_what_is_missing_added_or_of_another_kind(ledger_file: Path) -> None:
    plain = to_plain(report_of(ledger_file, APP_KEY))
    assert errors_of({**plain, "more": 1}, SCHEMA) == ["$ must not have more"]
    assert errors_of({**plain, "schema": "ownlet-audit/2"}, SCHEMA) == ["$.schema must be ownlet-audit/1"]
    assert errors_of({name: value for name, value in plain.items() if name != "verdict"}, SCHEMA) == [
        "$ must have verdict"
    ]
    assert errors_of({**plain, "checks": [{**plain["checks"][0], "passed": 1}]}, SCHEMA) == [
        "$.checks[0].passed must be boolean"
    ]


def test_infinity_is_text_in_the_json_form(ledger_file: Path) -> None:
    broken = replace(RESULT, epsilon_lower=math.inf, scores={"in": (math.inf,)})
    plain = to_plain(replace(report_of(ledger_file, APP_KEY), results=(broken,)))
    assert plain["results"][0]["epsilon_lower"] == "inf"
    assert errors_of(json.loads(json.dumps(plain, allow_nan=False)), SCHEMA) == []


def test_the_verdict_of_a_record_that_is_well(make_run: MakeRun, ledger_file: Path) -> None:
    assert [(r.status, r.exit_code) for r in (report_of(make_run(USER)), report_of(ledger_file, APP_KEY))] == [
        ("pass", 0),
        ("pass", 0),
    ]


def test_a_run_without_noise_keeps_its_word_by_promising_nothing(make_run: MakeRun) -> None:
    folder = make_run(NONE)
    report = report_of(folder)
    assert (report.status, report.exit_code, report.promises) == ("nothing-promised", 0, ())
    assert report.not_protected[0].startswith("Nothing is promised")
    demanded = report_of(folder, max_epsilon=8.0)
    assert (demanded.status, demanded.exit_code) == ("fail", 1)
    assert demanded.reasons == ("Nothing is promised, and an epsilon of at most 8 is demanded.",)


@pytest.mark.parametrize(("most", "code"), [(4.0, 0), (0.5, 1)])
def test_more_than_is_demanded_fails(ledger_file: Path, most: float, code: int) -> None:
    assert report_of(ledger_file, APP_KEY, max_epsilon=most).exit_code == code


def test_a_chain_that_does_not_verify_is_exit_code_2_whatever_else_holds(ledger_file: Path) -> None:
    ledger_file.write_bytes(ledger_file.read_bytes().replace(b'"adapter":1', b'"adapter":2', 1))
    report = report_of(ledger_file, APP_KEY)
    assert (report.status, report.exit_code) == ("fail", 2)
    assert "its mac does not fit" in report.reasons[0]
    lines = ledger_file.read_bytes().splitlines(keepends=True)
    ledger_file.write_bytes(b"".join([lines[0], *lines[2:]]))
    unreadable = report_of(ledger_file, APP_KEY)
    assert (unreadable.status, unreadable.exit_code, unreadable.promises) == ("fail", 2, ())


def test_a_bound_above_its_claim_and_a_failed_check_are_reasons(make_run: MakeRun) -> None:
    report = report_of(make_run(USER))
    assert replace(report, results=(RESULT,)).exit_code == 0
    above = replace(report, results=(replace(RESULT, epsilon_lower=5.0),))
    assert (above.status, above.exit_code) == ("fail", 1)
    assert above.reasons == ("component audit of server: at least epsilon 5.000 was measured, 3.341 is claimed.",)
    failed = replace(RESULT, checks=(Check(name="noise", passed=False, statement="The noise is half."),))
    assert replace(report, results=(failed,)).reasons == ("component audit of server: The noise is half.",)


def test_an_audit_that_ends_with_an_error_is_a_failed_check_and_the_others_go_on() -> None:
    def crash() -> AuditResult:
        raise ZeroDivisionError("a bug")

    measured = run_audits([Audit(name="first", run=crash), Audit(name="second", run=lambda: RESULT)], Silent())
    assert measured.results == (RESULT,)
    assert [(check.name, check.passed) for check in measured.failures] == [("ran", False)]
    assert measured.failures[0].statement == "The first could not be run: ZeroDivisionError: a bug"


def test_secure_aggregation_is_not_called_central(make_run: MakeRun) -> None:
    terms = replace(USER, secure=SecureConfig(enabled=True))
    report = report_of(make_run(terms, realised=[2.5] * 6))
    told = {field.name: field for field in report.fields}
    assert told["trust_model"].value == "distributed (user)"
    assert "discrete Gaussian" in told["mechanism"].value.replace("D", "d", 1)
    assert not any("sees each node's reply" in line for line in report.not_protected)
    assert any("sees each node's reply" in line for line in report_of(make_run(USER, name="b")).not_protected)
