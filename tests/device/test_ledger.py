import contextlib
import hashlib
import hmac
import json
import math
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ownlet.device.ledger import CHECKPOINT_EVERY, Budget, Charge, Ledger, read_ledger, verify_ledger
from ownlet.device.ledger_state import OPEN_KEPT
from ownlet.shared.config import Plan
from ownlet.shared.errors import BudgetExceededError, ConfigError, PrivacyError
from ownlet.shared.privacy import (
    compose_events,
    epsilon,
    event_from_json,
    event_to_json,
    user_level_event,
    window_level_event,
)
from ownlet.simulations.benchmarks.processes import last_json, run_command

KEY = bytes(range(32))
PLAN = Plan(steps=3, sample_rate=0.1, clip_norm=1.0, noise_multiplier=2.0)
WIDE = Budget(epsilon=1000.0)
SHA = hashlib.sha256(b"update").hexdigest()


def charge(plan: Plan = PLAN, **changes: Any) -> Charge:
    event = event_to_json(window_level_event(plan, 1))
    settings = {"unit": "window", "event": event, "base_hash": "b" * 64, "adapter_version": 1, "plan": plan}
    return Charge(**{**settings, **changes})


def user_charge(sigma: float = 4.0) -> Charge:
    return charge(unit="user", event=event_to_json(user_level_event(1.0, sigma, 1)))


def filled(path: Path, number: int, *, key: bytes = KEY, budget: Budget = WIDE) -> Ledger:
    ledger = Ledger(path, budget=budget, key=key)
    for _ in range(number):
        ledger.commit(ledger.charge(charge()), SHA)
    return ledger


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


# ------------------------------------------------------------ the record


def test_a_charge_is_in_the_file_when_it_returns(path: Path):
    ledger = Ledger(path, key=KEY, clock=lambda: 1_700_000_000.5)
    seq = ledger.charge(charge(round=7))
    entry = json.loads(lines(path)[-1])
    assert (entry["seq"], entry["state"], entry["unit"], entry["round"], entry["at"]) == (
        seq, "intent", "window", 7, 1_700_000_000.5,
    )  # fmt: skip
    assert (entry["base"], entry["adapter"], entry["plan"]["steps"]) == ("b" * 64, 1, 3)
    assert event_from_json(json.dumps(entry["event"])) == window_level_event(PLAN, 1)
    assert set(entry["versions"]) == {"ownlet"}
    assert path.stat().st_mode & 0o077 == 0


def test_lines_are_canonical_and_chained_by_hmac(path: Path):
    filled(path, 2)
    before = ""
    for number, line in enumerate(lines(path), start=1):
        entry = json.loads(line)
        assert line == json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        mac = entry.pop("mac")
        body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        assert mac == hmac.new(KEY, body, hashlib.sha256).hexdigest()
        assert (entry["seq"], entry["prev"]) == (number, before)
        before = mac


def test_seq_and_head_name_the_last_line(path: Path):
    ledger = filled(path, 2)
    last = json.loads(lines(path)[-1])
    assert (ledger.seq, ledger.head) == (last["seq"], last["mac"]) == (5, verify_ledger(path, KEY).head)


def test_a_plan_without_a_clip_norm_is_written_as_json_that_every_reader_knows(path: Path):
    plan = Plan(steps=1)
    Ledger(path, budget=Budget(epsilon=math.inf)).charge(charge(plan))
    assert b"Infinity" not in path.read_bytes()
    assert json.loads(lines(path)[-1])["plan"]["clip_norm"] == "inf"


@pytest.mark.parametrize("event", ["", "{}", '{"kind":"laplace"}'])
def test_a_charge_without_a_privacy_event_is_refused(path: Path, event: str):
    ledger = Ledger(path)
    with pytest.raises(PrivacyError, match="privacy event must be one that ownlet records"):
        ledger.charge(charge(event=event))


def test_an_unknown_unit_is_refused():
    with pytest.raises(ConfigError, match="unit must be window or user"):
        charge(unit="event")


# ------------------------------------------------------------ the budget


