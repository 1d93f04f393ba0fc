"""Devices with a bundle as nodes of a real server: ``Personalizer`` answers, and its own ledger decides.

Minutes: a process of Flower per message. ``make test-deployed``.
"""

from pathlib import Path
from typing import Any

import pytest

from ownlet.device import Personalizer
from ownlet.export.bundle import write_bundle
from ownlet.server.certificates import NODES_FOLDER, node_name
from ownlet.shared.adapter import load_adapter
from ownlet.simulations.replay import read_rounds
from tests.conftest import WINDOWS, make_tiny

pytestmark = pytest.mark.slow

NUM_DEVICES = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny, folder = make_tiny(), tmp_path_factory.mktemp("devices") / "bundle"
    write_bundle(folder, tiny.model, tiny.spec, tiny.vector, version=1, items=tiny.items, windows=WINDOWS)
    return folder


def use(bundle: Path, state: Path, number: int) -> None:
    """Let somebody use the app for a while."""
    with Personalizer.open(bundle, state) as personalizer:
        for event in range(30):
            personalizer.record(f"item-{1 + (number + event) % 7}", timestamp=float(event))


def test_devices_answer_rounds_adopt_their_adapters_and_stop_where_their_own_budget_ends(
    place: Any, bundle: Path
) -> None:
    budgets = [8.0, 8.0, 1.2]  # the last has room for one round of noise multiplier 4, not for two
    for number, budget in enumerate(budgets):
        use(bundle, place.root / f"phone-{number}", number)
        place.start(
            f"device-{number}", "join", "--server", f"localhost:{place.port}", "--certs", place.certs,
            "--key", place.certs / NODES_FOLDER / node_name(number), "--state", place.root / f"state-{number}",
            "--bundle", bundle, "--device-state", place.root / f"phone-{number}", "--budget", budget,
            "--partition", number, "--partitions", NUM_DEVICES,
        )  # fmt: skip
    server = place.start(
        "serve", "serve", "--bundle", bundle, "--num-users", NUM_DEVICES, "--nodes", NUM_DEVICES, "--min-nodes",
        NUM_DEVICES, "--cohort-rate", 1, "--noise-multiplier", 4, "--rounds", 2, "--window-length",
        WINDOWS.window_length, "--certs", place.certs, "--state", place.run.root, "--port", place.port,
    )  # fmt: skip
    assert server.wait() == 0, server.text

    rounds = read_rounds(place.run.rounds)
    assert [(record.num_admitted, record.rejected) for record in rounds] == [(NUM_DEVICES, ())] * 2
    spec, vector, version = load_adapter(place.run.adapter)
    assert (spec, version) == (make_tiny().spec, 3)
    assert (vector != make_tiny().vector).any()
    for number, charges in enumerate([2, 2, 1]):
        with Personalizer.open(bundle, place.root / f"phone-{number}") as personalizer:
            status = personalizer.status()
        assert (status.events, status.privacy["user"].charges, status.privacy["user"].uncommitted) == (30, charges, 0)
        assert status.shared_version == 2  # what the second round sent, the outcome of the first
