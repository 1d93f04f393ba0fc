import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ownlet.cli.main import COMMANDS, build_app
from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger
from ownlet.shared.config import Plan
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.shared.seal import Keys

APP_KEY = bytes(range(32))
PLAN = Plan(steps=1, sample_rate=0.5, clip_norm=1.0, noise_multiplier=4.0)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(build_app(COMMANDS), ["audit", *map(str, arguments)])


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A state folder's ledger with one charge, under the app's key, which lies beside it as ``key``."""
    (tmp_path / "key").write_bytes(APP_KEY)
    opened = Ledger(tmp_path / LEDGER_FILE, budget=Budget(epsilon=2.0, dp_delta=1e-5), key=Keys.of(APP_KEY).ledger)
    event = event_to_json(window_level_event(PLAN, 1))
    opened.charge(Charge(unit="window", event=event, base_hash="b" * 64, adapter_version=3, plan=PLAN))
    return tmp_path / LEDGER_FILE


def test_a_ledger_that_is_well_is_exit_code_0_with_a_page_and_a_json_file(ledger: Path, tmp_path: Path) -> None:
    page, plain = tmp_path / "new" / "audit.html", tmp_path / "audit.json"
    result = run(ledger, "--key-file", tmp_path / "key", "--out", page, "--json", plain)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("reading and accounting")
    assert f"PASS: ledger {LEDGER_FILE}" in result.stdout
    assert "Trust model: local (window)" in result.stdout
    assert "<strong>PASS</strong>" in page.read_text()
    report = json.loads(plain.read_text())
    assert report["verdict"] == {"exit_code": 0, "reasons": [], "status": "pass"}
    assert 0 < report["promises"][0]["epsilon"] < 2


def test_more_than_is_demanded_is_exit_code_1(ledger: Path, tmp_path: Path) -> None:
    result = run(ledger, "--key-file", tmp_path / "key", "--max-epsilon", 0.01)
    assert result.exit_code == 1
    assert "FAIL: ledger" in result.stdout
    assert "and at most 0.01 is demanded." in result.stdout


def test_a_tampered_ledger_is_exit_code_2_and_a_report_that_says_so(ledger: Path, tmp_path: Path) -> None:
    ledger.write_bytes(ledger.read_bytes().replace(b'"adapter":3', b'"adapter":4', 1))
    page = tmp_path / "audit.html"
    result = run(tmp_path, "--key-file", tmp_path / "key", "--out", page)
    assert result.exit_code == 2
    assert "line 2" in result.stdout
    assert "its mac does not fit" in page.read_text()


def test_a_ledger_without_its_key_does_not_verify(ledger: Path) -> None:
    result = run(ledger)
    assert result.exit_code == 2
    assert "No key was given" in result.stdout


def test_what_cannot_be_read_is_one_line_and_no_file(ledger: Path, tmp_path: Path) -> None:
    page, plain = tmp_path / "audit.html", tmp_path / "audit.json"
    first = ledger.read_bytes().index(b"\n")
    ledger.write_bytes(ledger.read_bytes()[:first])
    for path in (tmp_path / "nothing", tmp_path / "key", ledger):
        result = run(path, "--out", page, "--json", plain)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert not page.exists()
        assert not plain.exists()


@pytest.mark.parametrize(
    ("option", "name", "told"),
    [
        ("--out", "audit.pdf", "out must end in .html"),
        ("--json", "audit.txt", "json must end in .json"),
        ("--out", "key/audit.html", "folder of a report must be writable"),
        ("--out", "folder.html", "must be a file, not a folder"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused_before_the_audit(
    ledger: Path, tmp_path: Path, option: str, name: str, told: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    before = sorted(tmp_path.iterdir())
    result = run(ledger, option, tmp_path / name)
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.iterdir()) == before


def test_an_unlimited_budget_is_json_too(tmp_path: Path) -> None:
    Ledger(tmp_path / LEDGER_FILE, budget=Budget(epsilon=math.inf))
    assert run(tmp_path, "--json", tmp_path / "audit.json").exit_code == 0
    assert json.loads((tmp_path / "audit.json").read_text())["promises"] == []


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Three devices with a ledger each, under one key: with 1, 2 and 3 charges."""
    event = event_to_json(window_level_event(PLAN, 1))
    for charges in (1, 2, 3):
        folder = tmp_path / "fleet" / f"device-{charges}"
        folder.mkdir(parents=True)
        opened = Ledger(folder / LEDGER_FILE, budget=Budget(epsilon=4.0, dp_delta=1e-5), key=Keys.of(APP_KEY).ledger)
        for number in range(charges):
            plain = Charge(unit="window", event=event, base_hash="b" * 64, adapter_version=number, plan=PLAN)
            opened.charge(plain)
    (tmp_path / "key").write_bytes(APP_KEY)
    return tmp_path / "fleet"


def test_a_fleet_is_one_report(fleet: Path, tmp_path: Path) -> None:
    page, plain = tmp_path / "audit.html", tmp_path / "audit.json"
    result = run("--ledgers", fleet, "--key-file", tmp_path / "key", "--out", page, "--json", plain)
    assert result.exit_code == 0, result.output
    report = json.loads(plain.read_text())
    assert report["subject"] == {"kind": "fleet", "name": "fleet"}
    assert report["devices"]["devices"] == [1, 1, 1]
    assert report["devices"]["epsilons"] == sorted(report["devices"]["epsilons"])
    assert "All 3 ledgers verify." in page.read_text()


def test_one_broken_ledger_of_a_fleet_is_named_and_exit_code_2(fleet: Path, tmp_path: Path) -> None:
    broken = fleet / "device-2" / LEDGER_FILE
    broken.write_bytes(broken.read_bytes().replace(b'"adapter":1', b'"adapter":7', 1))
    result = run("--ledgers", fleet, "--key-file", tmp_path / "key")
    assert result.exit_code == 2
    assert "device-2 line 3" in result.stdout


def test_a_path_or_a_fleet_is_needed_and_not_both(fleet: Path) -> None:
    for arguments in ((), (fleet, "--ledgers", fleet)):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "one of PATH and --ledgers must be given" in result.stderr