def test_spent_is_the_composition_of_all_charges_from_scratch(path: Path):
    ledger = Ledger(path)
    for _ in range(3):
        ledger.charge(charge())
    ledger.charge(charge(Plan(steps=1, clip_norm=1.0, noise_multiplier=5.0)))
    events = map(event_from_json, ledger.events("window"))
    spent = ledger.spent("window")
    assert spent.epsilon == pytest.approx(epsilon(compose_events(*events), 1e-6), abs=1e-6)
    assert spent.left == pytest.approx(8.0 - spent.epsilon)


def test_the_two_units_are_never_added(path: Path):
    ledger = Ledger(path, budget=Budget(epsilon=1.5))
    ledger.charge(charge())
    only_window = ledger.spent("window")
    ledger.charge(user_charge())
    assert ledger.spent("window") == only_window
    assert ledger.spent("user").epsilon == pytest.approx(epsilon(user_level_event(1.0, 4.0, 1), 1e-6), abs=1e-6)
    assert only_window.epsilon + ledger.spent("user").epsilon > 1.5


def test_a_charge_past_the_budget_is_refused_with_the_figures_and_writes_nothing(path: Path):
    ledger = Ledger(path, budget=Budget(epsilon=3.0), key=KEY)
    ledger.charge(user_charge())
    ledger.charge(user_charge())
    before, spent = path.read_bytes(), ledger.spent("user")
    assert ledger.would_exceed(user_charge(1.0))
    after = epsilon(compose_events(*[user_level_event(1.0, s, 1) for s in (4.0, 4.0, 1.0)]), 1e-6)
    with pytest.raises(BudgetExceededError) as refused:
        ledger.charge(user_charge(1.0))
    assert str(refused.value) == (
        f"epsilon per user must not exceed 3 at dp_delta=1e-06, got {after:.4f}: {spent.epsilon:.4f} is spent in 2 "
        f"charges, this one would add {after - spent.epsilon:.4f}, {3 - spent.epsilon:.4f} is left"
    )
    assert path.read_bytes() == before
    ledger.charge(charge())


def test_a_charge_without_noise_needs_a_budget_without_limit(path: Path):
    bare = charge(Plan(steps=1))
    with pytest.raises(BudgetExceededError, match=r"must not exceed 1000 .* got inf"):
        Ledger(path, budget=WIDE).charge(bare)
    ledger = Ledger(path, budget=Budget(epsilon=math.inf))
    assert not ledger.would_exceed(bare)
    ledger.charge(bare)
    assert (ledger.spent("window").epsilon, ledger.spent("window").left) == (math.inf, math.inf)
    with pytest.raises(BudgetExceededError):
        Ledger(path, budget=WIDE).charge(charge())


def test_an_absurd_charge_is_refused_at_once_rather_than_computed(path: Path):
    with pytest.raises(BudgetExceededError):
        Ledger(path).charge(charge(Plan(steps=1000, clip_norm=1.0, noise_multiplier=0.001)))


@pytest.mark.parametrize("seed", range(3))
def test_every_decision_is_that_of_composing_everything_by_pld_from_scratch(path: Path, seed: int):
    chance = random.Random(seed)
    budget = Budget(epsilon=chance.uniform(0.8, 2.0), dp_delta=10 ** chance.uniform(-7, -5))
    kinds = [
        charge(Plan(steps=chance.randint(1, 5), sample_rate=rate, clip_norm=1.0, noise_multiplier=sigma))
        for rate, sigma in [(0.2, chance.uniform(1.0, 3.0)), (1.0, chance.uniform(8.0, 20.0))]
    ]
    ledger, taken, refused = Ledger(path, budget=budget), [], 0
    while refused < 3:
        wanted = chance.choice(kinds)
        spent = epsilon(compose_events(*map(event_from_json, [*taken, wanted.event])), budget.dp_delta)
        assert ledger.would_exceed(wanted) == (spent > budget.epsilon)
        if spent > budget.epsilon:
            refused += 1
            with pytest.raises(BudgetExceededError):
                ledger.charge(wanted)
        else:
            taken.append(wanted.event)
            ledger.charge(wanted)
        if chance.random() < 0.3:
            ledger = Ledger(path, budget=budget)
    assert ledger.events("window") == taken
    verify_ledger(path)


