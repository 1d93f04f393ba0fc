"""Run folders as `ownlet simulate` leaves them, written without training, and ledgers as devices leave them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ownlet.device.ledger import LEDGER_FILE, Budget, Charge, Ledger
from ownlet.server.checkpoint import RoundResult, ServerState, save_checkpoint, spent_event
from ownlet.server.rounds import draw_cohort
from ownlet.shared.adapter import AdapterSpec, LayerShape, initial_adapter, save_adapter
from ownlet.shared.config import FederationConfig, Plan
from ownlet.shared.privacy import ACCOUNTANT, epsilon, event_to_json, window_level_event
from ownlet.shared.seal import Keys
from ownlet.simulations.federated_run import FederatedRunConfig
from ownlet.simulations.results import RunFolder

NUM_USERS = 200
SPEC = AdapterSpec(
    layers=(LayerShape(name="wq", in_features=3, out_features=2),), rank=2, alpha=4.0, base_hash="b" * 64
)
USER = FederationConfig(rounds=6, cohort_rate=0.3, noise_multiplier=2.0, seed=3, target_epsilon=8.0)
WINDOW_PLAN = Plan(steps=2, sample_rate=0.2, clip_norm=0.5, noise_multiplier=1.5)
WINDOW = FederationConfig(rounds=4, turns=2, unit="window", seed=3, plan=WINDOW_PLAN)
NONE = replace(USER, unit="none", noise_multiplier=0.0, target_epsilon=float("inf"))
METRIC = {"value": 0.1, "low": 0.1, "high": 0.1}
APP_KEY = bytes(range(32))

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a finished run under these terms and returns its folder."""

    def make(
        terms: FederationConfig,
        *,
        name: str = "run",
        sizes: list[int] | None = None,
        realised: Sequence[float] = (),
    ) -> Path:
        folder = RunFolder.create(
            tmp_path, "simulate", FederatedRunConfig(base=Path("base.pt"), federation=terms), terms.seed, name=name
        )
        state = ServerState.start(terms, SPEC, initial_adapter(SPEC, 0), NUM_USERS)
        for number in range(1, terms.rounds + 1):
            cohort = draw_cohort(terms, NUM_USERS, number, state.participations)
            if sizes is not None:
                cohort = np.arange(sizes[number - 1])
            state = state.asked(cohort, number)
            spent = epsilon(
                spent_event(terms, number, state.participations, realised=realised[:number]), terms.dp_delta
            )
            result = record(number, len(cohort), spent)
            if realised:
                result = replace(result, noise_multiplier=realised[number - 1])
            state = replace(state, version=number, results=(*state.results, result))
        save_checkpoint(folder.path / "federation.ckpt", terms, SPEC, state)
        save_adapter(folder.path / "adapter.safetensors", SPEC, state.vector, version=state.version)
        folder.write_metrics([vars(result) | {"rejected": ""} for result in state.results])
        summary: dict[str, object] = {
            "command": "simulate",
            "seconds": 1.0,
            "data": {"name": "made", "users": NUM_USERS, "items": 10, "interactions": 1000},
        }
        if terms.unit != "none":
            stated = {"epsilon": spent, "dp_delta": terms.dp_delta, "unit": terms.unit}
            summary["privacy"] = {"federated": {**stated, "rounds": terms.rounds, "accountant": ACCOUNTANT}}
        folder.write_summary(summary)
        return folder.path

    return make


def record(number: int, asked: int, spent: float) -> RoundResult:
    """Return a round in which everybody answered."""
    return RoundResult(
        round=number,
        version=number,
        void=False,
        num_asked=asked,
        num_nodes=1,
        num_admitted=1,
        rejected=(),
        num_missing=0,
        clip_norm=0.3,
        epsilon=spent,
        update_norm=0.1,
        seconds=0.1,
    )


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    """A ledger under the app's key: a budget of 4, two window-level charges, one of them committed."""
    folder = tmp_path / "state"
    folder.mkdir()
    ledger = Ledger(
        folder / LEDGER_FILE,
        budget=Budget(epsilon=4.0, dp_delta=1e-5),
        key=Keys.of(APP_KEY).ledger,
        clock=lambda: 1_700_000_000.0,
    )
    event = event_to_json(window_level_event(WINDOW_PLAN, 1))
    charge = Charge(unit="window", event=event, base_hash="b" * 64, adapter_version=1, plan=WINDOW_PLAN, round=1)
    ledger.commit(ledger.charge(charge), "d" * 64)
    ledger.charge(replace(charge, round=2))
    return folder / LEDGER_FILE
