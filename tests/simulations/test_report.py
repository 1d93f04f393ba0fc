import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ownlet.shared.errors import ConfigError
from ownlet.shared.metrics import Metric
from ownlet.simulations import figures
from ownlet.simulations.findings import (
    DataFacts,
    Latency,
    PrivacyRow,
    QualityRow,
    ReportData,
    RoundRecord,
    RunRecord,
)
from ownlet.simulations.report import quality_table, write_report
from ownlet.simulations.results import QUALITY_LABELS


def estimate(value: float, half_width: float = 0.005) -> Metric:
    return Metric(value=value, low=value - half_width, high=value + half_width)


def quality() -> tuple[QualityRow, ...]:
    """Rows whose NDCG rises by .01 from row to row; the base is the third, at .07."""
    return tuple(
        QualityRow(
            label=label,
            hr=estimate(0.10 + at / 100),
            ndcg=estimate(0.05 + at / 100),
            mrr=estimate(0.04 + at / 100),
            gain=estimate(at / 100 - 0.02, 0.004) if at > 2 else None,
        )
        for at, label in enumerate(QUALITY_LABELS)
    )


def runs() -> tuple[RunRecord, ...]:
    return tuple(
        RunRecord(
            label=label,
            seed=seed,
            rounds=tuple(
                RoundRecord(
                    round=at,
                    ndcg=estimate(0.07 + at / 1000 + seed / 500) if at % 2 == 0 else None,
                    epsilon=at / 2 if label != "federated" else None,
                    update_norm=0.2 + at / 10,
                    clip_norm=0.3,
                )
                for at in range(5)
            ),
        )
        for label in ("federated", "federated_eps2")
        for seed in range(2)
    )


def report_data(**changes: object) -> ReportData:
    promise = PrivacyRow(
        label="federated_eps2",
        epsilon=1.98,
        dp_delta=1e-5,
        unit="user",
        rounds=4,
        sampling="Poisson over users",
        noise_multiplier=1.6,
        clip_norm=0.3,
        accountant="PLD",
        trust_model="the server adds the noise",
    )
    data = ReportData(
        title="demo",
        data=DataFacts(name="synthetic", users=2000, items=1000, interactions=50_000),
        config={"rank": "8"},
        quality=quality(),
        bytes_up_per_user_round=4_096,
        bytes_down_per_user_round=950,
        program_bytes=1_360_000,
        latencies=(Latency(method="recommend", pte_ms=1.25, eager_ms=2.5),),
        runs=runs(),
        base_by_round=estimate(0.07),
        privacy=(promise,),
        not_protected=("The base is trained without privacy.",),
    )
    return replace(data, **changes)