def test_near_the_budget_the_limit_is_kept_in_the_ledger(path: Path):
    ledger = Ledger(path, budget=Budget(epsilon=2.0))
    while not ledger.would_exceed(charge()):
        ledger.charge(charge())
    limits = [
        json.loads(line)["limit"] for line in lines(path) if b'"limit":{"accountant"' in line and b"intent" in line
    ]
    assert len(limits) == 1  # found once, not at each of the last charges
    charges = ledger.spent("window").charges
    assert charges * PLAN.steps <= limits[0]["count"] < (charges + 1) * PLAN.steps
    assert Ledger(path).would_exceed(charge())


def test_a_limit_falls_when_other_charges_come_between(path: Path):
    ledger = Ledger(path, budget=Budget(epsilon=2.0))
    while not (refused := ledger.would_exceed(charge())) and b'"limit":{' not in path.read_bytes():
        ledger.charge(charge())
    assert not refused
    other = charge(Plan(steps=1, clip_norm=1.0, noise_multiplier=30.0))
    ledger.charge(other)
    events = map(event_from_json, [*ledger.events("window"), charge().event])
    assert ledger.would_exceed(charge()) == (epsilon(compose_events(*events), 1e-6) > 2.0)


def test_a_changed_budget_is_a_new_entry_that_an_auditor_sees(path: Path):
    Ledger(path, budget=Budget(epsilon=2.0)).charge(charge())
    ledger = Ledger(path, budget=Budget(epsilon=4.0))
    Ledger(path, budget=Budget(epsilon=4.0))
    Ledger(path)
    budgets = [entry["budget"]["epsilon"] for entry in ledger.entries() if entry["state"] == "budget"]
    assert budgets == [2.0, 4.0]
    assert Ledger(path).budget == verify_ledger(path).budget == Budget(epsilon=4.0)


def test_a_lowered_budget_stops_charges_but_verifies(path: Path):
    for _ in range(20):
        Ledger(path).charge(charge())
    ledger = Ledger(path, budget=Budget(epsilon=0.1))
    with pytest.raises(BudgetExceededError, match=r"0\.0000 is left"):
        ledger.charge(charge())
    assert verify_ledger(path).spent["window"].left == 0.0


def test_a_process_whose_budget_was_changed_by_another_does_not_go_on_with_either(path: Path):
    ledger = Ledger(path, budget=Budget(epsilon=2.0))
    Ledger(path, budget=Budget(epsilon=4.0))
    with pytest.raises(PrivacyError, match=r"budget must be .* as when the ledger was opened"):
        ledger.charge(charge())


# ------------------------------------------------------------ intents and their commits


def test_an_intent_without_commit_stays_charged(path: Path):
    ledger = Ledger(path)
    first, _ = ledger.charge(charge()), ledger.charge(charge())
    before = ledger.spent("window")
    ledger.commit(first, SHA)
    after = ledger.spent("window")
    assert (before.uncommitted, after.uncommitted) == (2, 1)
    assert (before.epsilon, before.charges) == (after.epsilon, after.charges)


def test_a_charge_is_committed_once_also_by_a_later_process(path: Path):
    seq = Ledger(path).charge(charge())
    ledger = Ledger(path)
    assert ledger.is_open(seq)
    ledger.commit(seq, SHA)
    assert not ledger.is_open(seq)
    assert json.loads(lines(path)[-1])["update"] == SHA
    for wrong in (seq, seq + 1, 0):
        with pytest.raises(PrivacyError, match="seq must be of an open charge"):
            ledger.commit(wrong, SHA)


def test_an_intent_left_open_long_ago_cannot_be_committed_any_more_and_stays_charged(path: Path):
    ledger = Ledger(path, budget=WIDE)
    charges = [ledger.charge(charge()) for _ in range(OPEN_KEPT + 1)]
    with pytest.raises(PrivacyError, match="seq must be of an open charge"):
        ledger.commit(charges[0], SHA)
    ledger.commit(charges[1], SHA)
    report = verify_ledger(path)
    assert (report.charges, report.uncommitted) == (OPEN_KEPT + 1, OPEN_KEPT)
    assert Ledger(path).spent("window") == report.spent["window"]


