"""Sums that do not depend on the order, and how much of a round is held."""

import gc
import weakref
from collections.abc import Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from ownlet.server.combine import ExactSum
from ownlet.server.replies import Mailbox
from ownlet.shared.errors import ConfigError


def summed(replies: Any, bound: float) -> Any:
    total = ExactSum(len(replies[0]), bound)
    for reply in replies:
        total.add(reply, 1)
    return total.result()


def test_the_sum_is_the_same_to_the_last_bit_in_any_order() -> None:
    rng = np.random.default_rng(0)
    replies = [(rng.normal(size=50) * 10.0 ** (2 * at - 8)).astype(np.float32) for at in range(5)]
    bound = float(sum(np.abs(reply).max() for reply in replies))
    first = summed(replies, bound)
    floats = {np.sum(np.stack(order), axis=0, dtype=np.float32).tobytes() for order in permutations(replies)}
    assert len(floats) > 1  # which adding floats up is not
    for order in permutations(replies):
        np.testing.assert_array_equal(summed(order, bound), first)


def test_it_is_the_sum_to_far_below_what_float32_can_tell() -> None:
    rng = np.random.default_rng(1)
    replies = rng.normal(size=(1000, 20)).astype(np.float32)
    exact = [sum(float(x) for x in column) for column in replies.T.astype(np.float64)]
    bound = float(np.abs(replies).sum(axis=0).max())
    np.testing.assert_allclose(summed(replies, bound), exact, atol=1000 * bound * 2.0**-61, rtol=1e-15)


def test_replies_as_large_as_the_bound_allows_do_not_overflow() -> None:
    for bound in (1.0, 3.0, 4.0, 1e-3, 5e7):
        share = np.array([bound / 4, -bound / 4], np.float32) * np.float32(1 + 1e-4)  # what admission lets through
        np.testing.assert_allclose(summed([share] * 4, bound), [bound, -bound], rtol=2e-4)
    np.testing.assert_array_equal(ExactSum(3, 1.0).result(), np.zeros(3))


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_that_bounds_nothing_is_refused(bound: float) -> None:
    with pytest.raises(ConfigError, match="bound must be positive and finite"):
        ExactSum(3, bound)


def test_a_round_holds_a_few_replies_however_many_nodes_answer(world: Any) -> None:
    """The memory of a round: replies that are alive while those of 100 nodes are taken one by one."""
    grid = world.grid(100)
    alive: weakref.WeakSet[Message] = weakref.WeakSet()
    count, most = 0, 0
    for reply in _questions(grid):
        alive.add(reply)
        count += 1
        del reply
        if len(alive) > 17:  # a look at all objects is slow
            gc.collect()
        most = max(most, len(alive))
    assert count == 100
    assert most <= 17  # a batch, and the one at hand


def _questions(grid: Any) -> Iterator[Message]:
    messages = (Message(RecordDict(), node, "query.place", ttl=60.0) for node in grid.get_node_ids())
    return Mailbox(grid).replies_to(messages, 10.0, 60.0)


class SlowGrid:
    """Answers some messages at the first time of asking, the others never."""

    def __init__(self, grid: Any, lost: int) -> None:
        self._grid, self._lost = grid, lost

    def push_messages(self, messages: Any) -> list[str]:
        sent = list(self._grid.push_messages(messages))
        return sent[: -self._lost] + [f"lost-{at}" for at in range(self._lost)]

    def pull_messages(self, message_ids: Any) -> Any:
        return self._grid.pull_messages(message_ids)


def test_what_does_not_come_in_time_is_not_waited_for(world: Any) -> None:
    grid: Any = SlowGrid(world.grid(9), lost=2)
    messages = [Message(RecordDict(), node, "query.place", ttl=60.0) for node in range(1000, 1009)]
    assert len(list(Mailbox(grid).replies_to(messages, 0.05, 60.0))) == 7
    assert list(Mailbox(grid).replies_to([], 10.0, 60.0)) == []
