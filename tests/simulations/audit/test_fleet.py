"""Expectations: ``verify_ledger`` on each ledger by itself, and what was spoiled on purpose."""

import json
import shutil
from pathlib import Path

import pytest

from ownlet.device.chain import signed_line
from ownlet.device.ledger import Budget, Charge, Ledger, verify_ledger
from ownlet.shared.config import Plan
from ownlet.shared.errors import ConfigError, DataError
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.shared.seal import Keys
from ownlet.simulations.audit.fleet import audit_fleet, device_keys
from ownlet.simulations.benchmarks.fleet_ledgers import FLEET_KEY, write_fleet
from ownlet.simulations.results import plain_json

PLAN = Plan(steps=1, clip_norm=1.0, noise_multiplier=6.0)
CHARGE = Charge(
    unit="window", event=event_to_json(window_level_event(PLAN, 1)), base_hash="b" * 64, adapter_version=1, plan=PLAN
)


def start(path: Path, *, charges: int, key: bytes = b"", epsilon: float = 8.0, at: float = 1.7e9) -> Ledger:
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(path, budget=Budget(epsilon=epsilon, dp_delta=1e-6), key=key, clock=lambda: at)
    for _ in range(charges):
        ledger.commit(ledger.charge(CHARGE), "0" * 64)
    return ledger


def test_a_fleet_is_the_sum_of_its_ledgers(tmp_path: Path) -> None:
    for number, charges in enumerate((0, 1, 3, 3)):
        start(tmp_path / f"d{number}" / "ledger.jsonl", charges=charges, at=1.7e9 + number)
    fleet = audit_fleet(tmp_path)
    reports = [verify_ledger(path) for path in sorted(tmp_path.rglob("*.jsonl"))]
    spent = sorted(report.spent["window"].epsilon for report in reports if report.charges)
    window = fleet.units["window"]
    assert (fleet.ledgers, fleet.verified, fleet.passed, fleet.keyed) == (4, 4, True, False)
    assert (window.devices, window.charges, set(fleet.units)) == (3, 7, {"window"})
    assert (window.epsilon_quantiles[0], window.epsilon_quantiles[-1]) == (spent[0], spent[-1])
    assert window.share_quantiles[3] == spent[1] / 8.0
    assert window.spent == ((spent[0], 8.0, 1), (spent[1], 8.0, 2))
    assert fleet.distinct_totals == 2
    assert fleet.budgets == {"epsilon 8 at delta 1e-06": 4}


def test_what_was_spoiled_is_found_and_nothing_else(tmp_path: Path) -> None:
    write_fleet(tmp_path, 12, most_charges=3)
    fleet = audit_fleet(tmp_path, keys=FLEET_KEY, workers=1)
    (broken,) = fleet.broken
    assert (fleet.ledgers, fleet.verified, fleet.keyed, fleet.passed) == (13, 12, True, False)
    assert (broken.device, broken.line, broken.file.endswith("device-00001/ledger.jsonl")) == ("device-00001", 2, True)
    assert "mac" in broken.reason
    assert fleet.torn == {"device-00002": 20}
    assert [(shared.kind, shared.devices) for shared in fleet.shared_pasts] == [("duplicate", ("copy", "device-00003"))]
    plain = json.loads(json.dumps(plain_json(fleet), allow_nan=False))
    assert plain["broken"][0]["line"] == 2