def test_events_can_be_asked_for_one_base_and_adapter(path: Path):
    ledger = Ledger(path)
    ledger.charge(charge())
    ledger.charge(charge(adapter_version=2))
    ledger.charge(charge(adapter_version=2, base_hash="c" * 64))
    ledger.charge(user_charge())
    assert len(ledger.events("window")) == 3
    assert len(ledger.events("window", adapter_version=2)) == 2
    assert ledger.events("window", adapter_version=2, base_hash="b" * 64) == [charge().event]
    assert ledger.events("user") == [user_charge().event]


def test_participations_count_charges_later_than_a_time_and_those_of_a_clock_that_was_ahead(path: Path):
    now = [0.0]
    ledger = Ledger(path, clock=lambda: now[0])
    for at in (100.0, 200.0, 90_000.0, 300.0):  # the clock was a day ahead, and then set back
        now[0] = at
        ledger.charge(charge(Plan(clip_norm=1.0, noise_multiplier=50.0)))
    assert [ledger.participations_since(at) for at in (0, 100, 250, 1000, 90_000)] == [4, 3, 2, 1, 0]
    assert Ledger(path).participations_since(250) == 2


# ------------------------------------------------------------ missing, damaged, forged


def test_a_missing_ledger_is_exhausted_not_fresh(path: Path):
    with pytest.raises(PrivacyError, match="missing ledger means that the budget is exhausted"):
        Ledger(path, may_start=False)
    assert not path.exists()
    path.write_bytes(b"")
    with pytest.raises(PrivacyError, match="budget is exhausted"):
        Ledger(path, may_start=False)


@pytest.mark.parametrize("harm", ["removed", "replaced", "shortened", "rewritten"])
def test_a_ledger_that_changes_under_an_open_one_is_noticed(path: Path, harm: str):
    ledger = filled(path, 3)
    old = lines(path)
    match harm:
        case "removed":
            path.unlink()
        case "replaced":
            copy = path.with_name("copy")
            copy.write_bytes(path.read_bytes())
            copy.replace(path)
        case "shortened":
            os.truncate(path, len(b"".join(old[:-2])))
        case "rewritten":
            path.write_bytes(b"".join([*old[:-1], old[-1].replace(SHA.encode(), b"0" * 64)]))
    with pytest.raises(PrivacyError, match=r"exhausted|another file|only grow"):
        ledger.charge(charge())


def test_another_key_does_not_verify(path: Path):
    filled(path, 1)
    for key in (b"", bytes(32)):
        with pytest.raises(PrivacyError, match=r"line 1 of .* written with another key"):
            Ledger(path, key=key)
        with pytest.raises(PrivacyError, match="line 1 "):
            verify_ledger(path, key)


def test_a_ledger_can_be_shown_without_its_key(path: Path):
    filled(path, 2)
    report, entries = read_ledger(path)
    assert (report, len(entries)) == (verify_ledger(path, KEY), 5)


def test_every_altered_byte_is_found(path: Path):
    filled(path, 1)
    whole = path.read_bytes()
    for at in range(len(whole) - 1):  # without the last newline the line is torn, and another test's matter
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(PrivacyError, match=r"got line \d"):
            verify_ledger(path, KEY)


@pytest.mark.parametrize(
    ("harm", "number"),
    [
        (lambda old: old[:2] + old[3:], 3),
        (lambda old: old[1:], 1),
        (lambda old: [*old[:2], old[1], *old[2:]], 3),
        (lambda old: [old[0], old[2], old[1], *old[3:]], 2),
        (lambda old: [*old, b"garbage\n"], 6),
        (lambda old: [*old, b"\n"], 6),
        (lambda old: [*old, bytes(100) + b"\n"], 6),
        (lambda old: [*old[:3], b"[" * 100_000 + b"\n", *old[3:]], 4),
        (lambda old: [*old[:3], old[3].replace(b":", b": ", 1), *old[4:]], 4),
    ],
    ids=["removed", "first-removed", "doubled", "swapped", "garbage", "empty", "zeros", "nested", "spaced"],
)
def test_lines_that_do_not_verify_are_named(path: Path, harm: Callable[[list[bytes]], list[bytes]], number: int):
    filled(path, 2)
    path.write_bytes(b"".join(harm(lines(path))))
    for look in (lambda: verify_ledger(path, KEY), lambda: Ledger(path, key=KEY), lambda: read_ledger(path)):
        with pytest.raises(PrivacyError, match=f"ledger must verify, got line {number} of"):
            look()


