"""Secure aggregation over real processes: the server sees a sum, users' ledgers its rounds, the registry the outcome.

Minutes: five messages per node and round, and a process for each. ``make test-deployed``.
"""

import urllib.request
from typing import Any

import pytest

from ownlet.device.ledger import Ledger
from ownlet.server.certificates import NODES_FOLDER
from ownlet.server.cohorts import draw_cohort
from ownlet.server.deployment import Deployment
from ownlet.server.publication import PUBLICATION_FILE, read_publication
from ownlet.shared.flower_process import free_port, require_free
from ownlet.simulations.replay import read_rounds

pytestmark = pytest.mark.slow


def test_three_nodes_add_up_in_secret_and_every_user_is_charged_once_per_round(place: Any) -> None:
    status_port = free_port()
    server = place.serve("--rounds", 2, "--nodes", 3, "--secure-aggregation", "--status-port", status_port)
    for number in range(3):
        place.join(number, "--partitions", 3, "--peers", place.certs / NODES_FOLDER)  # each vouches for its own
    server.wait_for(r"round 1 of 2")
    with urllib.request.urlopen(f"http://127.0.0.1:{status_port}/metrics", timeout=60) as answer:
        assert "\nownlet_round 1\n" in answer.read().decode()
    assert server.wait() == 0, server.text
    require_free("127.0.0.1", status_port)

    deployment = Deployment.load(place.run.settings)
    rounds = read_rounds(place.run.rounds)
    assert [(record.void, record.num_admitted) for record in rounds] == [(False, 3)] * 2
    cohorts = {r: set(draw_cohort(deployment.config, deployment.num_users, r).tolist()) for r in (1, 2)}
    for user in range(deployment.num_users):
        path = place.root / f"state-{user % 3}" / "ledgers" / f"{user}.jsonl"
        entries = Ledger(path, may_start=False).entries() if path.exists() else []
        asked = [number for number, cohort in cohorts.items() if user in cohort]
        assert [entry["round"] for entry in entries if entry["state"] == "intent"] == asked
        assert sum(entry["state"] == "commit" for entry in entries) == len(asked)

    assert place.run.adapter.exists() == (place.run.root / PUBLICATION_FILE).exists()
    if place.run.adapter.exists():
        assert read_publication(place.run.root).spent.epsilon == rounds[-1].epsilon
