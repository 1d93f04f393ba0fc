import json
import math
import re
import urllib.error
import urllib.request
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from ownlet.server.checkpoint import RoundResult
from ownlet.server.metrics import RunStatus, exposition, kind_of_refusal
from ownlet.server.published import Publication, SpentOnce
from ownlet.server.registry import Registry
from ownlet.server.status import chart_of, serve_status, status_page
from ownlet.shared.adapter import AdapterSpec, LayerShape, dump_adapter, initial_adapter
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.errors import ConfigError
from ownlet.shared.privacy import event_to_json, user_level_event

SPENT = SpentOnce(unit="user", epsilon=2.0, dp_delta=1e-5, event=event_to_json(user_level_event(0.2, 4.0, 10)))
CONFIG = FederationConfig(unit="user", noise_multiplier=4.0, target_epsilon=2.0, rounds=4, plan=Plan(steps=1))
RECORD = RoundResult(
    round=1,
    version=1,
    void=False,
    num_asked=40,
    num_nodes=3,
    num_admitted=2,
    rejected=("round 1, admit, node 77: the sum must be finite",),
    num_missing=0,
    epsilon=0.5,
    update_norm=0.1,
    seconds=2.0,
    clip_norm=0.3,
    quality=0.1,
    bytes_up=100,
    bytes_down=300,
)
NOTHING = np.zeros(1, np.float32)


def running(title: str = "a run") -> RunStatus:
    status = RunStatus(CONFIG, title)
    status.on_round(RECORD, NOTHING)
    late = replace(RECORD, round=2, void=True, epsilon=0.75, seconds=3.0, quality=0.12, rejected=(), num_missing=1)
    status.on_round(late, NOTHING)
    return status


def samples(text: str) -> dict[str, float]:
    """Read the text format by its grammar: comments, or a name with labels and a number."""
    found = {}
    for line in text.splitlines():
        if re.fullmatch(r"# (HELP|TYPE) [a-z0-9_]+ .+", line):
            continue
        match = re.fullmatch(r'([a-z_0-9]+(?:\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})?) (\S+)', line)
        assert match, line
        assert match[1] not in found
        found[match[1]] = float(match[2])
    return found