def test_a_writer_that_ignored_the_budget_is_found(path: Path):
    Ledger(path, budget=WIDE, key=b"").charge(charge(Plan(steps=9, clip_norm=1.0, noise_multiplier=1.0)))
    path.write_bytes(forged(path, lambda entry: entry["budget"].update(epsilon=2.0) if "budget" in entry else None))
    with pytest.raises(PrivacyError, match=r"line 2 .* epsilon per window is .* past the budget of 2"):
        verify_ledger(path)


def forged(path: Path, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Change entries and make the chain anew, which anyone can where there is no key."""
    whole, before = b"", ""
    for line in lines(path):
        entry = json.loads(line)
        change(entry)
        del entry["mac"]
        entry["prev"] = before
        body = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
        before = entry["mac"] = hmac.new(b"", body, hashlib.sha256).hexdigest()
        whole += json.dumps(entry, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    return whole


# ------------------------------------------------------------ checkpoints


def test_opening_at_a_checkpoint_is_the_same_as_reading_everything(path: Path):
    warm = filled(path, 3 * CHECKPOINT_EVERY)
    left_open = warm.charge(charge())
    warm.charge(user_charge())
    cold = Ledger(path, key=KEY)
    assert b'"state":"checkpoint"' in path.read_bytes()
    assert (cold.seq, cold.head, cold.budget) == (warm.seq, warm.head, warm.budget)
    assert cold.spent("window") == warm.spent("window") == verify_ledger(path, KEY).spent["window"]
    assert cold.spent("user") == warm.spent("user")
    assert cold.is_open(left_open)
    assert cold.participations_since(0) == warm.participations_since(0) == 64  # where it stops counting
    cold.commit(left_open, SHA)
    assert not warm.is_open(left_open)  # it has read what the other one appended
    verify_ledger(path, KEY)


def test_damage_before_the_last_checkpoint_is_for_verify_and_after_it_for_opening(path: Path):
    filled(path, CHECKPOINT_EVERY)
    whole = lines(path)
    last = max(number for number, line in enumerate(whole) if b'"state":"checkpoint"' in line)
    for number in (1, last, last + 1):
        harmed = [*whole[:number], whole[number].replace(b'"ownlet":"', b'"ownlet":"9'), *whole[number + 1 :]]
        path.write_bytes(b"".join(harmed))
        with pytest.raises(PrivacyError, match=f"line {number + 1} of"):
            verify_ledger(path, KEY)
        if number < last:
            Ledger(path, key=KEY)
        else:
            with pytest.raises(PrivacyError, match=f"line {number + 1} of"):
                Ledger(path, key=KEY)


def test_a_checkpoint_with_other_totals_is_found(path: Path):
    filled(path, CHECKPOINT_EVERY, key=b"")

    def lower(entry: dict[str, Any]) -> None:
        if entry["state"] == "checkpoint":
            entry["totals"]["units"]["window"]["totals"] = {}

    path.write_bytes(forged(path, lower))
    with pytest.raises(PrivacyError, match=r"line 33 .* totals of a checkpoint must agree"):
        verify_ledger(path)


# ------------------------------------------------------------ torn lines and full disks


def test_a_line_torn_at_any_byte_never_counted_and_the_ledger_goes_on(path: Path):
    ledger = filled(path, 1)
    whole = path.read_bytes()
    ledger.charge(charge())
    longer = path.read_bytes()
    for length in range(len(whole), len(longer)):
        path.write_bytes(longer[:length])
        assert verify_ledger(path, KEY).torn_bytes == length - len(whole)
        again = Ledger(path, key=KEY, may_start=False)
        assert again.seq == 3
    again.charge(charge())
    assert verify_ledger(path, KEY).charges == 2


@pytest.mark.parametrize("zeros", [1, 4096, 100_000])
def test_zeros_after_a_power_loss_are_cut_off(path: Path, zeros: int):
    filled(path, 20)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(zeros))
    ledger = Ledger(path, key=KEY, may_start=False)
    ledger.charge(charge())
    assert path.read_bytes().startswith(whole)
    assert verify_ledger(path, KEY).charges == 21


def test_a_first_line_torn_starts_anew_only_where_a_ledger_may_start(path: Path):
    path.write_bytes(b'{"at":')
    with pytest.raises(PrivacyError, match="exhausted"):
        Ledger(path, may_start=False)
    Ledger(path).charge(charge())
    assert verify_ledger(path).charges == 1


@contextlib.contextmanager
def files_no_longer_than(length: int) -> Iterator[None]:
    """Make every write beyond ``length`` fail, as a full disk does, in the middle if it must."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", ["charge", "commit", "charge with a checkpoint"])
