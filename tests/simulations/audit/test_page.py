import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ownlet.simulations.audit.page import METHODS, write_page
from ownlet.simulations.audit.report import AuditReport, assemble_record
from ownlet.simulations.audit.result import AuditResult, Check, Claim
from ownlet.simulations.audit.subject import open_subject

from .conftest import APP_KEY, NONE, WINDOW, MakeRun

RESULT = AuditResult(
    method="one-run",
    subject="opacus",
    claim=Claim(unit="window", sample_rate=1.0, noise_multiplier=4.0, clip_norm=0.3, steps=1),
    epsilon_lower=0.5,
    confidence=0.95,
    checks=(Check(name="guesses", passed=False, statement="600 of 1,000 guesses were right.", measured=600.0),),
    scores={"in": tuple(float(x) for x in range(9)), "out": tuple(float(-x) for x in range(9))},
    figures={"true_positives": 0.5},
)


class Tags(HTMLParser):
    """Collects tags that are open, and every attribute that could load something."""

    void = frozenset({"meta", "br", "path", "use", "image", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


@pytest.fixture
def report(ledger_file: Path) -> AuditReport:
    subject = open_subject(ledger_file, APP_KEY)
    return assemble_record(subject, "ledger.jsonl", clock=lambda: datetime(2026, 1, 2, tzinfo=UTC))


def page_of(tmp_path: Path, report: AuditReport) -> str:
    return write_page(tmp_path / "audit.html", report).read_text()


def test_the_page_is_one_file_that_loads_nothing(tmp_path: Path, report: AuditReport) -> None:
    page = page_of(tmp_path, replace(report, results=(RESULT,)))
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert all(link.startswith("#") for link in tags.links)
    assert not re.findall(r"url\((?!#)|<script|@import", page)


def test_the_verdict_comes_first_and_its_reasons_with_it(tmp_path: Path, report: AuditReport) -> None:
    text = page_of(tmp_path, report)
    assert text.index("<strong>PASS</strong>") < text.index("<h2>")
    failed = page_of(tmp_path, replace(report, results=(RESULT,)))
    reason = "One-run audit of opacus: 600 of 1,000 guesses were right."
    assert failed.index("<strong>FAIL</strong>") < failed.index(reason) < failed.index("<h2>")


def test_a_run_without_privacy_says_so_at_the_top(tmp_path: Path, make_run: MakeRun) -> None:
    subject = open_subject(make_run(NONE))
    page = page_of(tmp_path, assemble_record(subject, "run"))
    assert page.index("NOTHING PROMISED") < page.index("<h2>")
    assert "This does not protect anybody." in page


def test_every_field_check_and_sentence_is_on_the_page(tmp_path: Path, report: AuditReport) -> None:
    page = page_of(tmp_path, replace(report, results=(RESULT,), skipped=("Nothing else was run.",)))
    shown = re.sub(r"&#39;", "'", page)
    for field in report.fields:
        assert field.title in shown
        assert field.statement in shown
    for check in (*report.checks, *RESULT.checks):
        assert check.statement in shown
    for sentence in (*report.not_protected, METHODS["one-run"], "Nothing else was run."):
        assert sentence in shown


def test_figures_are_drawn_for_what_is_known(tmp_path: Path, make_run: MakeRun) -> None:
    subject = open_subject(make_run(WINDOW))
    page = page_of(tmp_path, replace(assemble_record(subject, "run"), results=(RESULT,)))
    assert page.count("<svg") == 5  # over participations, over delta, bounds, devices, scores
    assert page.count('role="img"') == 5


def test_a_name_cannot_write_html(tmp_path: Path, report: AuditReport) -> None:
    page = page_of(tmp_path, replace(report, name="<b>x</b>"))
    assert "<b>x</b>" not in page


def test_equal_reports_give_equal_bytes(tmp_path: Path, report: AuditReport) -> None:
    shown = replace(report, results=(RESULT,))
    assert page_of(tmp_path, shown) == page_of(tmp_path, shown)