def page(tmp_path: Path, **changes: object) -> str:
    return write_report(tmp_path / "report.html", report_data(**changes)).read_text()


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the page with everything in it, written once."""
    return page(tmp_path_factory.mktemp("full"))


class _Tags(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> _Tags:
    tags = _Tags()
    tags.feed(text)
    tags.close()
    assert tags.opened == []
    return tags


def test_the_page_needs_no_network(full_page: str):
    text = full_page
    tags = parsed(text)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(tags.tags)
    assert not {"src", "href", "srcset", "data"} & {name for name, _ in tags.attributes}
    assert "@import" not in text
    assert all(
        link.startswith("#")
        for link in re.findall(r'xlink:href="([^"]*)"|url\(([^)]*)\)', text)
        for link in link
        if link
    )
    assert {url.split("/")[2] for url in re.findall(r"https?://[^\"' ]+", text)} <= {"www.w3.org"}  # XML namespaces


def test_equal_data_gives_equal_bytes(tmp_path: Path, full_page: str):
    assert page(tmp_path) == full_page


def test_every_value_is_escaped(tmp_path: Path):
    evil = "<script>alert('x')</script> & co"
    facts = DataFacts(name=evil, users=1, items=1, interactions=1)
    latencies = (Latency(method=evil, pte_ms=1.0, eager_ms=2.0),)
    tags = parsed(
        page(tmp_path, title=evil, data=facts, config={evil: evil}, not_protected=(evil,), latencies=latencies)
    )
    assert "script" not in tags.tags
    assert tags.text.count(evil) >= 6


def test_the_page_shows_every_row_promise_and_limit(full_page: str):
    text = " ".join(parsed(full_page).text.split())
    for expected in ("most popular", "item-kNN", "federated, ε = 8", "0.0700", "0.0650…0.0750", "+0.0100"):
        assert expected in text
    for expected in ("1.98", "the server adds the noise", "The base is trained without privacy.", "4.1 kB", "950 B"):
        assert expected in text


def test_the_headline_says_whether_the_interval_leaves_room_for_no_gain(tmp_path: Path, full_page: str):
    rows = quality()
    assert "+14.3%" in full_page  # (.08 - .07) / .07
    assert "the interval is above zero" in full_page
    unsure = (*rows[:3], replace(rows[3], gain=estimate(0.001, 0.004)))
    assert "the interval contains zero" in page(tmp_path, quality=unsure, runs=(), latencies=())
    worse = (*rows[:3], replace(rows[3], gain=estimate(-0.01, 0.004)))
    text = page(tmp_path, quality=worse, runs=(), latencies=())
    assert "−14.3%" in text
    assert "the interval is below zero" in text


def test_figures_without_data_are_left_out(tmp_path: Path, full_page: str):
    full, bare = full_page, page(tmp_path, runs=(), latencies=(), privacy=(), quality=quality()[:3])
    assert (full.count("<svg"), bare.count("<svg")) == (5, 0)
    assert "NaN" not in bare


def test_a_run_that_stopped_before_its_first_round_can_be_shown(tmp_path: Path):
    empty = RunRecord(label="federated_eps2", seed=0, rounds=())
    assert page(tmp_path, runs=(empty,)).count("<svg") == 2  # gain against epsilon, and latency


def test_a_quality_of_zero_everywhere_can_be_shown(tmp_path: Path):
    zero = estimate(0.0, 0.0)
    rows = tuple(QualityRow(label=label, hr=zero, ndcg=zero, mrr=zero, gain=zero) for label in QUALITY_LABELS)
    assert "+0.0000" in page(tmp_path, quality=rows, runs=(), latencies=())


def test_a_figure_is_well_formed_themed_and_has_no_fixed_size():
    svg = figures.quality_by_round(runs(), estimate(0.07))
    root = ElementTree.fromstring(svg)
    assert "width" not in root.attrib
    assert root.attrib["role"] == "img"
    assert "var(--federated)" in svg
    assert not re.search(r"#0[0-9]0[0-9]0[0-9]\b", svg)  # no stand-in colour is left
    assert "no privacy" in "".join(root.itertext())  # text stays text


def test_no_name_is_used_twice_in_the_page(full_page: str):
    names = [value for name, value in parsed(full_page).attributes if name == "id"]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("labels", [(), ("base", "popular"), ("base", "base")])
def test_rows_out_of_order_or_repeated_are_refused(labels: tuple[str, ...]):
    rows = {row.label: row for row in quality()}
    with pytest.raises(ConfigError, match="quality must have rows in the order"):
        report_data(quality=tuple(rows[label] for label in labels))


def test_an_unknown_label_and_an_inverted_interval_are_refused():
    with pytest.raises(ConfigError, match="label must be one of"):
        RunRecord(label="eps2", seed=0, rounds=())
    with pytest.raises(ConfigError, match="low <= value <= high"):
        Metric(value=1.0, low=1.1, high=1.2)


def test_the_terminal_table_fits_80_columns_and_shows_every_number():
    console = Console(width=80)
    with console.capture() as capture:
        console.print(quality_table(quality()))
    text = capture.get()
    assert max(len(line) for line in text.splitlines()) <= 80
    for expected in ("0.0700", "0.0650…0.0750", "+0.0100", "+0.0060…+0.0140", "personal", "most"):
        assert expected in text
