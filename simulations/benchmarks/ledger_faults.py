"""The privacy ledger under kill -9 and under a race for the last of its budget; counts trials and losses.

Each trial forks a child that charges and commits in a loop and is killed at a random instant. A trial is lost if a
charge that had returned is missing afterwards, if the chain does not verify, or if the next charge does not work. In a
race several children charge at once where the budget holds exactly one more charge; a trial is lost unless exactly one
of them got it. Run it in a process of its own: ``python -m ownlet.simulations.benchmarks.ledger_faults --kills 200``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import select
import signal
import tempfile
import time
from pathlib import Path

from ownlet.device.budget import epsilon_of, totals_of
from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger, verify_ledger
from ownlet.shared.config import Plan
from ownlet.shared.errors import BudgetExceededError, PrivacyError
from ownlet.shared.privacy import event_to_json, window_level_event
from ownlet.simulations.benchmarks.processes import Say, end_child, start_child

__all__ = ["kill_trials", "race_trials"]

_KEY = bytes(range(32))
_PLAN = Plan(steps=2, sample_rate=0.1, clip_norm=1.0, noise_multiplier=2.0)
_DELTA = 1e-6
_TRIALS_PER_LEDGER = 20  # each trial reads the whole ledger, so one that grew for ever would take ever longer


def kill_trials(folder: Path, trials: int, seed: int = 0) -> dict[str, int]:
    """Kill a charging child ``trials`` times, 20 times over one and the same ledger.

    Args:
        folder: an empty one.
        trials: how many children.
        seed: of the instants.

    Returns:
        ``trials``, ``losses``, and how many charges and commits had returned before their child was killed.
    """
    chance, charge = random.Random(seed), _charge()
    returned = losses = 0
    for trial in range(trials):
        path = folder / f"{trial // _TRIALS_PER_LEDGER}-{LEDGER_FILE}"
        Ledger(path, budget=Budget(epsilon=1e9), key=_KEY)
        child, pipe = start_child(functools.partial(_charge_for_ever, path, charge))
        if chance.random() < 0.75:  # else it may be killed before it said anything
            select.select([pipe], [], [], 60.0)
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        told = end_child(child, pipe)
        returned += len(told)
        losses += not _survived(path, charge, told)
    return {"losses": losses, "returned": returned, "trials": trials}


def race_trials(folder: Path, trials: int, children: int = 3) -> dict[str, int]:
    """Let several children charge at once where one more charge fits, ``trials`` times over one ledger.

    Args:
        folder: an empty one.
        trials: how many races, each for one more charge.
        children: in each race.
    """
    path, charge = folder / LEDGER_FILE, _charge()
    losses = 0
    for held in range(1, trials + 1):
        cost = totals_of(charge.event)
        budget = Budget(epsilon=epsilon_of({name: held * count for name, count in cost.items()}, _DELTA))
        ledger = Ledger(path, budget=budget, key=_KEY)
        ledger.would_exceed(charge)  # imports the accountant here rather than in each child
        once = functools.partial(_charge_once, path, charge, budget)
        racers = [start_child(once) for _ in range(children)]
        won = sum(end_child(child, pipe) == ["charged"] for child, pipe in racers)
        losses += won != 1 or verify_ledger(path, _KEY).charges != held
    return {"losses": losses, "trials": trials}


def _survived(path: Path, charge: Charge, told: list[str]) -> bool:
    """Look whether all that was told is in the ledger, and whether it goes on."""
    try:
        entries = Ledger(path, key=_KEY, may_start=False).entries()
        charged = {entry["seq"] for entry in entries if entry["state"] == "intent"}
        committed = {entry["of"] for entry in entries if entry["state"] == "commit"}
        for line in told:
            word, _, seq = line.partition(" ")
            if word == "unexpected:" or int(seq) not in {"charged": charged, "committed": committed}[word]:
                return False
        after = Ledger(path, key=_KEY, may_start=False).charge(charge)
        if verify_ledger(path, _KEY).entries != after:
            return False
    except PrivacyError:
        return False
    return True


def _charge_for_ever(path: Path, charge: Charge, say: Say) -> None:
    ledger = Ledger(path, key=_KEY, may_start=False)
    while True:
        seq = ledger.charge(charge)
        say(f"charged {seq}")
        ledger.commit(seq, "0" * 64)
        say(f"committed {seq}")


def _charge_once(path: Path, charge: Charge, budget: Budget, say: Say) -> None:
    try:
        Ledger(path, budget=budget, key=_KEY, may_start=False).charge(charge)
    except BudgetExceededError:
        say("refused")
    else:
        say("charged")


def _charge() -> Charge:
    event = event_to_json(window_level_event(_PLAN, 1))
    return Charge(unit="window", event=event, base_hash="0" * 64, adapter_version=1, plan=_PLAN)


def main() -> None:
    """Run the trials that were asked for and print their counts as JSON."""
    parser = argparse.ArgumentParser(description="The privacy ledger under kill -9 and races.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--races", type=int, default=20)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as killed, tempfile.TemporaryDirectory() as raced:
        print(
            json.dumps(
                {"kill": kill_trials(Path(killed), wanted.kills), "race": race_trials(Path(raced), wanted.races)}
            )
        )


if __name__ == "__main__":
    main()
