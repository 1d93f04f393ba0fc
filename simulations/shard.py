"""What a simulated node hosts: a store of histories and an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ownlet.device.train import Engine
from ownlet.shared.config import WindowConfig
from ownlet.shared.windows import WindowStack
from ownlet.simulations.store import EventStore

__all__ = ["StoreShard"]


class StoreShard:
    """Implements ``ownlet.device.client.Shard`` over a store."""

    def __init__(self, engine: Engine, store: EventStore, windows: WindowConfig, *, held_out: int = 0) -> None:
        """Host everybody.

        In a simulation every node could train every user; which users it does train, the server's placement says.

        Args:
            engine: trains the users; its spec names the base.
            store: the users.
            windows: how a history is cut.
            held_out: this many of each user's last events are not trained on.
        """
        self.engine, self._store, self._windows, self._held_out = engine, store, windows, held_out

    @property
    def base_hash(self) -> str:
        """The hash of the base that the engine holds."""
        return self.engine.spec.base_hash

    def windows(self, users: Sequence[int]) -> WindowStack:
        """Return each user's windows, possibly none.

        Raises:
            KeyError: there is no such user.
        """
        return self._store.windows(np.asarray(users, dtype=np.int64), self._windows, held_out=self._held_out)