def get(address: str, method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(address, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_metrics_add_rounds_up():
    found = samples(exposition(running().now()))
    assert found['ownlet_rounds_total{outcome="void"}'] == 1
    assert found['ownlet_rounds_total{outcome="changed"}'] == 1
    assert found['ownlet_replies_refused_total{reason="admit: the sum must be finite"}'] == 1
    assert found["ownlet_replies_admitted_total"] == 4
    assert found["ownlet_users_asked_total"] == 80
    assert (found['ownlet_bytes_total{direction="up"}'], found['ownlet_bytes_total{direction="down"}']) == (200, 600)
    assert (found["ownlet_round_seconds_sum"], found["ownlet_round_seconds_count"]) == (5, 2)
    assert found['ownlet_epsilon{unit="user",delta="1e-05"}'] == 0.75
    assert found["ownlet_public_ndcg10"] == 0.12
    assert found["ownlet_process_resident_bytes"] > 2**20


def test_a_run_that_has_not_begun_and_one_without_privacy_are_told_too():
    status = RunStatus(replace(CONFIG, unit="none", noise_multiplier=0.0, target_epsilon=math.inf), "x")
    assert not any("epsilon" in name for name in samples(exposition(status.now())))
    assert "Waiting for the first round." in status_page(status.now(), None)
    status.on_round(replace(RECORD, epsilon=math.inf, quality=None), NOTHING)
    page = status_page(status.now(), None)
    assert "not yet" in page
    assert "inf" not in page
    status.finish("round 2 would spend too much")
    assert "Stopped: round 2 would spend too much." in status_page(status.now(), None)


def test_refusals_become_few_kinds_without_numbers_or_nodes():
    told = "round 12, admit, node -99: the norm of the sum must be at most users * clip_norm, 3.5e-2"
    assert kind_of_refusal(told) == "admit: the norm of the sum must be at most users * clip_norm, N"
    assert kind_of_refusal("round 1, admit, partition 5: records must be delta and reply, got ['x']") == (
        "admit: records must be delta and reply"
    )
    status = RunStatus(CONFIG, "x")
    letters = [f"{a}{b}" for a in "abcdefgh" for b in "abcdefgh"]
    status.on_round(replace(RECORD, rejected=tuple(f"round 1, admit, node 1: {word}" for word in letters)), NOTHING)
    assert len(status.now().refused) == 31
    assert sum(status.now().refused.values()) == 64


def test_nodes_are_shown_once_somebody_counts_them():
    status = running()
    assert "nodes_connected" not in exposition(status.now())
    assert "nodes connected" not in status_page(status.now(), None)
    status.connected(3)
    assert samples(exposition(status.now()))["ownlet_nodes_connected"] == 3
    assert "<span>nodes connected</span><strong>3</strong>" in status_page(status.now(), None)


def test_a_label_is_escaped():
    status = RunStatus(CONFIG, "x")
    status.on_round(replace(RECORD, rejected=('a "quoted" \\ word\nand a line',)), NOTHING)
    found = samples(exposition(status.now()))
    assert any(json.dumps('a "quoted" \\ word\nand a line')[1:-1] in name for name in found)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.add(tag)
        if tag not in ("meta", "br", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.names.add(tag)


def test_the_page_is_whole_needs_no_network_and_escapes_everything():
    status = running("<script>alert(1)</script>")
    status.on_round(replace(RECORD, round=3, rejected=("<img src=x onerror=alert(2)>",)), NOTHING)
    page = status_page(status.now(), "registry <b>broken</b>")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.names & {"script", "img", "b", "link", "iframe"}
    assert "&lt;img src=x onerror=alert(N)&gt;" in page
    assert "http" not in page.replace('http-equiv="refresh"', "")


def test_a_chart_goes_from_corner_to_corner():
    chart = chart_of([1, 2, 5], [1.0, 3.0, 2.0])
    assert chart is not None
    assert chart.points == "0.0,110.0 80.0,0.0 320.0,55.0"
    assert chart_of([1], [1.0]) is None
    flat = chart_of([1, 2], [1.0, 1.0])
    assert flat is not None
    assert flat.points == "0.0,110.0 320.0,110.0"


def test_the_server_answers_two_paths_and_nothing_else(tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    with serve_status(running(), port=0, registry=tmp_path / "registry") as address:
        status, kind, page = get(address)
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert "All devices: the bundle" in page
        assert get(f"{address}metrics")[:2] == (200, "text/plain; version=0.0.4; charset=utf-8")
        for path in ("secret", "../secret", "%2e%2e/secret", "metrics/", "/etc/passwd", "index.html"):
            assert get(f"{address}{path}")[0] == 404
        for method in ("POST", "PUT", "DELETE"):
            assert get(address, method)[0] == 501
        assert get(address, "HEAD")[2] == ""
        assert address.startswith("http://127.0.0.1:")
        with (
            pytest.raises(ConfigError, match="status port must be free"),
            serve_status(running(), port=int(address.rstrip("/").rpartition(":")[2])),
        ):
            pass
    with pytest.raises(urllib.error.URLError):
        get(address)


def test_the_page_shows_the_rollout_and_its_pause(tmp_path: Path):
    spec = AdapterSpec(
        layers=(LayerShape(name="l", in_features=3, out_features=4),), rank=2, alpha=2.0, base_hash="b" * 64
    )
    registry = Registry(tmp_path)
    content = dump_adapter(spec, initial_adapter(spec, 0), version=5)
    registry.publish(Publication(content=content, quality=1, base_quality=0, spent=SPENT, source="t"))
    registry.promote(1, 20)
    registry.pause("odd <numbers>")
    with serve_status(running(), port=0, registry=tmp_path) as address:
        page = get(address)[2]
        assert "Version 1 on 20 % of devices" in page
        assert "Paused: odd &lt;numbers&gt;" in page
        (tmp_path / "registry.json").write_text("broken")
        assert "registry.json must be JSON as it was written" in get(address)[2]
