import dataclasses
from pathlib import Path

import pytest

from ownlet.server.drift import DropDetector
from ownlet.server.published import Publication, SpentOnce
from ownlet.server.registry import Registry
from ownlet.server.reports import ReportFile, tally_arms
from ownlet.server.sequential import Tally, judge_arms
from ownlet.shared.adapter import AdapterSpec, LayerShape, dump_adapter, initial_adapter
from ownlet.shared.counters import Arm, CountReport, CountTerms
from ownlet.shared.errors import ConfigError, StoreError
from ownlet.shared.privacy import event_to_json, user_level_event

SPENT = SpentOnce(unit="user", epsilon=2.0, dp_delta=1e-5, event=event_to_json(user_level_event(0.2, 4.0, 10)))
SPEC = AdapterSpec(layers=(LayerShape(name="l", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64)


def report(number: int, bit: int = 1, arm: Arm | None = "a", version: int = 5) -> CountReport:
    return CountReport(count="one", arm=arm, version=version, bit=int(bit), id=f"{number:032x}")


@pytest.fixture
def file(tmp_path: Path) -> ReportFile:
    return ReportFile(tmp_path / "reports" / "one.jsonl", "one")


def test_a_report_counts_once_however_often_it_comes(file: ReportFile):
    lines = [report(1).to_json(), report(2, 0).to_json(), report(1).to_json(), "", "no report"]
    first = file.collect(lines)
    assert first.new == (report(1), report(2, 0))
    assert first.repeated == 1
    assert len(first.refused) == 1
    assert first.refused[0].startswith("line 5: count report must be one that a device wrote")
    again = file.collect(lines)
    assert (again.new, again.repeated) == ((), 3)
    assert file.read() == [report(1), report(2, 0)]


def test_a_report_of_another_count_is_refused(file: ReportFile):
    other = dataclasses.replace(report(1), count="two")
    assert file.collect([other.to_json()]).refused == ("line 1: count must be one, got two",)
    assert file.read() == []


def test_a_line_that_a_crash_cut_off_does_not_count_and_is_overwritten(file: ReportFile, tmp_path: Path):
    file.collect([report(1).to_json()])
    path = tmp_path / "reports" / "one.jsonl"
    path.write_bytes(path.read_bytes() + report(2).to_json().encode()[:40])
    assert file.read() == [report(1)]
    file.collect([report(3).to_json()])
    assert file.read() == [report(1), report(3)]
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(StoreError, match="reports must be as they were collected"):
        file.read()


def test_arms_are_added_up():
    reports = [report(1, 1, "a"), report(2, 0, "a"), report(3, 1, "b"), report(4, 1, None)]
    assert tally_arms(reports) == Tally(reports_a=2, ones_a=1, reports_b=1, ones_b=1)


def test_reports_about_the_candidate_feed_the_monitor_which_pauses_its_rollout(tmp_path: Path):
    registry = Registry(tmp_path)
    content = dump_adapter(SPEC, initial_adapter(SPEC, 0), version=5)
    registry.publish(Publication(content=content, quality=1, base_quality=0, spent=SPENT, source="t"))
    registry.promote(1, 20)
    registry.watch(DropDetector(baseline=0.45, drop=0.1, false_alarm_every=1000, of_bits=True))
    with pytest.raises(ConfigError, match="count must be under way"):
        registry.collect([])
    registry.start_count(CountTerms(count="one"))
    others = [report(number, 0, None, version=4).to_json() for number in range(1000)]
    assert len(registry.collect(others).new) == 1000  # about another adapter
    assert not registry.rollout().paused
    registry.collect([report(number, 0, None).to_json() for number in range(1000, 1200)])
    assert registry.rollout().paused.startswith("quality fell: value ")
    assert registry.rollout().watched.values == 200
    assert len(registry.reports("one")) == 1200
    with pytest.raises(ConfigError, match=r"count must be one of \['one'\], got count='\.\./registry'"):
        registry.reports("../registry")
    with pytest.raises(ConfigError, match="count must be an experiment, got count='one'"):
        registry.verdict("one")


def test_an_experiment_is_judged_by_the_terms_that_it_started_with(tmp_path: Path):
    registry = Registry(tmp_path)
    content = dump_adapter(SPEC, initial_adapter(SPEC, 0), version=5)
    registry.publish(Publication(content=content, quality=1, base_quality=0, spent=SPENT, source="t"))
    terms = CountTerms(count="one", epsilon=2.0)
    with pytest.raises(ConfigError, match="versions of an experiment must differ, got a=1, b=1"):
        registry.start_experiment(terms, a=1, b=1, percent=10)
    registry.start_experiment(terms, a=0, b=1, percent=10, alpha=0.1, expected_reports=2000)
    registry.collect([report(number, number % 3 == 0, "a").to_json() for number in range(1000)])
    registry.collect([report(number, number % 3 > 0, "b").to_json() for number in range(1000, 2000)])
    registry.stop_count("enough")
    tally, verdict = registry.verdict("one")
    assert tally == Tally(reports_a=1000, ones_a=334, reports_b=1000, ones_b=667)
    assert verdict == judge_arms(tally, 2.0, alpha=0.1, expected_reports=2000)
    assert verdict.better == "b"
