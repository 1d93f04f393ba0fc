"""A population whose interests change mid-stream, cut at the change: who knew what before, and what came after.

The genres' places in every region's interests are dealt anew from one period on; tastes, sequels and popularity stay.
It is a change of the generating probabilities, so the best possible scores are known after it as before it
(``simulations/oracle.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ownlet.shared.interactions import History, Interactions
from ownlet.simulations.evaluate import Cases
from ownlet.simulations.setting import last_event_cases
from ownlet.simulations.world import World

__all__ = ["SHARE", "Stream", "changed_world", "cut_stream", "rounds_until"]

SHARE = 0.8
"""Of the ceiling's gain: what counts as recovered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """A population cut at the change.

    Args:
        before: public users' events before it, of those who had two.
        before_cases: last events before it, of held-out public users.
        devices: per device its events since the change, without the last one.
        test: per device its last event, after all of its history.
        test_times: the same devices' unix seconds, of the history and of the last event.
        public_cases: last events of held-out public users who were there after the change.
        everything: whole histories of public users, and those of devices without the last event.
    """

    before: tuple[History, ...]
    before_cases: Cases
    devices: tuple[History, ...]
    test: Cases
    test_times: tuple[tuple[NDArray[np.int64], ...], NDArray[np.int64]]
    public_cases: Cases
    everything: tuple[History, ...]


def changed_world(world: World, at_period: int, seed: int) -> World:
    """Deal the genres' places in the interests of all regions anew, from a period on, with no genre where it was.

    Args:
        world: the probabilities before.
        at_period: the first period of the new interests.
        seed: of the permutation.
    """
    order = np.random.default_rng([seed, 7]).permutation(world.config.num_genres)
    moved = np.empty_like(order)
    moved[order] = np.roll(order, 1)  # one cycle through all genres
    drift = world.drift.copy()
    drift[:, at_period:] = world.drift[:, at_period:][:, :, moved]
    return replace(world, drift=drift)


def cut_stream(data: Interactions, at_seconds: int, *, public: int, held_out: int) -> Stream:
    """Cut a population at the change.

    Args:
        data: all events; users are in random order.
        at_seconds: unix second of the change.
        public: the first users are public and train the base.
        held_out: the users after them are public and judge.
    """
    cuts = [int(np.searchsorted(times, at_seconds)) for times in data.timestamps]
    histories = data.histories
    held = range(public, public + held_out)
    devices = [u for u in range(public + held_out, data.num_users) if len(histories[u]) - cuts[u] >= 3]
    public_before = tuple(histories[u][: cuts[u]] for u in range(public) if cuts[u] >= 2)
    return Stream(
        before=public_before,
        before_cases=last_event_cases([histories[u][: cuts[u]] for u in held if cuts[u] >= 2]),
        devices=tuple(histories[u][cuts[u] : -1] for u in devices),
        test=last_event_cases([histories[u] for u in devices]),
        test_times=(
            tuple(data.timestamps[u][:-1] for u in devices),
            np.array([data.timestamps[u][-1] for u in devices], np.int64),
        ),
        public_cases=last_event_cases([histories[u] for u in held if len(histories[u]) - cuts[u] >= 3]),
        everything=tuple(histories[u] for u in range(public)) + tuple(histories[u][:-1] for u in devices),
    )


def rounds_until(quality: dict[int, float], frozen: float, ceiling: float, share: float = SHARE) -> int | None:
    """Return the first measured round with at least a share of the ceiling's gain over the frozen base, or None.

    Where the ceiling gains nothing there is nothing to recover: None.
    """
    if ceiling <= frozen:
        return None
    target = frozen + share * (ceiling - frozen)
    return next((number for number, value in sorted(quality.items()) if value >= target), None)