def test_a_copied_ledger_that_went_on_is_a_fork(tmp_path: Path) -> None:
    start(tmp_path / "a" / "ledger.jsonl", charges=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    Ledger(tmp_path / "b" / "ledger.jsonl").charge(CHARGE)
    (shared,) = audit_fleet(tmp_path).shared_pasts
    assert (shared.kind, shared.devices) == ("fork", ("a", "b"))


def test_a_device_that_can_charge_no_more_is_exhausted(tmp_path: Path) -> None:
    one, two = (verify_ledger_of(tmp_path / "probe" / f"{n}.jsonl", n) for n in (1, 2))
    shutil.rmtree(tmp_path / "probe")
    start(tmp_path / "full.jsonl", charges=1, epsilon=(one + two) / 2)
    start(tmp_path / "free.jsonl", charges=1, epsilon=2 * two, at=1.8e9)
    fleet = audit_fleet(tmp_path)
    assert (fleet.units["window"].exhausted, fleet.verified) == (1, 2)


def verify_ledger_of(path: Path, charges: int) -> float:
    start(path, charges=charges)
    return verify_ledger(path).spent["window"].epsilon


def test_a_charge_past_the_budget_of_its_time_is_named_with_its_line(tmp_path: Path) -> None:
    ledger = start(tmp_path / "d.jsonl", charges=2)
    ledger.budget = Budget(epsilon=0.5, dp_delta=1e-6)  # as a changed program would write it
    Ledger(tmp_path / "d.jsonl", budget=ledger.budget)
    frame = json.loads((tmp_path / "d.jsonl").read_bytes().splitlines()[1])
    append_intent(tmp_path / "d.jsonl", frame)
    (past,) = audit_fleet(tmp_path).past_budget
    assert (past.device, past.line, past.unit, past.budget) == ("d", 7, "window", 0.5)
    assert past.epsilon > 0.5


def append_intent(path: Path, like: dict[str, object]) -> None:
    last = json.loads(path.read_bytes().splitlines()[-1])
    entry = {name: value for name, value in like.items() if name != "mac"}
    with path.open("ab") as file:
        file.write(signed_line({**entry, "seq": last["seq"] + 1, "prev": last["mac"]}, b""))


def test_keys_may_differ_by_device(tmp_path: Path) -> None:
    keys = {"a": bytes(range(32)), "b": bytes(range(32, 64))}
    for number, (device, key) in enumerate(keys.items()):
        start(tmp_path / "ledgers" / f"{device}.jsonl", charges=1, key=Keys.of(key).ledger, at=1.7e9 + number)
    start(tmp_path / "ledgers" / "c.jsonl", charges=1)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "a.key").write_bytes(keys["a"])
    (tmp_path / "keys" / "b").write_text(keys["b"].hex())
    fleet = audit_fleet(tmp_path / "ledgers", keys=device_keys(tmp_path / "keys"))
    assert fleet.verified == 2
    assert [(broken.device, broken.reason) for broken in fleet.broken] == [("c", "no key is given for this device")]
    with_one = audit_fleet(tmp_path / "ledgers", keys=keys["a"])
    assert [broken.device for broken in with_one.broken] == ["b", "c"]
    (tmp_path / "keys" / "d").write_text("no key")
    with pytest.raises(ConfigError, match="32 bytes or 64 hex"):
        device_keys(tmp_path / "keys")


def test_files_that_are_no_ledgers_are_listed_as_broken(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.jsonl").write_text("hello\n")
    start(tmp_path / "good.jsonl", charges=0)
    fleet = audit_fleet(tmp_path)
    assert [(broken.device, broken.line) for broken in fleet.broken] == [("empty", 0), ("text", 1)]
    assert (fleet.verified, fleet.units) == (1, {})
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="got none"):
        audit_fleet(tmp_path / "nothing")
    with pytest.raises(DataError, match="must be a folder"):
        audit_fleet(tmp_path / "nowhere")


@pytest.mark.slow
def test_ten_thousand_ledgers_are_verified_by_worker_processes(tmp_path: Path) -> None:
    write_fleet(tmp_path, 10_000, most_charges=6)
    fleet = audit_fleet(tmp_path, keys=FLEET_KEY, workers=2)
    assert (fleet.ledgers, fleet.verified, len(fleet.broken), len(fleet.shared_pasts)) == (10_001, 10_000, 1, 1)
    sample = sorted(tmp_path.rglob("*.jsonl"))[::500]
    key = Keys.of(FLEET_KEY).ledger
    alone = {verify_ledger(path, key).spent["window"].epsilon for path in sample if "device-00001" not in str(path)}
    assert alone - {0.0} <= {epsilon for epsilon, _, _ in fleet.units["window"].spent}
