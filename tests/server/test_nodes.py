from typing import Any

import numpy as np
import pytest

from ownlet.server.nodes import Nodes, split_cohort
from ownlet.shared.errors import FederationError
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