def test_a_disk_that_is_full_at_any_byte_leaves_the_ledger_as_it_was(path: Path, write: str):
    ledger = filled(path, 16 if write == "charge with a checkpoint" else 1)
    seq = ledger.charge(charge()) if write == "commit" else 0
    before = path.read_bytes()

    def work() -> None:
        ledger.commit(seq, SHA) if write == "commit" else ledger.charge(charge())

    for room in range(0, 300, 7):
        with files_no_longer_than(len(before) + room), pytest.raises(PrivacyError, match="ledger must be on disk"):
            work()
        assert path.read_bytes() == before
    work()
    assert verify_ledger(path, KEY).head == ledger.head
    assert (b'"state":"checkpoint"' in path.read_bytes()) == (write == "charge with a checkpoint")


def test_a_ledger_that_cannot_be_started_is_not_half_started(path: Path):
    with files_no_longer_than(100), pytest.raises(PrivacyError, match="ledger must be on disk"):
        Ledger(path)
    assert path.read_bytes() == b""
    Ledger(path)


def test_a_small_disk_that_fills_loses_no_charge(tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        path, filler = small / "ledger.jsonl", small / "filler"
        filler.write_bytes(bytes(16 * 1024))
        ledger, returned = Ledger(path, budget=WIDE, key=KEY), []
        with pytest.raises(PrivacyError, match="No space left on device"):
            returned.extend(ledger.charge(charge()) for _ in range(1000))
        assert [entry["seq"] for entry in ledger.entries() if entry["state"] == "intent"] == returned
        filler.unlink()
        returned.append(ledger.charge(charge()))
        assert verify_ledger(path, KEY).charges == len(returned) > 50
    finally:
        subprocess.run(["umount", small], check=True)


# ------------------------------------------------------------ several at the same time


def test_threads_and_several_ledgers_of_one_file_each_get_their_own_entries(path: Path):
    ledgers, taken = [Ledger(path, budget=WIDE, key=KEY) for _ in range(2)], []

    def work(ledger: Ledger) -> None:
        for _ in range(10):
            seq = ledger.charge(charge())
            ledger.commit(seq, SHA)
            taken.append(seq)

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report = verify_ledger(path, KEY)
    assert len(set(taken)) == report.charges == 40
    assert report.uncommitted == 0


@pytest.mark.parametrize(("kills", "races"), [(40, 2), pytest.param(200, 20, marks=pytest.mark.slow)])
def test_no_charge_is_lost_by_kill_9_and_the_last_of_a_budget_is_given_once(kills: int, races: int):
    trials = ["--kills", str(kills), "--races", str(races)]
    counts = last_json(run_command([sys.executable, "-m", "ownlet.simulations.benchmarks.ledger_faults", *trials]))
    assert (counts["kill"]["trials"], counts["kill"]["losses"]) == (kills, 0)
    assert counts["kill"]["returned"] > kills / 2
    assert counts["race"] == {"trials": races, "losses": 0}
