import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ownlet.device.ledger import LEDGER_FILE, Charge, Ledger
from ownlet.shared.adapter import initial_adapter, save_adapter
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.shared.secure_config import SecureConfig
from ownlet.simulations.audit.promise import promises_of
from ownlet.simulations.audit.record import record_checks
from ownlet.simulations.audit.result import Check
from ownlet.simulations.audit.subject import open_subject

from .conftest import APP_KEY, NONE, NUM_USERS, SPEC, USER, WINDOW, WINDOW_PLAN, MakeRun


def checks_of(path: Path, key: bytes | None = None) -> dict[str, Check]:
    subject = open_subject(path, key)
    return {check.name: check for check in record_checks(subject, promises_of(subject))}


def failed(path: Path, key: bytes | None = None) -> set[str]:
    return {name for name, check in checks_of(path, key).items() if not check.passed}


@pytest.mark.parametrize("terms", [USER, replace(USER, turns=2), WINDOW, NONE])
def test_a_run_as_it_was_passes_every_check(make_run: MakeRun, terms: object) -> None:
    folder = make_run(terms)
    assert failed(folder) == set()
    assert {"rounds-recorded", "server-charged", "server-ran-the-terms"} <= set(checks_of(folder))


def test_noise_that_was_realised_counts_and_not_the_planned_one(make_run: MakeRun) -> None:
    terms = replace(USER, secure=SecureConfig(enabled=True))
    folder = make_run(terms, realised=[2.5, 2.5, 2.0, 2.5, 3.0, 2.5])
    assert failed(folder) == set()
    assert promises_of(open_subject(folder))[0].epsilon < promises_of(open_subject(make_run(USER, name="b")))[0].epsilon
    without = make_run(USER, name="c", realised=[2.5] * 6)  # nobody but nodes could have added more than the terms say
    assert failed(without) == {"epsilon-recomputed", "rounds-stated", "server-charged"}


def change_json(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_summary_that_states_less_than_was_spent_is_found(make_run: MakeRun) -> None:
    folder = make_run(USER)
    stated = json.loads((folder / "summary.json").read_text())["privacy"]["federated"]["epsilon"]
    change_json(folder / "summary.json", str(stated), str(stated / 2))
    assert failed(folder) == {"epsilon-recomputed"}


def test_settings_that_name_more_noise_than_the_rounds_had_are_found(make_run: MakeRun) -> None:
    folder = make_run(USER)
    change_json(folder / "config.json", '"noise_multiplier": 2.0', '"noise_multiplier": 3.0')
    assert failed(folder) == {"epsilon-recomputed", "rounds-stated", "server-ran-the-terms", "server-charged"}


def test_a_run_without_privacy_that_states_an_epsilon_is_found(make_run: MakeRun) -> None:
    folder = make_run(USER)
    change_json(folder / "config.json", '"unit": "user"', '"unit": "none"')
    assert "epsilon-recomputed" in failed(folder)


def test_an_epsilon_past_its_target_is_found(make_run: MakeRun) -> None:
    assert failed(make_run(replace(USER, target_epsilon=1.0))) == {"user-within-limit"}


def test_rounds_that_vanished_from_the_metrics_are_found(make_run: MakeRun) -> None:
    folder = make_run(USER)
    other = make_run(replace(USER, rounds=4), name="other")
    (folder / "metrics.parquet").write_bytes((other / "metrics.parquet").read_bytes())
    assert {"rounds-recorded", "server-rounds", "epsilon-recomputed"} <= failed(folder)


def test_an_adapter_that_the_charged_rounds_did_not_make_is_found(make_run: MakeRun) -> None:
    folder = make_run(USER)
    save_adapter(folder / "adapter.safetensors", SPEC, initial_adapter(SPEC, 1), version=6)
    assert failed(folder) == {"adapter-is-the-charged-one"}


def test_cohorts_of_a_fixed_size_are_found(make_run: MakeRun) -> None:
    terms = replace(USER, rounds=30)
    assert failed(make_run(terms, sizes=[int(0.3 * NUM_USERS)] * 30)) == {"cohort-spread"}


def test_cohorts_of_another_rate_are_found(make_run: MakeRun) -> None:
    sizes = np.random.default_rng(0).binomial(NUM_USERS, 0.45, size=6).tolist()
    assert "cohort-rate" in failed(make_run(USER, sizes=sizes))


def test_more_turns_than_the_terms_give_are_found(make_run: MakeRun) -> None:
    assert "turns" in failed(make_run(WINDOW, sizes=[5, 5, 5, 5]))


def test_a_ledger_as_it_was_passes(ledger_file: Path) -> None:
    checks = checks_of(ledger_file, APP_KEY)
    assert all(check.passed for check in checks.values())
    assert set(checks) == {"chain", "whole-lines", "charges-match-plans", "window-within-limit"}


def test_an_altered_line_breaks_the_chain(ledger_file: Path) -> None:
    ledger_file.write_bytes(ledger_file.read_bytes().replace(b'"adapter":1', b'"adapter":2', 1))
    assert failed(ledger_file, APP_KEY) == {"chain"}


def test_a_file_cut_off_within_a_line_does_not_pass(ledger_file: Path) -> None:
    ledger_file.write_bytes(ledger_file.read_bytes()[:-20])
    assert failed(ledger_file, APP_KEY) == {"whole-lines"}


def test_a_charge_below_its_plan_is_found_although_the_chain_verifies(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_FILE)
    for plan in (WINDOW_PLAN, replace(WINDOW_PLAN, steps=1)):
        event = event_to_json(window_level_event(plan, 1))
        ledger.charge(Charge(unit="window", event=event, base_hash="b" * 64, adapter_version=1, plan=WINDOW_PLAN))
    checks = checks_of(tmp_path)
    assert failed(tmp_path) == {"charges-match-plans"}
    assert checks["charges-match-plans"].measured == 1


def test_a_bundle_says_what_was_compared(tiny_bundle: Path) -> None:
    checks = checks_of(tiny_bundle)
    assert set(checks) == {"files", "adapter-version"}
    assert all(check.passed for check in checks.values())
