import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger
from ownlet.shared.config import Plan
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.shared.seal import Keys

APP_KEY = bytes(range(100, 132))
PLAN = Plan(steps=3, sample_rate=0.1, clip_norm=1.0, noise_multiplier=2.0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(COMMANDS), ["ledger", *map(str, arguments)])


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder with a ledger under the app's key: two charges, the first committed."""
    ledger = Ledger(tmp_path / LEDGER_FILE, key=Keys.of(APP_KEY).ledger, clock=lambda: 1_700_000_000.0)
    event = event_to_json(window_level_event(PLAN, 1))
    charge = Charge(unit="window", event=event, base_hash="b" * 64, adapter_version=3, plan=PLAN, round=7)
    ledger.commit(ledger.charge(charge), "d" * 64)
    ledger.charge(charge)
    return tmp_path


def test_show_tells_the_entries_the_open_intents_and_what_is_left(state: Path):
    result = run("show", state)
    told = " ".join(result.stdout.split())
    assert result.exit_code == 0, result.output
    assert "2023-11-14 22:13:20 commit" in told
    assert "intent (open) window 7" in told
    assert "Budget: epsilon 8 at delta 1e-06" in told
    report = json.loads(run("show", state, "--json").stdout)
    window = report["units"]["window"]
    assert f"window 2 1 {window['epsilon']:.4f} {window['left']:.4f}" in told
    assert f"Head: 4 {report['head']}" in told


def test_show_as_json_holds_everything(state: Path):
    report = json.loads(run("show", state / LEDGER_FILE, "--json", "--last", 1).stdout)
    assert (report["seq"], report["open"], report["uncommitted"], len(report["entries"])) == (4, [4], 1, 1)
    assert report["entries"][0]["mac"] == report["head"]
    assert report["units"]["user"] == {"charges": 0, "epsilon": 0.0, "events": {}, "left": 8.0, "uncommitted": 0}


def test_show_says_when_it_leaves_entries_out(state: Path):
    assert "The last 1 of 4 entries" in run("show", state, "--last", 1).stdout
    assert "of 4 entries" not in run("show", state, "--last", 0).stdout


def test_a_budget_without_limit_is_json_too(tmp_path: Path):
    Ledger(tmp_path / LEDGER_FILE, budget=Budget(epsilon=math.inf))
    report = json.loads(run("show", tmp_path, "--json").stdout)
    assert (report["budget"]["epsilon"], report["units"]["window"]["left"]) == ("inf", "inf")
    assert run("show", tmp_path).exit_code == 0


@pytest.mark.parametrize("content", [APP_KEY, APP_KEY.hex().encode(), APP_KEY.hex().encode() + b"\n"])
def test_verify_with_the_key_of_the_app(state: Path, tmp_path: Path, content: bytes):
    key = tmp_path / "key"
    key.write_bytes(content)
    result = run("verify", state, "--key-file", key)
    assert result.exit_code == 0, result.output
    assert "verifies: 4 entries, 2 charges (1 uncommitted), head " in result.stdout
    assert "No key" not in result.stdout


def test_verify_fails_in_one_line_with_exit_code_2(state: Path, tmp_path: Path):
    key = tmp_path / "key"
    key.write_bytes(APP_KEY)
    file = state / LEDGER_FILE
    file.write_bytes(file.read_bytes().replace(b'"adapter":3', b'"adapter":4', 1))
    result = run("verify", state, "--key-file", key)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: ledger must verify, got line 2 of {file}: its mac does not fit")
    assert result.stderr.count("\n") == 1


def test_verify_without_a_key_says_what_it_cannot_find(tmp_path: Path):
    Ledger(tmp_path / LEDGER_FILE)
    with (tmp_path / LEDGER_FILE).open("ab") as file:
        file.write(b"{torn")
    told = run("verify", tmp_path).stdout
    assert "No key: this finds damage, not forgery." in told
    assert "5 bytes of a torn line at the end do not count." in told


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_missing_ledger_is_one_line(tmp_path: Path, command: str):
    result = run(command, tmp_path / "nothing")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ledger must be readable, got ")


@pytest.mark.parametrize("content", [b"", b"too short", b"x" * 33, None])
def test_a_key_file_that_holds_no_key_is_refused_without_showing_it(state: Path, tmp_path: Path, content: bytes | None):
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    result = run("verify", state, "--key-file", key)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: key")
    assert not content or content.decode() not in result.stderr


def test_help_imports_nothing_heavy():
    code = "import sys, ownlet.cli.main; print([m for m in ('torch', 'numpy', 'ownlet.device') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == "[]"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's folder: user 2 was charged in rounds 4 and 7, user 10 in round 7."""
    (tmp_path / "ledgers").mkdir()
    event = event_to_json(window_level_event(PLAN, 1))
    for user, rounds in ((2, (4, 7)), (10, (7,))):
        ledger = Ledger(tmp_path / "ledgers" / f"{user}.jsonl")
        for number in rounds:
            ledger.charge(
                Charge(unit="window", event=event, base_hash="b" * 64, adapter_version=3, plan=PLAN, round=number)
            )
    return tmp_path


def test_a_nodes_folder_is_summed_up(node: Path):
    least = Ledger(node / "ledgers" / "2.jsonl").spent("window").left
    told = json.loads(run("show", node, "--json").stdout)
    assert told == {"users": 2, "rounds": [4, 7], "charges": 3, "least_left": least}
    shown = run("show", node).stdout
    assert "2 users have a ledger" in shown
    assert f"epsilon {least:.4f} left" in shown
    assert f"ownlet ledger show {node / 'ledgers' / '2.jsonl'}" in shown


def test_every_ledger_of_a_node_must_verify(node: Path):
    assert "the ledgers of 2 users" in run("verify", node).stdout
    damaged = node / "ledgers" / "10.jsonl"
    damaged.write_bytes(damaged.read_bytes().replace(b'"round":7', b'"round":8'))
    result = run("verify", node)
    assert result.exit_code == 2
    assert "10.jsonl" in result.output
