"""What the component audit finds: how near its bound is to the truth, and whether it catches what is broken.

The correct trainer of the zoo is audited many times over, each of the thirteen broken ones once, and every real engine
once, the shipped ``.pte`` from its bundle folder alone and the server at user level. All claim q = 0.1, sigma = 1.1,
T = 100, which is epsilon 5.91 at delta = 1e-5.

``python -m ownlet.simulations.benchmarks.audit`` prints the tables and writes ``bench/audit.json``. It ends with an
error where a lower bound is above its claim or below 0.85 of it for the correct ones, or a broken one passes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ownlet.device.opacus_engine import OpacusEngine
from ownlet.export.bundle import write_bundle
from ownlet.shared.adapter import initial_adapter
from ownlet.shared.config import AdapterConfig, FederationConfig, ModelConfig, Plan, WindowConfig
from ownlet.shared.interactions import Item
from ownlet.shared.lora import attach_adapter
from ownlet.shared.model import SASRec
from ownlet.shared.store import write_atomic
from ownlet.simulations.audit.bundle import audit_bundle
from ownlet.simulations.audit.component import QUICK, THOROUGH, Trials, audit_engine
from ownlet.simulations.audit.result import AuditResult
from ownlet.simulations.audit.user_level import audit_user_level
from ownlet.simulations.audit.zoo import ZOO, audit_zoo
from ownlet.simulations.cohort import CohortEngine

__all__ = ["SHARE", "engine_audits", "failures", "main", "plain"]

SHARE = 0.85
"""The lower bound of what is correct must be at least this share of the claim."""

_PLAN = Plan(steps=100, sample_rate=0.1, expected_batch=6.0, clip_norm=2.0, noise_multiplier=1.1)
_WINDOWS = WindowConfig(window_length=20)
_NUM_ITEMS = 500


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="audits of the correct trainer")
    parser.add_argument("--thorough", action="store_true", help="several times as many releases in each audit")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console = Console()
    trials = THOROUGH if options.thorough else QUICK
    repeats = track(range(options.repeats), description="the correct trainer", console=console)
    correct = [audit_zoo(["correct"], _PLAN, trials=trials)["correct"] for _ in repeats]
    broken = track(list(ZOO), description="the broken zoo", console=console)
    zoo = {name: audit_zoo([name], _PLAN, trials=trials)[name] for name in broken}
    with tempfile.TemporaryDirectory() as folder:
        audits = engine_audits(Path(folder), trials)
        engines = {name: audits[name]() for name in track(list(audits), description="engines", console=console)}
    for table in _tables(correct, zoo, engines):
        console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "audit.json"
    write_atomic(path, (json.dumps(plain(correct, zoo, engines), indent=1) + "\n").encode())
    console.print(str(path), highlight=False)
    if wrong := failures(correct, zoo, engines):
        sys.exit("\n".join(wrong))


def engine_audits(folder: Path, trials: Trials) -> dict[str, Callable[[], AuditResult]]:
    """Return the audits of all engines over one base of the usual shape; ``folder`` takes the bundle."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        content = torch.cat([torch.zeros(1, 16), torch.randn(_NUM_ITEMS, 16)])
        model = SASRec(ModelConfig(), content).eval()
    spec = attach_adapter(model, AdapterConfig())
    vector = initial_adapter(spec, seed=1)
    bundle = folder / "bundle"
    items = [Item(number=n, id=f"item-{n}", title=f"Title {n}") for n in range(1, _NUM_ITEMS + 1)]
    write_bundle(bundle, model, spec, vector, version=1, items=items, windows=_WINDOWS)
    cohort = CohortEngine(model, spec)
    sizes: Mapping[str, Any] = {"num_items": _NUM_ITEMS, "window_length": _WINDOWS.window_length, "trials": trials}
    federation = FederationConfig(
        rounds=_PLAN.steps,
        cohort_rate=_PLAN.sample_rate,
        clip_norm=0.3,
        noise_multiplier=_PLAN.noise_multiplier,
        windows=_WINDOWS,
    )
    return {
        "opacus": lambda: audit_engine(OpacusEngine(model, spec), _PLAN, name="opacus", **sizes),
        "executorch": lambda: audit_bundle(bundle, _PLAN, trials=trials),
        "cohort": lambda: audit_engine(cohort, _PLAN, name="cohort", **sizes),
        "user-level server": lambda: audit_user_level(cohort, federation, num_items=_NUM_ITEMS, trials=trials),
    }


def plain(
    correct: Sequence[AuditResult], zoo: Mapping[str, AuditResult], engines: Mapping[str, AuditResult]
) -> dict[str, object]:
    """Return what ``audit.json`` holds."""
    return {
        "correct": {
            "epsilon_theory": correct[0].claim.epsilon,
            "epsilon_lower": [result.epsilon_lower for result in correct],
        },
        "zoo": {name: result.flagged for name, result in zoo.items()},
        "engines": {
            name: {"epsilon_theory": result.claim.epsilon, "epsilon_lower": result.epsilon_lower}
            for name, result in engines.items()
        },
    }


def failures(
    correct: Sequence[AuditResult], zoo: Mapping[str, AuditResult], engines: Mapping[str, AuditResult]
) -> list[str]:
    """Return what must not be: bounds above the claim or far below it, correct ones flagged, broken ones passed."""
    found = []
    right = [*((f"correct, audit {n}", result) for n, result in enumerate(correct, 1)), *engines.items()]
    for name, result in right:
        failed = ", ".join(check.name for check in result.checks if not check.passed)
        if result.flagged:
            found.append(f"{name} must pass, got epsilon_lower={result.epsilon_lower:.3f}, failed checks: {failed}")
        elif result.epsilon_lower < SHARE * result.claim.epsilon:
            found.append(f"{name} must reach {SHARE} of its claim, got epsilon_lower={result.epsilon_lower:.3f}")
    return found + [f"{name} must be flagged" for name, result in zoo.items() if not result.flagged]


def _tables(
    correct: Sequence[AuditResult], zoo: Mapping[str, AuditResult], engines: Mapping[str, AuditResult]
) -> list[Table]:
    claim = correct[0].claim
    lower = sorted(result.epsilon_lower for result in correct)
    right = Table(title=f"What is right, claimed ε {claim.epsilon:.2f}", title_justify="left")
    for column in ("subject", "ε lower bound", "flagged"):
        right.add_column(column)
    flagged = sum(result.flagged for result in correct)
    spread = f"{lower[0]:.2f} to {lower[-1]:.2f}, median {lower[len(lower) // 2]:.2f}"
    right.add_row(f"correct trainer, {len(correct)} audits", spread, f"{flagged} times")
    for name, result in engines.items():
        right.add_row(name, f"{result.epsilon_lower:.2f}", "yes" if result.flagged else "no")
    wrong = Table(title="The broken zoo", title_justify="left")
    for column in ("what is wrong", "ε lower bound", "flagged", "failed checks"):
        wrong.add_column(column)
    for name, result in zoo.items():
        bound = "∞" if math.isinf(result.epsilon_lower) else f"{result.epsilon_lower:.2f}"
        checks = ", ".join(check.name for check in result.checks if not check.passed)
        wrong.add_row(name, bound, "yes" if result.flagged else "NO", checks)
    return [right, wrong]


if __name__ == "__main__":
    main()
