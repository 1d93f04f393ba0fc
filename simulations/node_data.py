"""The users that a deployed node hosts, cut out of a file of interactions once and kept as a store.

Users of the whole population are numbered 0..N-1 and user u lives in partition ``u % num_partitions``. A node has its
own file in a deployment: its users are numbered as they come, j in the file being ``j * num_partitions + partition``.
In a comparison with a simulation every node has the simulation's data and keeps its own users only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ownlet.device.residual_folder import ResidualFolder
from ownlet.shared.errors import DataError
from ownlet.shared.interactions import History, Interactions, Item
from ownlet.shared.wire import Place, partition_of
from ownlet.simulations.pretrain import load_catalogue
from ownlet.simulations.setting import DataConfig, load_interactions, prepare
from ownlet.simulations.store import EventStore, StoreWriter

__all__ = ["forget_others", "own_users", "simulated_users", "write_node_store"]


def write_node_store(
    folder: Path, base: Path, data: DataConfig, place: Place, *, simulated: bool, residuals: ResidualFolder
) -> tuple[int, int]:
    """Write the store of a node's users; return how many it hosts, and how many users the population has at the least.

    Args:
        folder: of the store; one that is there makes way.
        base: file of the base, with its catalogue.
        data: where the interactions are.
        place: the node's partition.
        simulated: the data is that of the whole simulation, split and numbered as ``ownlet simulate`` does.
        residuals: made of the histories that were there before; see ``forget_others``.

    Raises:
        DataError: unreadable, or no user with an item of the catalogue.
    """
    catalogue = tuple(load_catalogue(base))
    histories = simulated_users(data, place) if simulated else own_users(load_interactions(data), catalogue, place)
    hosted = sum(len(history) > 0 for history in histories)
    if not hosted:
        raise DataError(f"data must hold users of partition {place.partition} with known items, got none")
    forget_others(residuals, folder, histories)  # first: were this cut short, none would outlive its events
    with StoreWriter(folder, name="node", items=catalogue, overwrite=True) as writer:
        for history in histories:
            writer.append(history, np.array([len(history)], dtype=np.int64))
    return hosted, len(histories)


def forget_others(residuals: ResidualFolder, store: Path, histories: Sequence[History]) -> None:
    """Delete residuals of users whose history does not go on from where it was: of events that are gone, or of another
    person who has the number now.

    Args:
        residuals: of the node.
        store: with the histories that they were made of.
        histories: user number -> what takes their place.
    """
    users = residuals.users()
    before: dict[int, History] = {}
    with suppress(DataError):
        old = EventStore.open(store)
        before = {user: old.history(user) for user in users if user < old.num_users}
    for user in users:
        was = before.get(user)
        if was is None or user >= len(histories) or not np.array_equal(was, histories[user][: len(was)]):
            residuals.forget(user)


def own_users(data: Interactions, catalogue: Iterable[Item], place: Place) -> list[History]:
    """Return user number -> history, of a node that has its own users; items that the base does not know are left out.

    Args:
        data: the node's interactions.
        catalogue: of the base.
        place: the node's partition.
    """
    number_of = {item.id: item.number for item in catalogue}
    known = np.array([0, *(number_of.get(item.id, 0) for item in data.items)], dtype=np.int64)
    mine = [numbers[numbers > 0] for numbers in (known[history] for history in data.histories)]
    nobody: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    histories = [nobody] * (len(mine) * place.num_partitions)
    for place_in_file, history in enumerate(mine):
        histories[place_in_file * place.num_partitions + place.partition] = history
    return histories


def simulated_users(data: DataConfig, place: Place) -> list[History]:
    """Return user number -> history of the devices that ``ownlet simulate`` trains on; others' users have none."""
    devices = prepare(data).devices
    nobody: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    return [
        history if partition_of(user, place.num_partitions) == place.partition else nobody
        for user, history in enumerate(devices)
    ]
