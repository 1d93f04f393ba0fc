"""A SuperLink and four SuperNodes as real processes, killed in the middle: the adapter is the simulation's.

Minutes, since Flower starts a process per message: ``make test-deployed``.
"""

from typing import Any

import numpy as np
import pytest

from ownlet.device.ledger import Ledger
from ownlet.server.checkpoint import load_checkpoint
from ownlet.server.cohorts import draw_cohort
from ownlet.server.deployment import Deployment
from ownlet.shared.adapter import load_adapter
from ownlet.shared.lora import attach_spec
from ownlet.simulations.cohort import CohortEngine
from ownlet.simulations.fleet import fleet_of_data
from ownlet.simulations.pretrain import load_base
from ownlet.simulations.replay import read_rounds, replay
from ownlet.simulations.setting import DataConfig

pytestmark = pytest.mark.slow


def test_a_node_and_the_server_are_killed_and_the_adapter_is_that_of_an_uninterrupted_simulation(place: Any) -> None:
    server = place.serve("--rounds", 5, "--min-nodes", 3)
    nodes = [place.join(number) for number in range(4)]
    server.wait_for(r"round 1 of 5")
    nodes[3].kill()
    server.wait_for(r"round 2 of 5")
    server.kill()  # in round 3
    again = place.serve("--rounds", 5, "--min-nodes", 3)
    back = place.join(3)
    back.wait_for(r"hosts \d+ users, partition 3 of 4")
    assert again.wait() == 0, again.text
    assert "going on from" in again.text

    deployment = Deployment.load(place.run.settings)
    spec, start, _ = load_adapter(place.run.start)
    rounds = read_rounds(place.run.rounds)
    assert [record.round for record in rounds] == [1, 2, 3, 4, 5]
    assert not any(record.void for record in rounds)
    assert 3 in rounds[-1].admitted  # the node that came back is used again
    assert min(len(record.admitted) for record in rounds) == 3  # and was missing in between
    # the same replies in one process, uninterrupted
    model = load_base(place.base)
    attach_spec(model, spec)
    fleet = fleet_of_data(DataConfig(path=place.data, core=0), place.base, model)
    simulated = replay(
        CohortEngine(model, spec),
        fleet.store,
        start,
        deployment.config,
        rounds,
        num_users=deployment.num_users,
        num_nodes=deployment.num_nodes,
    )
    state = load_checkpoint(place.run.checkpoint, deployment.config, spec, deployment.num_users)
    np.testing.assert_allclose(state.vector, simulated.vector, atol=1e-6)
    assert [record.epsilon for record in rounds] == [record.epsilon for record in simulated.rounds]
    assert [record.num_asked for record in rounds] == [record.num_asked for record in simulated.rounds]
    cohorts = {r: set(draw_cohort(deployment.config, deployment.num_users, r).tolist()) for r in range(1, 6)}
    for user in range(deployment.num_users):
        asked = [number for number, cohort in cohorts.items() if user in cohort]
        partition = user % deployment.num_nodes
        charged = charged_rounds(place, partition, user)
        if partition < 3:  # nodes that were never killed: each round once, also the one that was asked twice
            assert charged == asked
        else:
            entered = [record.round for record in rounds if 3 in record.admitted and record.round in asked]
            assert set(entered) <= set(charged) <= set(asked)


def charged_rounds(place: Any, partition: int, user: int) -> list[int]:
    """Return the rounds that a user's own ledger was charged for, in order."""
    path = place.root / f"state-{partition}" / "ledgers" / f"{user}.jsonl"
    entries = Ledger(path, may_start=False).entries() if path.exists() else []
    return [entry["round"] for entry in entries if entry["state"] == "intent"]


def test_who_may_not_join_gets_nothing_in_and_the_others_go_on(place: Any, other_ca: Any) -> None:
    stranger_key = other_ca / "nodes" / "node-0"
    server = place.serve("--rounds", 2, "--min-nodes", 3)
    nodes = [place.join(number) for number in range(3)]
    stranger = place.join(3, key=stranger_key)
    deceived = place.start(
        "deceived", "join", "--server", f"localhost:{place.port}", "--certs", other_ca, "--key", stranger_key,
        "--state", place.root / "deceived", "--base", place.base, "--data", place.data, "--simulated",
    )  # fmt: skip
    stranger.wait_for("refused by localhost:.*it does not know the public key")
    assert deceived.wait() == 2
    assert "server must have a certificate of" in deceived.text
    assert server.wait() == 0, server.text
    rounds = read_rounds(place.run.rounds)
    assert [record.num_admitted for record in rounds] == [3, 3]
    assert [record.num_missing for record in rounds] == [1, 1]
    assert not list((place.root / "state-3" / "ledgers").iterdir())  # it was never asked
    assert all(node.process.poll() is None for node in nodes)  # they wait for the next run


def test_too_few_nodes_are_waited_for_until_a_deadline(place: Any) -> None:
    server = place.serve("--rounds", 2, "--min-nodes", 2, "--wait-seconds", 20)
    server.wait_for("waiting for 2 nodes to connect: none so far")
    assert server.wait() == 2
    assert "2 nodes must connect in time, got none in 20 seconds" in server.text
