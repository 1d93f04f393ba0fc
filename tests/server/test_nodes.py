from typing import Any

import numpy as np
import pytest

from ownlet.server.nodes import Nodes, Presence, split_cohort
from ownlet.shared.errors import ConfigError, FederationError
from ownlet.shared.wire import partition_of


def test_every_user_is_asked_in_exactly_one_partition() -> None:
    cohort = np.array([0, 3, 4, 9, 16])
    split = split_cohort(cohort, 4)
    assert split == {0: (0, 4, 16), 1: (9,), 3: (3,)}
    assert all(partition_of(user, 4) == partition for partition, users in split.items() for user in users)
    assert split_cohort(np.array([], dtype=np.int64), 4) == {}


def test_nodes_are_found_by_the_partition_that_they_host(world: Any) -> None:
    assert Nodes(world.grid(3), 1.0).connected() == ({0: 1000, 1: 1001, 2: 1002}, 3)


def test_a_node_that_is_gone_counts_as_missing_and_its_users_stay_its_own(world: Any) -> None:
    grid = world.grid(3)
    nodes = Nodes(grid, 1.0)
    nodes.connected()
    grid.get_node_ids = lambda: [1000, 1002]
    assert nodes.connected() == ({0: 1000, 2: 1002}, 3)


def test_the_server_waits_for_the_first_node(world: Any) -> None:
    grid = world.grid(1)
    answers = iter([[], [1000]])
    grid.get_node_ids = lambda: next(answers)
    assert Nodes(grid, 0.2).connected() == ({0: 1000}, 1)


def test_no_node_in_time_is_an_error(world: Any) -> None:
    grid = world.grid(1)
    grid.get_node_ids = list
    with pytest.raises(FederationError, match="got none in"):
        Nodes(grid, 0.05).connected()


@pytest.mark.parametrize(("place", "rule"), [((0, 2), "one node must host"), ((1, 3), "agree on the number")])
def test_nodes_that_contradict_each_other_are_refused(world: Any, place: tuple[int, int], rule: str) -> None:
    grid = world.grid(2)
    grid._contexts[1].node_config = {"partition-id": place[0], "num-partitions": place[1]}
    with pytest.raises(FederationError, match=rule):
        Nodes(grid, 1.0).connected()


def test_the_server_waits_for_as_many_nodes_as_it_is_told_and_says_so(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    grid = world.grid(3)
    answers = iter([[1000], [1000, 1002]])
    grid.get_node_ids = lambda: next(answers)
    presence = Presence(min_nodes=2, num_partitions=3, wait_seconds=5.0)
    with caplog.at_level("WARNING", logger="ownlet"):
        assert Nodes(grid, 600.0, presence).connected() == ({0: 1000, 2: 1002}, 3)
    assert len(caplog.messages) == 1  # not with every look
    assert caplog.messages[0].startswith("waiting for 2 nodes to connect: 1 so far, for ")


def test_the_operator_learns_whose_nodes_come_and_go(world: Any, caplog: pytest.LogCaptureFixture) -> None:
    grid, counts = world.grid(12), list[int]()
    looks = iter([[1001], list(range(1000, 1012)), list(range(1000, 1012)), [1000, 1001, 1003]])
    grid.get_node_ids = lambda: next(looks)
    nodes = Nodes(grid, 600.0, Presence(num_partitions=12, on_connected=counts.append))
    with caplog.at_level("INFO", logger="ownlet"):
        for _ in range(4):
            nodes.connected()
    assert caplog.messages == [
        "node of partition 1 connected (1 of 12)",
        "11 nodes, of partitions 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, ..., connected (12 of 12)",
        "9 nodes, of partitions 2, 4, 5, 6, 7, 8, 9, 10, 11, gone (3 of 12)",
    ]
    assert counts == [1, 12, 12, 3]


def test_too_few_nodes_until_the_deadline_are_an_error(world: Any) -> None:
    with pytest.raises(FederationError, match=r"2 nodes must connect in time, got 1 in 0.05 seconds"):
        Nodes(world.grid(1), 600.0, Presence(min_nodes=2, wait_seconds=0.05)).connected()
    with pytest.raises(ConfigError, match="min_nodes must be from 1 to 3"):
        Presence(min_nodes=4, num_partitions=3)


@pytest.mark.parametrize("lie", [(0, 3), (1, 4), (-1, 3)])
def test_where_the_server_knows_the_partitions_a_node_that_lies_is_left_out_and_the_others_go_on(
    world: Any, lie: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    grid = world.grid(3)
    grid._contexts[1].node_config = {"partition-id": lie[0], "num-partitions": lie[1]}
    nodes = Nodes(grid, 600.0, Presence(num_partitions=3))
    with caplog.at_level("WARNING", logger="ownlet"):
        assert nodes.connected() == ({0: 1000, 2: 1002}, 3)
    assert nodes.connected() == ({0: 1000, 2: 1002}, 3)
    # a place that is none is an error of the node itself, which the grid logs
    assert [m for m in caplog.messages if "left out" in m] or lie[0] < 0


def test_a_node_that_comes_later_cannot_take_the_partition_of_one_that_was_there(world: Any) -> None:
    grid = world.grid(3)
    grid._contexts[0].node_config = {"partition-id": 2, "num-partitions": 3}
    answers = iter([[1002], [1000, 1002]])
    grid.get_node_ids = lambda: next(answers)
    nodes = Nodes(grid, 600.0, Presence(num_partitions=3))
    assert nodes.connected() == nodes.connected() == ({2: 1002}, 3)
